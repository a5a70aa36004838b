-- Reads the keys of a resource. Changes nothing.
--
-- KEYS  lock, ballot
-- Answer  {now us, type of the lock key, value or '', pttl ms, ballot or ''}: of longer values the beginning, with 4096 bytes of
--         a lock's value. In the ballot that stands behind 31 bytes.
local time = redis.call('TIME')
local stored = redis.call('MGET', KEYS[1], KEYS[2])
return {
  time[1] * 1000000 + time[2],
  redis.call('TYPE', KEYS[1]).ok,
  string.sub(stored[1] or '', 1, 4096),
  redis.call('PTTL', KEYS[1]),
  string.sub(stored[2] or '', 1, 4127),
}
