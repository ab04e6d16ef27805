#!lua flags=no-writes
-- What one user holds of the sale: the newest orders that hold units, oldest first.
--
-- KEYS    1 books, 2 orders, 3 mine, 4 pending, 5 fresh, 6 passes, 7 expiry
-- ARGV    1 identity, 2 deployment, 3 user
-- result  OK, then each id (16 bytes) and its value in orders; or UNKNOWN, FOREIGN deployment, AMNESIA, CLOSED
-- crash   Writes nothing.
local call, sub = redis.call, string.sub
local books = call('HMGET', KEYS[1], 'identity', 'epoch', 'open', 'deployment')
if not books[2] then return {'UNKNOWN'} end
if books[4] ~= ARGV[2] then return {'FOREIGN', books[4] or 'none'} end
if books[1] ~= ARGV[1] then return {'AMNESIA'} end
if books[3] ~= '1' then return {'CLOSED'} end
local answer, ids = {'OK'}, {}
local held = call('HGET', KEYS[3], ARGV[3])
if not held then return answer end
for at = string.find(held, ':', 1, true) + 1, #held, 16 do ids[#ids + 1] = sub(held, at, at + 15) end
local values = call('HMGET', KEYS[2], unpack(ids))
for place = 1, #ids do
  answer[2 * place] = ids[place]
  answer[2 * place + 1] = values[place]
end
return answer
