#!lua flags=allow-oom
-- Forgets a sale that the database marked settled.
--
-- KEYS    1 books, 2 orders, 3 mine, 4 pending, 5 fresh, 6 passes, 7 expiry
-- ARGV    1 identity, 2 deployment
-- result  OK, also when it is not known; or FOREIGN deployment, AMNESIA
-- crash   All of it or nothing. Repeated, it changes nothing. UNLINK frees big keys off the main thread.
local books = redis.call('HMGET', KEYS[1], 'identity', 'epoch', 'deployment')
if books[2] and books[3] ~= ARGV[2] then return {'FOREIGN', books[3] or 'none'} end
if books[2] and books[1] ~= ARGV[1] then return {'AMNESIA'} end
-- Writes from here on.
redis.call('UNLINK', unpack(KEYS))
return {'OK'}
