#!lua flags=no-writes
-- The sale's books, in one step.
--
-- KEYS    1 books
-- ARGV    1 identity
-- result  OK, epoch, version, total, remaining, pending, confirmed, open, paused, flag counter; or UNKNOWN, AMNESIA
-- crash   Writes nothing.
local books = redis.call('HMGET', KEYS[1], 'identity', 'epoch', 'version', 'total', 'remaining', 'pending', 'confirmed', 'open',
  'paused', 'flag_counter')
if not books[2] then return {'UNKNOWN'} end
if books[1] ~= ARGV[1] then return {'AMNESIA'} end
books[1] = 'OK'
return books
