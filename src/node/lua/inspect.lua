-- Reads the keys of a resource. Changes nothing.
--
-- KEYS  lock, ballot
-- Answer  {now us, type of the lock key, value or '', pttl ms, ballot or ''}
local time = redis.call('TIME')
local stored = redis.call('MGET', KEYS[1], KEYS[2])
return {
  time[1] * 1000000 + time[2],
  redis.call('TYPE', KEYS[1]).ok,
  stored[1] or '',
  redis.call('PTTL', KEYS[1]),
  stored[2] or '',
}
