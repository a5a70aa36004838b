-- Take this session's holds away, and see to it that nothing of this lease can be honoured any more.
--
-- KEYS  lock, ballot          for each resource
-- ARGV  next                  this round's ballot: what is late and older than the release stays refused
--       memory                ms that the ballot key outlives its last use
--       window                us that `known` may lie behind this node's clock
--       owner session
--       token, known          for each resource
--
-- Answer  {now, c1, c2, ...}  for each resource 1 when this node still honoured the lease (its key was here, or nobody
--                             newer had been), 0 when it no longer did
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local next, memory, window = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local owner, session = ARGV[4], ARGV[5]
local stored = redis.call('MGET', unpack(KEYS))
local answer = {now}

-- All keys before all ballots: a node that is out of memory still deletes, and once it has, lets the script finish.
for k = 1, #KEYS, 2 do
  local lock, i = KEYS[k], (k + 1) / 2
  local value, mark = stored[k], stored[k + 1]
  local token, known = ARGV[2 * i + 4], tonumber(ARGV[2 * i + 5])
  local head = 'ql1 ' .. token .. ' ' .. owner .. ' '
  local honoured = 0

  if not value then
    local floor = math.max(mark and tonumber(mark) or 0, now - window)
    if known >= floor and redis.call('EXISTS', lock) == 0 then honoured = 1 end
  elseif string.sub(value, 1, #head) == head then
    honoured = 1
    local rest = string.gsub(value, ' ' .. session .. ':%d+', '', 1)
    if not string.find(rest, ' ', #head + 1, true) then
      redis.call('DEL', lock)
    elseif rest ~= value then
      redis.call('SET', lock, rest, 'PX', math.max(redis.call('PTTL', lock), 1))
    end
  end
  answer[i + 1] = honoured
end

for k = 2, #KEYS, 2 do
  local ballot, mark = KEYS[k], stored[k]
  if not mark then
    redis.call('SET', ballot, ARGV[1], 'NX', 'PX', memory) -- NX: a user's key of another type is left alone.
  elseif tonumber(mark) and next > tonumber(mark) then
    redis.call('SET', ballot, ARGV[1], 'PX', memory)
  end
end
return answer
