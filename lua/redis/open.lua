#!lua flags=allow-oom
-- Ends the rebuild of this epoch.
--
-- KEYS    1 books
-- ARGV    1 identity, 2 deployment, 3 epoch
-- result  OK, epoch, remaining, flag counter; or UNKNOWN, FOREIGN deployment, AMNESIA, EPOCH epoch
-- crash   Repeated, it changes nothing.
local books = redis.call('HMGET', KEYS[1], 'identity', 'epoch', 'remaining', 'flag_counter', 'deployment')
if not books[2] then return {'UNKNOWN'} end
if books[5] ~= ARGV[2] then return {'FOREIGN', books[5] or 'none'} end
if books[1] ~= ARGV[1] then return {'AMNESIA'} end
if books[2] ~= ARGV[3] then return {'EPOCH', books[2]} end
redis.call('HSET', KEYS[1], 'open', 1)
return {'OK', books[2], tonumber(books[3]), tonumber(books[4])}
