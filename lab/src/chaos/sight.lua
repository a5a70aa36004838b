-- Reads the locks of a node at one moment. Changes nothing.
--
-- ARGV    pattern of the lock keys, pattern of their ballot keys, bytes before the lock key in a ballot key
-- Answer  {node record or '', {lock key, type, value or '', ballot or ''}, ...}: what is held, or was not released
local names, found = {}, {redis.call('GET', 'quorlock:node') or ''}
for _, key in ipairs(redis.call('KEYS', ARGV[1])) do names[key] = true end
for _, key in ipairs(redis.call('KEYS', ARGV[2])) do names[string.sub(key, ARGV[3] + 1)] = true end
for key in pairs(names) do
  local stored = redis.call('MGET', key, 'quorlock:ballot:' .. key)
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'none' or string.find(stored[2] or '', ' ql1 ', 1, true) then
    found[#found + 1] = {key, kind, stored[1] or '', stored[2] or ''}
  end
end
return found
