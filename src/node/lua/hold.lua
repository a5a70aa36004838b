-- Acquire, re-enter, extend, repair: "make it so that this session has this many holds". All resources or none.
--
-- KEYS  lock, ballot                         for each resource
-- ARGV  'ql1 NEXT OWNER LABEL SESSION:1'     what the lock key is to be when it is newly acquired
--       lease      ms
--       next       this round's ballot: the token of what is newly acquired
--       memory     ms that the ballot key lives after it was written
--       ticket     NUMBER:CHANNEL, left where somebody else is in the way; '0' leaves none
--       'TOKEN KNOWN HOLDS'                  for each resource; token 0 acquires, any other continues that lease; left out
--                                            when it is one resource, to be newly acquired
--
-- What belongs together comes in one word: a server takes longer to receive an argument than a script to build a value.
--
-- Answer  now, when it was granted; or, with i the refusing resource (from 1) and now in us,
--         {HELD, now, i, pttl ms, value}     somebody else's key, '' for what is not a string
--         {STALE, now, i, floor}             propose more than floor
--         {AHEAD, now, i}                    the proposal is absurdly ahead of this node's clock
--         {GONE, now, i, ballot}             no key, and somebody newer was here, or this lease was released
--         {KEPT, now, i, ms}                 free, but kept for somebody who has waited longer
local HELD, STALE, AHEAD, GONE, KEPT = 2, 3, 4, 5, 6
local WINDOW = 1800000000 -- us that `next` and `known` may lie from this node's clock

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local next, lease, memory, ticket = tonumber(ARGV[3]), ARGV[2], ARGV[4], ARGV[5]
if next > now + WINDOW then return {AHEAD, now, 1} end

-- The usual case in a straight line: it is free, and nobody waits for it.
if #ARGV == 5 and next > now - WINDOW then
  local mark = redis.pcall('GET', KEYS[2])
  if not mark or next > (tonumber(mark) or next) then
    -- pcall: a node that takes no writes still says who has the lock.
    local set = redis.pcall('SET', KEYS[1], ARGV[1], 'NX', 'PX', lease)
    if set and set.ok then
      redis.call('SET', KEYS[2], ARGV[3], 'PX', memory)
      return now
    end
  end
end

local owner, label, session = string.match(ARGV[1], '^ql1 %d+ (%S+) (%S+) (%S+):1$')
local stored = redis.call('MGET', unpack(KEYS))
local created, lock_values, marks = {}, {}, {}

local function refuse(answer)
  if #created > 0 then redis.call('DEL', unpack(created)) end
  return answer
end

-- Refuses because of somebody else, and leaves the ticket for when that is over.
local function busy(mark, answer)
  if mark and ticket ~= '0' then
    mark.enter(ticket)
    mark.write(redis.pcall, memory)
  end
  return refuse(answer)
end

-- MGET shows a key of another type as missing; NX does not. So a missing key is created at once, and what cannot be
-- created is somebody's.
local function create(key, value, ms)
  if redis.call('SET', key, value, 'NX', 'PX', ms) then
    created[#created + 1] = key
    return true
  end
end

for k = 1, #KEYS, 2 do
  local lock, ballot, i = KEYS[k], KEYS[k + 1], (k + 1) / 2
  local value, mark = stored[k], mark_at(KEYS[k + 1], stored[k + 1], now)
  local token, known, holds = string.match(ARGV[i + 5] or '0 0 1', '^(%d+) (%d+) (%d+)$')
  local highest = mark and mark.highest or 0
  local floor = math.max(highest, now - WINDOW)
  local fresh = token == '0'
  local head = 'ql1 ' .. (fresh and ARGV[3] or token) .. ' ' .. owner .. ' '
  local entry = session .. ':' .. holds

  if fresh then
    if value then
      -- Only a leftover of this very session's older lease may be replaced.
      local theirs, sessions = string.match(value, '^ql1 %d+ (%x+) %S+ (.*)$')
      if theirs ~= owner or not string.match(sessions, '^' .. session .. ':%d+$') then
        return busy(mark, {HELD, now, i, redis.call('PTTL', lock), value})
      end
      lock_values[lock] = head .. label .. ' ' .. entry
    elseif mark then
      local kept = mark.kept_from(ticket)
      if kept > 0 then return busy(mark, {KEPT, now, i, kept}) end
    end
    if next <= highest then return refuse({STALE, now, i, highest}) end
    -- Too far behind this clock: one more than the floor would be too old again by the time it comes.
    if next <= floor then return refuse({STALE, now, i, now}) end
  elseif value then
    if string.sub(value, 1, #head) ~= head then
      return refuse({HELD, now, i, redis.call('PTTL', lock), value})
    end
    local renewed, found = string.gsub(value, ' ' .. session .. ':%d+', ' ' .. entry, 1)
    if found == 0 then
      -- A session that joins, or one whose release was overtaken by its own late message.
      if next <= highest then return refuse({STALE, now, i, highest}) end
      renewed = value .. ' ' .. entry
    end
    lock_values[lock] = renewed
  elseif tonumber(known) < floor then
    return refuse({GONE, now, i, floor})
  end

  if not value and not create(lock, head .. label .. ' ' .. entry, lease) then
    return refuse({HELD, now, i, redis.call('PTTL', lock), ''})
  end
  if not stored[k + 1] then
    if not create(ballot, ARGV[3], memory) then return refuse({HELD, now, i, redis.call('PTTL', ballot), ''}) end
  elseif not mark then
    return refuse({HELD, now, i, redis.call('PTTL', ballot), stored[k + 1]})
  else
    mark.raise(next)
    if fresh then mark.leave(ticket) end
    marks[#marks + 1] = mark
  end
end

for lock, value in pairs(lock_values) do
  -- A lease never gets shorter.
  redis.call('SET', lock, value, 'PX', math.max(redis.call('PTTL', lock), lease))
end
for _, mark in ipairs(marks) do mark.write(redis.call, memory) end
return now
