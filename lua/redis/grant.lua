#!lua
-- The gate's consent to hand out one more pass. Only unused passes that still count do, against passes_per_unit × remaining: one stops
-- counting before it expires, and until then it stays its user's only one.
--
-- KEYS    1 books, 2 orders, 3 mine, 4 pending, 5 fresh, 6 passes, 7 expiry
-- ARGV    1 identity, 2 deployment, 3 epoch, 4 user, 5 id (16 bytes) that a new pass would name,
--         6 when it expires, 7 until when it counts (ledger time, ms; at most 6)
-- result  OK, remaining, flag counter, then G granted; H the user holds one (when it expires, its id); F gate full; X sold out
--         or UNKNOWN, FOREIGN deployment, AMNESIA, CLOSED, EPOCH epoch, INVALID
-- crash   All of it or nothing. A lost answer: the user's next request is told H.
local call, match = redis.call, string.match
local DUE_MAX = 16
local books = call('HMGET', KEYS[1], 'identity', 'open', 'epoch', 'passes_per_unit', 'remaining', 'flag_counter', 'gated',
  'deployment')
if not books[3] then return {'UNKNOWN'} end
if books[8] ~= ARGV[2] then return {'FOREIGN', books[8] or 'none'} end
if books[1] ~= ARGV[1] then return {'AMNESIA'} end
if books[2] ~= '1' then return {'CLOSED'} end
if books[3] ~= ARGV[3] then return {'EPOCH', books[3]} end
local user, id, expires, counts_until = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
if #id ~= 16 or not counts_until then return {'INVALID'} end
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local remaining, flag_counter = tonumber(books[5]), tonumber(books[6])

if books[7] == '1' then
  local pass = call('HGET', KEYS[6], user)
  local until_ms = pass and match(pass, '^%d+')
  if until_ms and tonumber(until_ms) > now then
    return {'OK', remaining, flag_counter, 'H', until_ms, string.sub(pass, -16)}
  end
end
if remaining <= 0 then return {'OK', remaining, flag_counter, 'X'} end
local per_unit = tonumber(books[4])
if per_unit == 0 or call('HEXISTS', KEYS[2], id) == 1 then return {'OK', remaining, flag_counter, 'G'} end
local live = call('ZCOUNT', KEYS[7], '(' .. now, '+inf')
if live >= per_unit * remaining then return {'OK', remaining, flag_counter, 'F'} end
-- What expired is swept a little at a time. It counted no longer for some time: those behind it expire about as late.
local due, expired = call('ZRANGEBYSCORE', KEYS[7], '-inf', now, 'LIMIT', 0, DUE_MAX), {}
local passes = #due > 0 and call('HMGET', KEYS[6], unpack(due)) or {}
for place, holder in ipairs(due) do
  local ends = passes[place] and match(passes[place], '^%d+')
  if not ends or tonumber(ends) <= now then expired[#expired + 1] = holder end
end
-- Writes from here on.
if #expired > 0 then
  call('HDEL', KEYS[6], unpack(expired))
  call('ZREM', KEYS[7], unpack(expired))
end
-- One that expires before it begins counts for nobody.
if tonumber(expires) > now then
  call('HSET', KEYS[6], user, expires .. ':' .. id)
  call('ZADD', KEYS[7], counts_until, user)
  if books[7] ~= '1' then call('HSET', KEYS[1], 'gated', 1) end
end
return {'OK', remaining, flag_counter, 'G'}
