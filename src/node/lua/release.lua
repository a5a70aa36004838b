-- Takes this share's holds away, so that no late message of this share is honoured any more.
--
-- KEYS  lock, ballot                         for each resource
-- ARGV  'SENT END VALUE'                     what the ballot key is when this share's last message was honoured here and no
--                                            request waits. SENT is the largest ballot that was sent for it: what is late has
--                                            no larger one, and stays refused. VALUE is what the first lock key is when no
--                                            other share holds it, and this one once: 'ql1 TOKEN OWNER LABEL SHARE:1'
--       'TOKEN KNOWN SHARE TICKET PLACE'     for each resource: token 0 has only waited; place 1 keeps the ticket in the
--                                            queue (END is 0 then), 0 takes it out. Instead, for one resource whose last
--                                            message was honoured by a majority: 'TICKET', or nothing
--       memory                               ms that a ballot is kept
--
-- Answer  1, or {now, c1, c2, ...}: for each resource 1 when this node still honoured the lease (its key was here, or
--         no newer ballot had been honoured), 0 when it no longer did
local keys, argv, call = KEYS, ARGV, redis.call
local stored = call('MGET', keys[1], keys[2])

-- The usual case in a straight line: this share alone holds it, its last message was honoured here, and no request waits.
local ballot_value = argv[1]
if stored[2] == ballot_value and #keys == 2 and stored[1] == string.sub(ballot_value, 32) then
  call('DEL', keys[1])
  call('PSETEX', keys[2], argv[#argv], string.sub(ballot_value, 1, 16))
  return 1
end

if #keys > 2 then stored = call('MGET', unpack(keys)) end
local memory = tonumber(argv[#argv])
local time = call('TIME')
local now = time[1] * 1000000 + time[2]
local sent, first_token, owner, first_share = string.match(ballot_value, '^(%d+) %d+ ql1 (%d+) (%S+) %S+ (%S+):1$')
local plain = string.format('%s %s %s ', first_token, sent, first_share) -- where it is left out
sent = tonumber(sent)
local asked, answer, states, is_free = {}, {now}, {}, {}
for i = 1, #KEYS / 2 do
  asked[i] = #argv > 2 and argv[i + 1] or '0'
  if not string.find(asked[i], ' ', 1, true) then asked[i] = plain .. asked[i] .. ' 0' end
end

-- All keys before all ballots: a node that is out of memory still deletes, and once it has, lets the script finish.
for k = 1, #KEYS, 2 do
  local lock, i = KEYS[k], (k + 1) / 2
  local value, text = stored[k], stored[k + 1]
  local state = resource_state(KEYS[k + 1], text, now)
  local token, known, share = string.match(asked[i], '^(%d+) (%d+) (%S+)')
  local head = 'ql1 ' .. token .. ' ' .. owner .. ' '
  local honoured = 0
  states[i] = state

  if token == '0' then
    honoured = 1
    is_free[i] = call('EXISTS', lock) == 0
  elseif not value then
    is_free[i] = call('EXISTS', lock) == 0
    local floor = state and state.highest > 0 and state.highest or now - memory * 500
    local is_last = state and state.last and string.sub(state.last, 1, #head) == head
    if is_free[i] and (is_last or tonumber(known) >= floor) then honoured = 1 end
  elseif string.sub(value, 1, #head) == head then
    honoured = 1
    local rest = string.gsub(value, ' ' .. share .. ':%d+', '', 1)
    if not string.find(rest, ' ', #head + 1, true) then
      call('DEL', lock)
      is_free[i] = true
    elseif rest ~= value then
      call('SET', lock, rest, 'KEEPTTL')
    end
  end
  -- The last lease honoured here ends when its last share is released, whether or not its key is still here.
  if state and state.last and string.sub(state.last, 1, #head) == head then
    local rest, found = string.gsub(state.last, ' ' .. share .. ':%d+', '', 1)
    if not string.find(rest, ' ', #head + 1, true) then
      state.set_last(nil)
    elseif found > 0 then
      state.set_last(rest, state.last_end)
    end
  end
  answer[i + 1] = honoured
end

for i = 1, #KEYS / 2 do
  local state, token, ticket, place = states[i], string.match(asked[i], '^(%d+) %d+ %S+ (%S+) (%d)$')
  local waited = token == '0' -- No lease, so nothing that could be late.
  if state then
    if not waited then
      -- Where no ballot is remembered, this node takes none up to now - W. To remember one of these would lower that. A ballot
      -- beyond now + W, which this node takes from no one else, would be in the way of all others.
      local floor = state.highest == 0 and now - memory * 500 or 0
      if sent > floor then state.raise_ballot(math.min(sent, now + memory * 500)) end
    end
    if place == '1' then state.enqueue(ticket) else state.dequeue(ticket) end
    if is_free[i] and state.reserved_from('-') == 0 then state.call_next() end
    state.write(waited and redis.pcall or call, memory)
  end
end
return answer
