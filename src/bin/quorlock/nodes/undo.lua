-- Puts back the list that begin.lua replaced.
--
-- KEYS  node record, list
-- ARGV  word      that begin.lua has written
--       changing  what it has made the list
--       listed    the number that the list was; '' for none
--
-- Answer  'done', or 'changed' when the node is not as begin.lua has left it
local word = string.match(redis.call('GET', KEYS[1]) or '', '^%x+')
if word ~= ARGV[1] or redis.call('GET', KEYS[2]) ~= ARGV[2] then return 'changed' end
if ARGV[3] == '' then redis.call('DEL', KEYS[2]) else redis.call('SET', KEYS[2], ARGV[3]) end
return 'done'
