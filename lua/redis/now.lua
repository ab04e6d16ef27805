#!lua flags=no-writes
-- Ledger time.
--
-- KEYS    none
-- ARGV    none
-- result  OK, now (ms)
-- crash   Writes nothing.
local time = redis.call('TIME')
return {'OK', time[1] * 1000 + math.floor(time[2] / 1000)}
