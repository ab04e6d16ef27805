#!lua flags=allow-oom
-- Whether this login may do all that the steps and the audit do, on keys that are named like theirs: Redis checks commands and keys
-- one by one, so that a login may load every step and fail in the middle of one.
--
-- KEYS    the seven of a sale that cannot exist; or 1 leases
-- ARGV    none
-- result  OK; or LACKS, then each command that was refused
-- crash   All of it or nothing; and what it writes it takes away again.
local refused, named = {'LACKS'}, {}
local function try(command, ...)
  local answer = redis.pcall(command, ...)
  if type(answer) == 'table' and answer.err and not named[command] then
    named[command] = true
    refused[#refused + 1] = command
  end
end
local function hash(key)
  try('HSET', key, 'trial', 1)
  try('HGET', key, 'trial')
  try('HMGET', key, 'trial')
  try('HEXISTS', key, 'trial')
  try('HLEN', key)
  try('HSCAN', key, 0)
  try('HDEL', key, 'trial')
end
local function set(key)
  try('ZADD', key, 0, 'trial')
  try('ZCOUNT', key, 0, 0)
  try('ZRANGEBYSCORE', key, 0, 0)
  try('ZRANGEBYLEX', key, '[trial', '[trial')
  try('ZSCAN', key, 0, 'COUNT', 1)
  try('ZREMRANGEBYSCORE', key, '-inf', '-inf')
  try('ZREM', key, 'trial')
end
try('TIME')
if #KEYS == 1 then
  set(KEYS[1])
else
  for _, place in ipairs({1, 2, 3, 6}) do hash(KEYS[place]) end
  for _, place in ipairs({4, 7}) do set(KEYS[place]) end
  try('RPUSH', KEYS[5], 'trial')
  try('LLEN', KEYS[5])
  try('LRANGE', KEYS[5], 0, 0)
  try('LTRIM', KEYS[5], 1, 0)
  try('EXISTS', KEYS[1])
  try('UNLINK', unpack(KEYS))
end
if #refused == 1 then return {'OK'} end
return refused
