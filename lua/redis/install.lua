#!lua
-- Replaces whatever this deployment holds of the sale, also what another server's memory left here, by an empty closed state of a
-- newer epoch.
--
-- KEYS    1 books, 2 orders, 3 mine, 4 pending, 5 fresh, 6 passes, 7 expiry
-- ARGV    1 identity, 2 deployment, 3 epoch, 4 version, 5 total, 6 starts_at_ms, 7 ends_at_ms, 8 per_user_limit,
--         9 passes_per_unit, 10 paused, 11 the terms' version
-- result  OK (also when this epoch is installed already); or EPOCH epoch (a newer one is), AMNESIA (this one is, on another
--         server), FOREIGN deployment, INVALID
-- crash   All of it or nothing. Repeated, it changes nothing. UNLINK frees big keys off the main thread.
local books = redis.call('HMGET', KEYS[1], 'identity', 'epoch', 'version', 'total', 'starts_at_ms', 'ends_at_ms',
  'per_user_limit', 'passes_per_unit', 'paused', 'terms_version', 'deployment')
if #ARGV ~= 11 then return {'INVALID'} end
local sale = {unpack(ARGV, 4, 11)}
if books[2] then
  if books[11] ~= ARGV[2] then return {'FOREIGN', books[11] or 'none'} end
  local epoch, known = tonumber(ARGV[3]), tonumber(books[2])
  if epoch < known then return {'EPOCH', books[2]} end
  if epoch == known then return {books[1] == ARGV[1] and 'OK' or 'AMNESIA'} end
  if tonumber(books[3]) > tonumber(sale[1]) then sale = {unpack(books, 3, 10)} end
end
-- Writes from here on.
redis.call('UNLINK', unpack(KEYS))
redis.call('HSET', KEYS[1], 'identity', ARGV[1], 'deployment', ARGV[2], 'epoch', ARGV[3], 'open', 0, 'version', sale[1],
  'total', sale[2], 'starts_at_ms', sale[3], 'ends_at_ms', sale[4], 'per_user_limit', sale[5], 'passes_per_unit', sale[6],
  'paused', sale[7], 'terms_version', sale[8], 'remaining', sale[2], 'pending', 0, 'confirmed', 0, 'flag_counter', 0, 'gated', 0)
return {'OK'}
