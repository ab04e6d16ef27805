#!lua
-- Whether a reservation could be written now: without the flag `no-writes`, Redis refuses this whenever it would refuse
-- reserve.lua (memory full, read-only, loading, persistence failing, too few replicas).
--
-- KEYS    none
-- ARGV    none
-- result  OK
-- crash   Writes nothing.
return {'OK'}
