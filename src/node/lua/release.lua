-- Take this session's holds away, and see to it that nothing of this lease can be honoured any more.
--
-- KEYS  lock, ballot, line    for each resource
-- ARGV  next                  this round's ballot: what is late and older than the release stays refused
--       memory                ms that the ballot key outlives its last use
--       'OWNER LABEL SESSION'
--       token, 'KNOWN TICKET PLACE'     for each resource: token 0 has only waited; place 1 keeps the ticket in the
--                             line, 0 takes it out
--
-- Answer  {now, c1, c2, ...}  for each resource 1 when this node still honoured the lease (its key was here, or nobody
--                             newer had been), 0 when it no longer did
local WINDOW = 1800000000 -- us that `known` may lie behind this node's clock

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local next, memory = tonumber(ARGV[1]), ARGV[2]
local stored = redis.call('MGET', unpack(KEYS))

-- One resource that this session alone holds and nobody waits for: the usual case, in a straight line.
if #KEYS == 3 and not stored[3] and string.sub(ARGV[5], -1) == '0'
  and stored[1] == 'ql1 ' .. ARGV[4] .. ' ' .. ARGV[3] .. ':1' then
  local mark = stored[2]
  local highest = tonumber(mark or 0)
  if highest then
    redis.call('DEL', KEYS[1])
    if not mark then
      redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', memory) -- NX: a user's key of another type is left alone.
    elseif next > highest then
      redis.call('SET', KEYS[2], ARGV[1], 'PX', memory)
    end
    return {now, 1}
  end
end

local owner, session = string.match(ARGV[3], '^(%S+) %S+ (%S+)$')
local answer, is_free = {now}, {}

-- All keys before all ballots: a node that is out of memory still deletes, and once it has, lets the script finish.
for k = 1, #KEYS, 3 do
  local lock, i = KEYS[k], (k + 2) / 3
  local value, mark = stored[k], stored[k + 1]
  local token, known = ARGV[2 * i + 2], tonumber(string.match(ARGV[2 * i + 3], '^%d+'))
  local head = 'ql1 ' .. token .. ' ' .. owner .. ' '
  local honoured = 0

  if token == '0' then
    honoured = 1
    is_free[i] = redis.call('EXISTS', lock) == 0
  elseif not value then
    local floor = math.max(mark and tonumber(mark) or 0, now - WINDOW)
    is_free[i] = redis.call('EXISTS', lock) == 0
    if known >= floor and is_free[i] then honoured = 1 end
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

for k = 2, #KEYS, 3 do
  local ballot, mark, waited = KEYS[k], stored[k], ARGV[2 * (k + 1) / 3 + 2] == '0'
  if waited then
    -- No lease, so nothing that could be late.
  elseif not mark then
    redis.call('SET', ballot, ARGV[1], 'NX', 'PX', memory) -- NX: a user's key of another type is left alone.
  elseif tonumber(mark) and next > tonumber(mark) then
    redis.call('SET', ballot, ARGV[1], 'PX', memory)
  end
end

for k = 3, #KEYS, 3 do
  local i = k / 3
  local ticket, place = string.match(ARGV[2 * i + 3], '^%d+ (%S+) (%d)$')
  local keeps_place = place == '1'
  local line = (stored[k] or keeps_place) and line_at(KEYS[k], stored[k], now)
  if line then
    if keeps_place then line.enter(ticket) else line.leave(ticket) end
    if is_free[i] and line.kept_from('-') == 0 then line.call() end
    line.write()
  end
end
return answer
