#!lua flags=allow-oom
-- Ends the lease of an instance that stops.
--
-- KEYS    1 leases
-- ARGV    1 instance (16 hex digits)
-- result  OK
-- crash   Repeated, it changes nothing.
redis.call('ZREM', KEYS[1], ARGV[1])
return {'OK'}
