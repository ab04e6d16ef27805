#!lua
-- Takes a sale over from another deployment: all that it held is gone, and what stays is a memory that is lost, to be rebuilt
-- from the rows and logs of this one. Never before an operator asked for it.
--
-- KEYS    1 books, 2 orders, 3 mine, 4 pending, 5 fresh, 6 passes, 7 expiry
-- ARGV    1 identity (of no use here), 2 deployment
-- result  OK, then 1 and the epoch that it had, or 0: it is this deployment's, and stays as it is; or UNKNOWN
-- crash   All of it or nothing. Repeated, it changes nothing. UNLINK frees big keys off the main thread.
local books = redis.call('HMGET', KEYS[1], 'epoch', 'deployment')
if not books[1] then return {'UNKNOWN'} end
if books[2] == ARGV[2] then return {'OK', 0} end
-- Writes from here on. No server has this identity and no install epoch 0: every step says AMNESIA, and any install replaces it.
redis.call('UNLINK', unpack(KEYS))
redis.call('HSET', KEYS[1], 'identity', '', 'deployment', ARGV[2], 'epoch', 0, 'open', 0, 'version', 0, 'total', 0,
  'starts_at_ms', 0, 'ends_at_ms', 0, 'per_user_limit', 0, 'passes_per_unit', 0, 'paused', 0, 'terms_version', 0,
  'remaining', 0, 'pending', 0, 'confirmed', 0, 'flag_counter', 0, 'gated', 0)
return {'OK', 1, books[1]}
