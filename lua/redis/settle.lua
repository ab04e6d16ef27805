#!lua flags=allow-oom
-- Confirms (absent or pending => confirmed) or releases (absent, pending or confirmed => released) orders, as the database has them.
-- Allowed while closed for a rebuild, and when memory is full: it makes values smaller.
--
-- KEYS    1 books, 2 orders, 3 mine, 4 pending, 5 fresh, 6 passes, 7 expiry
-- ARGV    1 identity, 2 deployment, 3 target: c or r, 4 MessagePack, one after the other: ids, users, quantities
-- result  OK, epoch, remaining, flag counter; or UNKNOWN, FOREIGN deployment, AMNESIA, INVALID
-- crash   All of it or nothing. Repeated, it changes nothing.
local call, sub, match, find = redis.call, string.sub, string.match, string.find
-- 64 ids: as in reserve.lua.
local IDS_BYTES_MAX = 1024
local books = call('HMGET', KEYS[1], 'identity', 'epoch', 'remaining', 'pending', 'confirmed', 'flag_counter', 'gated',
  'deployment')
if not books[2] then return {'UNKNOWN'} end
if books[8] ~= ARGV[2] then return {'FOREIGN', books[8] or 'none'} end
if books[1] ~= ARGV[1] then return {'AMNESIA'} end
local target = ARGV[3]
local ids, users, quantities = cmsgpack.unpack(ARGV[4])
local count = #ids
if #users ~= count or #quantities ~= count or (target ~= 'c' and target ~= 'r') then return {'INVALID'} end
local before, flag_counter = tonumber(books[3]), tonumber(books[6])
if count == 0 then return {'OK', books[2], before, flag_counter} end

local states = call('HMGET', KEYS[2], unpack(ids))
local remaining, pending, confirmed = before, tonumber(books[4]), tonumber(books[5])
local now_known, change = {}, {}
-- Ids that come to a user, one after the other, and those that go, by user.
local come, went = {}, {}
local function goes(user, id)
  went[user] = went[user] or {}
  went[user][id] = true
end
local function comes(user, id) come[user] = (come[user] or '') .. id end
local orders, gone, fresh, buyers = {}, {}, {}, {}
for place = 1, count do
  local id = ids[place]
  local state = now_known[id] or states[place]
  local kind = state and sub(state, 1, 1)
  if kind ~= 'r' and kind ~= target then
    if kind == 'p' then
      local quantity, user = match(state, '^%d+:%d+:(%d+):([^%z]*)', 10)
      remaining, pending = remaining + quantity, pending - quantity
      change[user] = (change[user] or 0) - quantity
      -- What its own user keeps stays where it is.
      if target == 'r' or user ~= users[place] then goes(user, id) end
      if target == 'c' and user ~= users[place] then comes(users[place], id) end
      gone[#gone + 1] = id .. sub(state, 2, 9)
    elseif kind == 'c' then
      local quantity, user = match(state, '^(%d+):(.*)$', 2)
      remaining, confirmed = remaining + quantity, confirmed - quantity
      change[user] = (change[user] or 0) - quantity
      goes(user, id)
    else
      if target == 'c' then comes(users[place], id) end
      fresh[#fresh + 1] = id
      buyers[#buyers + 1] = users[place]
    end
    local value = 'r'
    if target == 'c' then
      local user, quantity = users[place], quantities[place]
      remaining, confirmed = remaining - quantity, confirmed + quantity
      change[user] = (change[user] or 0) + quantity
      value = 'c' .. quantity .. ':' .. user
    end
    now_known[id] = value
    orders[#orders + 1] = id
    orders[#orders + 1] = value
  end
end
if #orders == 0 then return {'OK', books[2], before, flag_counter} end

local changed, units, nobody = {}, {}, {}
for user, difference in pairs(change) do
  if difference ~= 0 or come[user] or went[user] then changed[#changed + 1] = user end
end
if #changed > 0 then
  local held = call('HMGET', KEYS[3], unpack(changed))
  for place, user in ipairs(changed) do
    local sum, ids = change[user], ''
    if held[place] then
      local colon = find(held[place], ':', 1, true)
      sum, ids = sum + sub(held[place], 1, colon - 1), sub(held[place], colon + 1)
    end
    if sum > 0 then
      local kept = {}
      for at = 1, went[user] and #ids or 0, 16 do
        local id = sub(ids, at, at + 15)
        if not went[user][id] then kept[#kept + 1] = id end
      end
      if went[user] then ids = table.concat(kept) end
      units[#units + 1] = user
      units[#units + 1] = sum .. ':' .. sub(ids .. (come[user] or ''), -IDS_BYTES_MAX)
    else
      nobody[#nobody + 1] = user
    end
  end
end
local used = {}
if books[7] == '1' and #fresh > 0 then
  local passes = call('HMGET', KEYS[6], unpack(buyers))
  for place = 1, #fresh do
    if passes[place] and sub(passes[place], -16) == fresh[place] then used[#used + 1] = buyers[place] end
  end
end
-- What is still in fresh stays there and is left out when it is filed.
local indexed = #gone > 0 and call('EXISTS', KEYS[4]) == 1
if (before <= 0) ~= (remaining <= 0) then flag_counter = flag_counter + 1 end
-- Writes from here on.
call('HSET', KEYS[2], unpack(orders))
if #units > 0 then call('HSET', KEYS[3], unpack(units)) end
if #nobody > 0 then call('HDEL', KEYS[3], unpack(nobody)) end
if indexed then call('ZREM', KEYS[4], unpack(gone)) end
if #used > 0 then
  call('HDEL', KEYS[6], unpack(used))
  call('ZREM', KEYS[7], unpack(used))
end
call('HSET', KEYS[1], 'remaining', remaining, 'pending', pending, 'confirmed', confirmed, 'flag_counter', flag_counter)
return {'OK', books[2], remaining, flag_counter}
