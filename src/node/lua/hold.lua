-- Acquire, re-enter, extend, repair: "make it so that this session has this many holds". All resources or none.
--
-- KEYS  lock, ballot, line                    for each resource
-- ARGV  next       this round's ballot: the token of what is newly acquired
--       lease      ms
--       memory     ms that the ballot key outlives its last use
--       'OWNER LABEL SESSION'
--       ticket     NUMBER:CHANNEL, left where somebody else is in the way; '0' leaves none
--       'TOKEN KNOWN HOLDS'                   for each resource; token 0 acquires, any other continues that lease
--
-- What belongs together comes in one word: a server takes longer to receive an argument than a script to build a value.
--
-- Answer  {GRANTED, now} or, with i the refusing resource (from 1) and now in us,
--         {HELD, now, i, pttl ms, value}      somebody else's key, '' for what is not a string
--         {STALE, now, i, floor}              propose more than floor
--         {AHEAD, now, i}                     the proposal is absurdly ahead of this node's clock
--         {GONE, now, i, ballot}              no key, and somebody newer was here, or this lease was released
--         {KEPT, now, i, ms}                  free, but kept for somebody who has waited longer
local GRANTED, HELD, STALE, AHEAD, GONE, KEPT = 1, 2, 3, 4, 5, 6
local WINDOW = 1800000000 -- us that `next` and `known` may lie from this node's clock

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local next = tonumber(ARGV[1])
if next > now + WINDOW then return {AHEAD, now, 1} end

local stored = redis.call('MGET', unpack(KEYS))

-- One free resource that nobody waits for, newly acquired: the usual case, in a straight line.
if #KEYS == 3 and ARGV[6] == '0 0 1' and not stored[1] and not stored[3] then
  local mark = stored[2]
  local highest = tonumber(mark or 0)
  if highest and next > highest and next > now - WINDOW then
    if redis.call('SET', KEYS[1], 'ql1 ' .. ARGV[1] .. ' ' .. ARGV[4] .. ':1', 'NX', 'PX', ARGV[2]) then
      if mark then
        redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[3])
        return {GRANTED, now}
      end
      if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[3]) then return {GRANTED, now} end
      redis.call('DEL', KEYS[1]) -- The ballot key is of another type: see below.
    end
  end
end

local lease, memory, ticket = tonumber(ARGV[2]), ARGV[3], ARGV[5]
local owner, label, session = string.match(ARGV[4], '^(%S+) (%S+) (%S+)$')
local created, lock_values, ballots, lines = {}, {}, {}, {}

local function refuse(answer)
  if #created > 0 then redis.call('DEL', unpack(created)) end
  return answer
end

-- Refuses because of somebody else, and leaves the ticket for when that is over.
local function busy(k, answer)
  local line = ticket ~= '0' and line_at(KEYS[k + 2], stored[k + 2], now)
  if line then
    line.enter(ticket)
    line.write()
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

for k = 1, #KEYS, 3 do
  local lock, ballot, i = KEYS[k], KEYS[k + 1], (k + 2) / 3
  local value, mark = stored[k], stored[k + 1]
  local token, known, holds = string.match(ARGV[i + 5], '^(%d+) (%d+) (%d+)$')
  local highest = mark and tonumber(mark) or 0
  local floor = math.max(highest, now - WINDOW)
  local fresh = token == '0'
  local head = 'ql1 ' .. (fresh and ARGV[1] or token) .. ' ' .. owner .. ' '
  local entry = session .. ':' .. holds

  if fresh then
    if value then
      -- Only a leftover of this very session's older lease may be replaced.
      local theirs, sessions = string.match(value, '^ql1 %d+ (%x+) %S+ (.*)$')
      if theirs ~= owner or not string.match(sessions, '^' .. session .. ':%d+$') then
        return busy(k, {HELD, now, i, redis.call('PTTL', lock), value})
      end
      lock_values[lock] = head .. label .. ' ' .. entry
    end
    local line = stored[k + 2] and line_at(KEYS[k + 2], stored[k + 2], now)
    if line then
      local kept = line.kept_from(ticket)
      if kept > 0 and not value then return busy(k, {KEPT, now, i, kept}) end
      line.leave(ticket)
      lines[#lines + 1] = line
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
  if not mark then
    if not create(ballot, ARGV[1], memory) then return refuse({HELD, now, i, redis.call('PTTL', ballot), ''}) end
  elseif not tonumber(mark) then
    return refuse({HELD, now, i, redis.call('PTTL', ballot), mark})
  else
    ballots[ballot] = next > highest and ARGV[1] or mark
  end
end

for lock, value in pairs(lock_values) do
  -- A lease never gets shorter.
  redis.call('SET', lock, value, 'PX', math.max(redis.call('PTTL', lock), lease))
end
for ballot, number in pairs(ballots) do redis.call('SET', ballot, number, 'PX', memory) end
for _, line in ipairs(lines) do line.write() end
return {GRANTED, now}
