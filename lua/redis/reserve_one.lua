#!lua
-- Takes units for one attempt: what reserve.lua does, without its tables. Cheaper where hardly anyone waits.
--
-- KEYS    1 books, 2 orders, 3 mine, 4 pending, 5 fresh, 6 passes, 7 expiry
-- ARGV    1 identity, 2 deployment, 3 epoch, 4 deadline (ledger time, ms), 5 owner (8 bytes), 6 the terms' version,
--         7 id (16 bytes), 8 user, 9 quantity, 10 (optional) metadata
-- result  As of reserve.lua with one attempt.
-- crash   As of reserve.lua.
local call, sub, find = redis.call, string.sub, string.find
-- As in reserve.lua.
local EARLIER_BYTES_MAX = 1008
local books = call('HMGET', KEYS[1], 'identity', 'open', 'epoch', 'paused', 'starts_at_ms', 'ends_at_ms', 'per_user_limit',
  'remaining', 'pending', 'flag_counter', 'gated', 'deployment', 'version', 'terms_version')
if not books[3] then return {'UNKNOWN'} end
if books[12] ~= ARGV[2] then return {'FOREIGN', books[12] or 'none'} end
if books[1] ~= ARGV[1] then return {'AMNESIA'} end
if books[2] ~= '1' then return {'CLOSED'} end
if books[3] ~= ARGV[3] then return {'EPOCH', books[3]} end
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- One that lies far ahead is of a clock that was put back since.
if now > tonumber(ARGV[4]) or ARGV[4] - now > 30000 then return {'LATE'} end

local owner, id, user, quantity = ARGV[5], ARGV[7], ARGV[8], tonumber(ARGV[9])
if #owner ~= 8 or #id ~= 16 then return {'INVALID'} end
local remaining, flag_counter = tonumber(books[8]), tonumber(books[10])
local state = call('HGET', KEYS[2], id)
if state then
  local kind = string.byte(state)
  if kind == 112 then return {'OK', now, books[13], remaining, flag_counter, 'R', state} end
  return {'OK', now, books[13], remaining, flag_counter, kind == 99 and 'C' or 'U'}
end
if books[14] ~= ARGV[6] then return {'OK', now, books[13], remaining, flag_counter, 'V'} end
if books[4] == '1' then return {'OK', now, books[13], remaining, flag_counter, 'Z'} end
if now < tonumber(books[5]) then return {'OK', now, books[13], remaining, flag_counter, 'S'} end
if now >= tonumber(books[6]) then return {'OK', now, books[13], remaining, flag_counter, 'E'} end
local known = call('HGET', KEYS[3], user)
local units, earlier = quantity, ''
if known then
  local colon = find(known, ':', 1, true)
  units, earlier = sub(known, 1, colon - 1) + quantity, sub(known, colon + 1)
end
if units > tonumber(books[7]) then return {'OK', now, books[13], remaining, flag_counter, 'L', earlier} end
if remaining <= 0 then return {'OK', now, books[13], remaining, flag_counter, 'X'} end
if remaining < quantity then return {'OK', now, books[13], remaining, flag_counter, 'N', remaining} end

local used = false
if books[11] == '1' then
  local pass = call('HGET', KEYS[6], user)
  used = pass and sub(pass, -16) == id
end
remaining = remaining - quantity
if remaining <= 0 then flag_counter = flag_counter + 1 end
local value = 'p' .. owner .. now .. ':' .. books[13] .. ':' .. ARGV[9] .. ':' .. user
if ARGV[10] then value = value .. '\0' .. ARGV[10] end
-- Writes from here on.
call('HSET', KEYS[2], id, value)
call('HSET', KEYS[3], user, units .. ':' .. sub(earlier, -EARLIER_BYTES_MAX) .. id)
call('RPUSH', KEYS[5], owner .. id)
call('HSET', KEYS[1], 'remaining', remaining, 'pending', tonumber(books[9]) + quantity, 'flag_counter', flag_counter)
if used then
  call('HDEL', KEYS[6], user)
  call('ZREM', KEYS[7], user)
end
return {'OK', now, books[13], remaining, flag_counter, 'T'}
