-- The list of a prefix is to be changed: from now on no client gets a lock under the prefix on this node.
--
-- The new word makes every connected client repeat the handshake. The list that it meets then is none that a client can have.
--
-- KEYS  node record, list
-- ARGV  record   as the administrator has seen it
--       listed   the number in the list, as the administrator has seen it; '' for none
--       word     the new word of the record
--       changing what the list key is to be
--       latest   us of this node's clock after which nothing is changed
--
-- Answer  'done', 'changed' when another client has written record or list, or 'late'
local time = redis.call('TIME')
if time[1] * 1000000 + time[2] > tonumber(ARGV[5]) then return 'late' end
if redis.call('GET', KEYS[1]) ~= ARGV[1] or (redis.call('GET', KEYS[2]) or '') ~= ARGV[2] then return 'changed' end
redis.call('SET', KEYS[1], ARGV[3] .. string.match(ARGV[1], ' .*$'))
redis.call('SET', KEYS[2], ARGV[4])
return 'done'
