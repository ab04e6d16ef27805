#!lua flags=allow-oom
-- Tells the sale's row as it is now; newer wins. Allowed when memory is full, so that an operator can pause.
--
-- KEYS    1 books
-- ARGV    1 identity, 2 deployment, 3 version, 4 total, 5 starts_at_ms, 6 ends_at_ms, 7 per_user_limit, 8 passes_per_unit,
--         9 paused (0 or 1), 10 the terms' version
-- result  OK, epoch, remaining, flag counter; or UNKNOWN, FOREIGN deployment, AMNESIA
-- crash   All of it or nothing. Repeated, it changes nothing.
local books = redis.call('HMGET', KEYS[1], 'identity', 'epoch', 'version', 'total', 'remaining', 'flag_counter', 'deployment')
if not books[2] then return {'UNKNOWN'} end
if books[7] ~= ARGV[2] then return {'FOREIGN', books[7] or 'none'} end
if books[1] ~= ARGV[1] then return {'AMNESIA'} end
local before, flag_counter = tonumber(books[5]), tonumber(books[6])
if tonumber(ARGV[3]) <= tonumber(books[3]) then return {'OK', books[2], before, flag_counter} end
local remaining = before + ARGV[4] - books[4]
if (before <= 0) ~= (remaining <= 0) then flag_counter = flag_counter + 1 end
redis.call('HSET', KEYS[1], 'version', ARGV[3], 'total', ARGV[4], 'starts_at_ms', ARGV[5], 'ends_at_ms', ARGV[6],
  'per_user_limit', ARGV[7], 'passes_per_unit', ARGV[8], 'paused', ARGV[9], 'terms_version', ARGV[10], 'remaining', remaining, 'flag_counter', flag_counter)
return {'OK', books[2], remaining, flag_counter}
