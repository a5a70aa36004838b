-- Writes what is due in the node's record, once for all clients.
--
-- KEYS  node record, list of this client's prefix
-- ARGV  the record that the client has seen, '' for none that it could read
--       'WORD LONGEST'   of the new record
--       wait             ms from now until the quarantine ends by this node's clock, when it begins now; '' otherwise
--       'END WALL'       its ends, when it does not begin now
--       wall             its end by the client's wall clock, in ms, when it begins now
--       rest             'WINDOW CLUSTER KEEPS RUN-ID'
--       nodes            how many nodes the list has, to be written where nothing is; '' writes nothing
--
-- Answer  {record, nodes}: as they are now. A record that has changed since the client has seen it stays as it is.
local seen = redis.call('MGET', KEYS[1], KEYS[2])
local longest = string.match(seen[1] or '', '^%x+ (%d+) %d+ %d+ %d+ %S+ %d %S+$')
-- No lease is longer than seven days, and no client reads a record that says so.
if (seen[1] or '') == ARGV[1] or ARGV[1] == '' and not (longest and tonumber(longest) <= 604800000) then
  local ends = ARGV[4]
  if ARGV[3] ~= '' then
    local time = redis.call('TIME')
    local till = time[1] * 1000 + math.ceil(time[2] / 1000) + ARGV[3]
    -- Not before this node's clock says so: the client's may be behind.
    ends = string.format('%.0f %.0f', till, math.max(till, ARGV[5]))
  end
  seen[1] = ARGV[2] .. ' ' .. ends .. ' ' .. ARGV[6]
  redis.call('SET', KEYS[1], seen[1])
end
if ARGV[7] ~= '' and not seen[2] then
  redis.call('SET', KEYS[2], ARGV[7])
  seen[2] = ARGV[7]
end
return {seen[1], seen[2] or ''}
