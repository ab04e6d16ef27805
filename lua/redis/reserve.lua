#!lua
-- Takes units for a batch of attempts, in their order.
--
-- KEYS    1 books, 2 orders, 3 mine, 4 pending, 5 fresh, 6 passes, 7 expiry
-- ARGV    1 identity, 2 deployment, 3 epoch, 4 deadline (ledger time, ms), 5 owner (8 bytes), 6 the terms' version,
--         7 MessagePack, one after the other: ids, users, quantities, metadata by place ({} or {[place] = text}), and false
--           where no id and no user stands there twice
-- result  OK, now (ms), the sale's version, remaining, flag counter, one letter an attempt, then for each R, L and N in their order what it needs:
--         T taken, R pending already (its value in orders), C confirmed, U released, V other terms, Z paused, S not started, E ended,
--         L limit reached (the ids that the user holds, 16 bytes each), N not enough (what is left), X sold out
--         or UNKNOWN, FOREIGN deployment, AMNESIA, CLOSED, EPOCH epoch, LATE, INVALID
-- crash   All of it or nothing. An answer that got lost: the same ids give the same answers.
local call, byte, sub, find = redis.call, string.byte, string.sub, string.find
-- Of what a user holds the newest ids are kept, 64 with the one that comes.
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

local ids, users, quantities, metadata, repeats = cmsgpack.unpack(ARGV[7])
local count = #ids
if #users ~= count or #quantities ~= count or #ARGV[5] ~= 8 then return {'INVALID'} end
local before, flag_counter = tonumber(books[8]), tonumber(books[10])
if count == 0 then return {'OK', now, books[13], before, flag_counter, ''} end

-- Says no to every new id, whoever asks.
local refusal
if books[14] ~= ARGV[6] then
  refusal = 'V'
elseif books[4] == '1' then
  refusal = 'Z'
elseif now < tonumber(books[5]) then
  refusal = 'S'
elseif now >= tonumber(books[6]) then
  refusal = 'E'
end
local limit, remaining = tonumber(books[7]), before
local states = call('HMGET', KEYS[2], unpack(ids))
local held = call('HMGET', KEYS[3], unpack(users))
local head = 'p' .. ARGV[5] .. now .. ':' .. books[13] .. ':'
-- What this batch itself has done so far, by id and by user; both stay empty where nothing stands there twice.
local new, holding = {}, {}
-- Letters are kept from the first attempt on that is not taken.
local answer, extras = nil, {}
local orders, units, taken, buyers, wins = {}, {}, {}, {}, 0
for place = 1, count do
  local id = ids[place]
  local state = states[place] or new[id]
  local letter
  if state then
    local kind = byte(state)
    if kind == 112 then
      letter = 'R'
      extras[#extras + 1] = state
    elseif kind == 99 then
      letter = 'C'
    else
      letter = 'U'
    end
  elseif refusal then
    letter = refusal
  else
    local user, quantity = users[place], quantities[place]
    local known = holding[user] or held[place]
    local sum, earlier = quantity, ''
    if known then
      local colon = find(known, ':', 1, true)
      sum, earlier = sub(known, 1, colon - 1) + quantity, sub(known, colon + 1)
    end
    if sum > limit then
      letter = 'L'
      extras[#extras + 1] = earlier
    elseif remaining <= 0 then
      letter = 'X'
    elseif remaining < quantity then
      letter = 'N'
      extras[#extras + 1] = remaining
    else
      remaining = remaining - quantity
      -- A number becomes text slowly, and nearly all are 1.
      local value = head .. (quantity == 1 and '1:' or quantity .. ':') .. user
      if metadata[place] then value = value .. '\0' .. metadata[place] end
      wins = wins + 1
      taken[wins], buyers[wins] = id, user
      orders[2 * wins - 1], orders[2 * wins] = id, value
      -- A user who comes twice stands here twice; the later sum wins.
      local holds = known and sum .. ':' .. sub(earlier, -EARLIER_BYTES_MAX) .. id or (sum == 1 and '1:' or sum .. ':') .. id
      if repeats ~= false then
        new[id] = value
        holding[user] = holds
      end
      units[2 * wins - 1], units[2 * wins] = user, holds
    end
  end
  if letter and not answer then
    answer = {}
    for earlier = 1, place - 1 do answer[earlier] = 'T' end
  end
  if answer then answer[place] = letter or 'T' end
end

if wins > 0 then
  local used = {}
  if books[11] == '1' then
    local passes = call('HMGET', KEYS[6], unpack(buyers))
    for place = 1, wins do
      if passes[place] and sub(passes[place], -16) == taken[place] then used[#used + 1] = buyers[place] end
    end
  end
  if before > 0 and remaining <= 0 then flag_counter = flag_counter + 1 end
  -- Writes from here on.
  call('HSET', KEYS[2], unpack(orders))
  call('HSET', KEYS[3], unpack(units))
  call('RPUSH', KEYS[5], ARGV[5] .. table.concat(taken))
  call('HSET', KEYS[1], 'remaining', remaining, 'pending', tonumber(books[9]) + before - remaining, 'flag_counter', flag_counter)
  if #used > 0 then
    call('HDEL', KEYS[6], unpack(used))
    call('ZREM', KEYS[7], unpack(used))
  end
end
return {'OK', now, books[13], remaining, flag_counter, answer and table.concat(answer) or string.rep('T', count), unpack(extras)}
