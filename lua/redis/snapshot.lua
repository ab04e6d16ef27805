#!lua flags=no-writes
-- The sale's books, in one step.
--
-- KEYS    1 books
-- ARGV    1 identity, 2 deployment
-- result  OK, epoch, version, total, remaining, pending, confirmed, open, paused, flag counter; or UNKNOWN, FOREIGN deployment,
--         AMNESIA
-- crash   Writes nothing.
local books = redis.call('HMGET', KEYS[1], 'identity', 'epoch', 'version', 'total', 'remaining', 'pending', 'confirmed', 'open',
  'paused', 'flag_counter', 'deployment')
if not books[2] then return {'UNKNOWN'} end
if books[11] ~= ARGV[2] then return {'FOREIGN', books[11] or 'none'} end
if books[1] ~= ARGV[1] then return {'AMNESIA'} end
books[1] = 'OK'
books[11] = nil
return books
