#!lua flags=no-writes
-- One page of the pending reservations, ordered by id.
--
-- KEYS    1 books, 2 orders, 3 pending
-- ARGV    1 identity, 2 owner (8 bytes, or empty: of all), 3 id (16 bytes) after which to begin, or empty, 4 most to list
-- result  OK, the last id looked at (empty: there is no more), then id + owner and the value in orders of each
--         or UNKNOWN, AMNESIA
-- crash   Writes nothing.
local call, sub = redis.call, string.sub
-- Most that are looked at for one owner's; who wants more asks on from the last id looked at.
local LOOKED_AT_MAX = 2048
local books = call('HMGET', KEYS[1], 'identity', 'epoch')
if not books[2] then return {'UNKNOWN'} end
if books[1] ~= ARGV[1] then return {'AMNESIA'} end
local owner, after, most = ARGV[2], ARGV[3], tonumber(ARGV[4])
if most == 0 then return {'OK', ''} end
local from = after == '' and '-' or '(' .. after .. string.rep('\255', 8)
local look = owner == '' and most or LOOKED_AT_MAX
local members = call('ZRANGEBYLEX', KEYS[3], from, '+', 'LIMIT', 0, look)
local found, ids, last = {}, {}, ''
if #members == look then last = sub(members[look], 1, 16) end
for _, member in ipairs(members) do
  if owner == '' or sub(member, 17) == owner then
    if #found == most then
      last = ids[most]
      break
    end
    found[#found + 1] = member
    ids[#ids + 1] = sub(member, 1, 16)
  end
end
local answer = {'OK', last}
if #ids > 0 then
  local values = call('HMGET', KEYS[2], unpack(ids))
  for place = 1, #ids do
    answer[2 * place + 1] = found[place]
    answer[2 * place + 2] = values[place]
  end
end
return answer
