#!lua flags=allow-oom
-- Renews the lease of an instance, and drops the leases that have ended.
--
-- KEYS    1 leases
-- ARGV    1 instance (16 hex digits), 2 for how long from now (ms)
-- result  OK, now (ms); or INVALID
-- crash   All of it or nothing. Repeated, it renews again.
if #ARGV ~= 2 then return {'INVALID'} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
return {'OK', now}
