#!lua flags=allow-oom
-- One page of the pending reservations, ordered by id. Reservations leave their ids in fresh, a list, since that costs next to
-- nothing; whoever lists files them in the index first, a bounded number a step.
--
-- KEYS    1 books, 2 orders, 3 mine, 4 pending, 5 fresh, 6 passes, 7 expiry
-- ARGV    1 identity, 2 deployment, 3 owner (8 bytes, or empty: of all), 4 id (16 bytes) after which to begin, or empty,
--         5 most to list, 6 the id next to 4, or empty, 7 1: list, whatever is left in fresh
-- result  OK, PAGE, the last id looked at (empty: there is no more), then id + owner and the value in orders of each
--         or OK, FRESH, entries filed, entries left: ask again; who has asked until as many were filed as were left at first has
--         waited for all that was pending then
--         or UNKNOWN, FOREIGN deployment, AMNESIA
-- crash   All of it or nothing: an id is in fresh or in the index.
local call, sub, byte = redis.call, string.sub, string.byte
-- Most that are filed in a step.
local ENTRIES_MAX, IDS_MAX = 128, 1024
-- Most that are looked at for one owner's; who wants more asks on from the last id looked at.
local LOOKED_AT_MAX = 2048
local books = call('HMGET', KEYS[1], 'identity', 'epoch', 'deployment')
if not books[2] then return {'UNKNOWN'} end
if books[3] ~= ARGV[2] then return {'FOREIGN', books[3] or 'none'} end
if books[1] ~= ARGV[1] then return {'AMNESIA'} end
local owner, after, most = ARGV[3], ARGV[4], tonumber(ARGV[5])
if most == 0 then return {'OK', 'PAGE', ''} end

-- Whoever asks for one order's reservation needs no index.
if most == 1 and ARGV[6] ~= '' then
  local value = call('HGET', KEYS[2], ARGV[6])
  if value and byte(value) == 112 and (owner == '' or sub(value, 2, 9) == owner) then
    return {'OK', 'PAGE', ARGV[6], ARGV[6] .. sub(value, 2, 9), value}
  end
end

local filed, ids, owners = 0, {}, {}
for _, entry in ipairs(call('LRANGE', KEYS[5], 0, ENTRIES_MAX - 1)) do
  if filed > 0 and #ids + (#entry - 8) / 16 > IDS_MAX then break end
  local of = sub(entry, 1, 8)
  for at = 9, #entry, 16 do
    ids[#ids + 1] = sub(entry, at, at + 15)
    owners[#owners + 1] = of
  end
  filed = filed + 1
end
if filed > 0 then
  local states = call('HMGET', KEYS[2], unpack(ids))
  local members = {}
  for place = 1, #ids do
    if states[place] and byte(states[place]) == 112 then
      members[#members + 1] = '0'
      members[#members + 1] = ids[place] .. owners[place]
    end
  end
  -- Writes.
  if #members > 0 then call('ZADD', KEYS[4], unpack(members)) end
  call('LTRIM', KEYS[5], filed, -1)
  local left = call('LLEN', KEYS[5])
  if left > 0 and ARGV[7] ~= '1' then return {'OK', 'FRESH', filed, left} end
end

local from = after == '' and '-' or '(' .. after .. string.rep('\255', 8)
local look = owner == '' and most or LOOKED_AT_MAX
local members = call('ZRANGEBYLEX', KEYS[4], from, '+', 'LIMIT', 0, look)
local found, listed, last = {}, {}, ''
if #members == look then last = sub(members[look], 1, 16) end
for _, member in ipairs(members) do
  if owner == '' or sub(member, 17) == owner then
    if #found == most then
      last = listed[most]
      break
    end
    found[#found + 1] = member
    listed[#listed + 1] = sub(member, 1, 16)
  end
end
local answer = {'OK', 'PAGE', last}
if #listed > 0 then
  local values = call('HMGET', KEYS[2], unpack(listed))
  for place = 1, #listed do
    answer[2 * place + 2] = found[place]
    answer[2 * place + 3] = values[place]
  end
end
return answer
