-- Refuses older fencing tokens in Redis, where the data is. That need not be a node of the lock.
--
--     EVALSHA sha 2 {account:42}:fence {account:42} TOKEN           reads
--     EVALSHA sha 2 {account:42}:fence {account:42} TOKEN VALUE     writes
--
-- Both store the token (guard.token()), or fail with an error that begins with STALE when a larger one is stored. A script runs
-- alone, so nothing comes between the check and the write. Put other commands in place of GET and SET at the end where the
-- data is of another type.
--
-- * A read that a write follows goes through the script, too.
-- * In a Redis Cluster the two keys need one slot, as by the braces above.
-- * Do not let the key of the fence expire, nor be evicted (maxmemory-policy noeviction): without it, any token passes.

-- Up to 2^53 - 1 a number of Lua, which is a double, counts by ones. Tokens are not larger.
local token = string.match(ARGV[1], '^[1-9]%d*$') and tonumber(ARGV[1])
if not token then
  return redis.error_reply('ERR not a fencing token')
end
local largest = tonumber(redis.call('GET', KEYS[1]) or '0')
if token < largest then
  return redis.error_reply('STALE fencing token')
end
redis.call('SET', KEYS[1], ARGV[1])
if ARGV[2] then
  return redis.call('SET', KEYS[2], ARGV[2])
end
return redis.call('GET', KEYS[2])
