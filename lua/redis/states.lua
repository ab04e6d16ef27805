#!lua flags=no-writes
-- Where each id stands.
--
-- KEYS    1 books, 2 orders
-- ARGV    1 identity, 2 deployment, 3 the ids, 16 bytes each
-- result  OK, one letter an id: a absent, p pending, c confirmed, r released; or UNKNOWN, FOREIGN deployment, AMNESIA, CLOSED
-- crash   Writes nothing.
local books = redis.call('HMGET', KEYS[1], 'identity', 'epoch', 'open', 'deployment')
if not books[2] then return {'UNKNOWN'} end
if books[4] ~= ARGV[2] then return {'FOREIGN', books[4] or 'none'} end
if books[1] ~= ARGV[1] then return {'AMNESIA'} end
if books[3] ~= '1' then return {'CLOSED'} end
local ids = {}
for at = 1, #ARGV[3], 16 do ids[#ids + 1] = string.sub(ARGV[3], at, at + 15) end
if #ids == 0 then return {'OK', ''} end
local states = redis.call('HMGET', KEYS[2], unpack(ids))
for place = 1, #ids do states[place] = states[place] and string.sub(states[place], 1, 1) or 'a' end
return {'OK', table.concat(states)}
