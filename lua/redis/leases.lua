#!lua flags=no-writes
-- Every lease that has not ended.
--
-- KEYS    1 leases
-- ARGV    none
-- result  OK, now (ms), then each instance and when its lease ends (ms)
-- crash   Writes nothing.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return {'OK', now, unpack(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', 0, 1024))}
