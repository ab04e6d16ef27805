-- The rival's whole ledger: one buyer a call, as the usual recipe has it.
--
-- KEYS    1 units left, 2 users who have bought (a set), 3 orders (a stream: the rival's queue)
-- ARGV    1 user, 2 order id, 3 quantity
-- result  0 taken, 1 the user has bought already, 2 not enough left
if redis.call('SISMEMBER', KEYS[2], ARGV[1]) == 1 then return 1 end
if tonumber(redis.call('GET', KEYS[1])) < tonumber(ARGV[3]) then return 2 end
redis.call('DECRBY', KEYS[1], ARGV[3])
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('XADD', KEYS[3], '*', 'order', ARGV[2], 'user', ARGV[1], 'quantity', ARGV[3])
return 0
