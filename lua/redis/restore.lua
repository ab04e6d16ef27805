#!lua
-- Merges promises of one log into a closed state: absent => pending.
--
-- KEYS    1 books, 2 orders, 3 mine, 4 pending, 5 fresh, 6 passes, 7 expiry
-- ARGV    1 identity, 2 deployment, 3 epoch, 4 owner (8 bytes),
--         5 MessagePack, one after the other: ids, users, quantities, times of reserving (decimal texts), metadata by place, sale's
--           versions (0: not known)
-- result  OK; or UNKNOWN, FOREIGN deployment, AMNESIA, EPOCH epoch, OPEN, INVALID
-- crash   All of it or nothing. Repeated, it changes nothing. The sale stays closed until open.lua.
local call, sub, find = redis.call, string.sub, string.find
-- As in reserve.lua.
local EARLIER_BYTES_MAX = 1008
local books = call('HMGET', KEYS[1], 'identity', 'epoch', 'open', 'remaining', 'pending', 'flag_counter', 'deployment')
if not books[2] then return {'UNKNOWN'} end
if books[7] ~= ARGV[2] then return {'FOREIGN', books[7] or 'none'} end
if books[1] ~= ARGV[1] then return {'AMNESIA'} end
if books[2] ~= ARGV[3] then return {'EPOCH', books[2]} end
if books[3] == '1' then return {'OPEN'} end
local ids, users, quantities, times, metadata, versions = cmsgpack.unpack(ARGV[5])
local count, owner = #ids, ARGV[4]
if #users ~= count or #quantities ~= count or #times ~= count or #versions ~= count or #owner ~= 8 then return {'INVALID'} end
if count == 0 then return {'OK'} end

local states = call('HMGET', KEYS[2], unpack(ids))
local held = call('HMGET', KEYS[3], unpack(users))
local before, remaining, flag_counter = tonumber(books[4]), tonumber(books[4]), tonumber(books[6])
local new, holding = {}, {}
local orders, taken = {}, {}
for place = 1, count do
  local id = ids[place]
  if not states[place] and not new[id] then
    local user, quantity = users[place], quantities[place]
    remaining = remaining - quantity
    local known = holding[user] or held[place]
    local sum, earlier = quantity, ''
    if known then
      local colon = find(known, ':', 1, true)
      sum, earlier = sub(known, 1, colon - 1) + quantity, sub(known, colon + 1)
    end
    holding[user] = sum .. ':' .. sub(earlier, -EARLIER_BYTES_MAX) .. id
    local value = 'p' .. owner .. times[place] .. ':' .. versions[place] .. ':' .. quantity .. ':' .. user
    if metadata[place] then value = value .. '\0' .. metadata[place] end
    new[id] = true
    orders[#orders + 1] = id
    orders[#orders + 1] = value
    taken[#taken + 1] = id
  end
end
if #orders == 0 then return {'OK'} end
if (before <= 0) ~= (remaining <= 0) then flag_counter = flag_counter + 1 end
local units = {}
for user, holds in pairs(holding) do
  units[#units + 1] = user
  units[#units + 1] = holds
end
-- Writes from here on. Passes are only counted once it is open, and installing it forgot them: none can be used here.
call('HSET', KEYS[2], unpack(orders))
call('HSET', KEYS[3], unpack(units))
call('RPUSH', KEYS[5], owner .. table.concat(taken))
call('HSET', KEYS[1], 'remaining', remaining, 'pending', tonumber(books[5]) + before - remaining, 'flag_counter', flag_counter)
return {'OK'}
