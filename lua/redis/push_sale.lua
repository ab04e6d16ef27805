#!lua flags=allow-oom
-- Tells the sale's row as it is now; newer wins. Allowed when memory is full, so that an operator can pause.
--
-- KEYS    1 books
-- ARGV    1 identity, 2 version, 3 total, 4 starts_at_ms, 5 ends_at_ms, 6 per_user_limit, 7 passes_per_unit, 8 paused (0 or 1)
-- result  OK, epoch, remaining, flag counter; or UNKNOWN, AMNESIA
-- crash   All of it or nothing. Repeated, it changes nothing.
local books = redis.call('HMGET', KEYS[1], 'identity', 'epoch', 'version', 'total', 'remaining', 'flag_counter')
if not books[2] then return {'UNKNOWN'} end
if books[1] ~= ARGV[1] then return {'AMNESIA'} end
local before, flag_counter = tonumber(books[5]), tonumber(books[6])
if tonumber(ARGV[2]) <= tonumber(books[3]) then return {'OK', books[2], before, flag_counter} end
local remaining = before + ARGV[3] - books[4]
if (before <= 0) ~= (remaining <= 0) then flag_counter = flag_counter + 1 end
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'total', ARGV[3], 'starts_at_ms', ARGV[4], 'ends_at_ms', ARGV[5],
  'per_user_limit', ARGV[6], 'passes_per_unit', ARGV[7], 'paused', ARGV[8], 'remaining', remaining, 'flag_counter', flag_counter)
return {'OK', books[2], remaining, flag_counter}
