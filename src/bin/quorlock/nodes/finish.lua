-- The new list is valid, and the node is part of this cluster. A quarantine stays as it is.
--
-- KEYS  node record, list
-- ARGV  word      that begin.lua has written
--       changing  what it has made the list
--       nodes     how many nodes the list has
--       cluster   the word of the cluster
--       keeps     1 when the node keeps every write, otherwise 0
--
-- Answer  'done', or 'changed' when the node is not as begin.lua has left it
local pattern = '^(%x+)( %d+ %d+ %d+ %d+ )%S+ %d( %S+)$'
local word, times, run = string.match(redis.call('GET', KEYS[1]) or '', pattern)
if word ~= ARGV[1] or redis.call('GET', KEYS[2]) ~= ARGV[2] then return 'changed' end
redis.call('SET', KEYS[1], word .. times .. ARGV[4] .. ' ' .. ARGV[5] .. run)
redis.call('SET', KEYS[2], ARGV[3])
return 'done'
