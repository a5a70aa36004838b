-- Take this session's holds away, and see to it that nothing of this lease can be honoured any more.
--
-- KEYS  lock, ballot                         for each resource
-- ARGV  'ql1 TOKEN OWNER LABEL SESSION:1'    what the first lock key is when nobody else holds it, and this session once
--       next                                 the largest ballot that was sent for it: what is late has no larger one, and
--                                            stays refused
--       memory                               ms that the ballot key lives after it was written
--       'TOKEN KNOWN TICKET PLACE'           for each resource: token 0 has only waited; place 1 keeps the ticket in the
--                                            line, 0 takes it out
--
-- Answer  1, or {now, c1, c2, ...}: for each resource 1 when this node still honoured the lease (its key was here, or
--         nobody newer had been), 0 when it no longer did
local WINDOW = 1800000000 -- us that `known` may lie behind this node's clock

local stored = redis.call('MGET', unpack(KEYS))

-- The usual case in a straight line: this session alone holds it, its last message was heard here, and nobody waits for it.
if stored[1] == ARGV[1] and stored[2] == ARGV[2] and #KEYS == 2 and string.byte(ARGV[4], -1) == 48 then -- '0'
  redis.call('DEL', KEYS[1])
  return 1
end

local next, memory = tonumber(ARGV[2]), ARGV[3]

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local owner, session = string.match(ARGV[1], '^ql1 %d+ (%S+) %S+ (%S+):1$')
local answer, marks, is_free = {now}, {}, {}

-- All keys before all ballots: a node that is out of memory still deletes, and once it has, lets the script finish.
for k = 1, #KEYS, 2 do
  local lock, i = KEYS[k], (k + 1) / 2
  local value, mark = stored[k], mark_at(KEYS[k + 1], stored[k + 1], now)
  local token, known = string.match(ARGV[i + 3], '^(%d+) (%d+)')
  local head = 'ql1 ' .. token .. ' ' .. owner .. ' '
  local honoured = 0
  marks[i] = mark

  if token == '0' then
    honoured = 1
    is_free[i] = redis.call('EXISTS', lock) == 0
  elseif not value then
    is_free[i] = redis.call('EXISTS', lock) == 0
    if tonumber(known) >= math.max(mark and mark.highest or 0, now - WINDOW) and is_free[i] then honoured = 1 end
  elseif string.sub(value, 1, #head) == head then
    honoured = 1
    local rest = string.gsub(value, ' ' .. session .. ':%d+', '', 1)
    if not string.find(rest, ' ', #head + 1, true) then
      redis.call('DEL', lock)
      is_free[i] = true
    elseif rest ~= value then
      redis.call('SET', lock, rest, 'PX', math.max(redis.call('PTTL', lock), 1))
    end
  end
  answer[i + 1] = honoured
end

for i = 1, #KEYS / 2 do
  local mark, token, ticket, place = marks[i], string.match(ARGV[i + 3], '^(%d+) %d+ (%S+) (%d)$')
  local waited = token == '0' -- No lease, so nothing that could be late.
  if mark then
    if not waited then mark.raise(next) end
    if place == '1' then mark.enter(ticket) else mark.leave(ticket) end
    if is_free[i] and mark.kept_from('-') == 0 then mark.call() end
    mark.write(waited and redis.pcall or redis.call, memory)
  end
end
return answer
