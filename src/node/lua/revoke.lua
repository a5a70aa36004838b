-- Revokes a lease: no later message of it is honoured here. The lock stays closed until the lease would have ended, as its holder
-- may rely on it until then. resource_state.lua stands before this file.
--
-- KEYS  lock, ballot
-- ARGV  'TOKEN BALLOT WALL'   the token of the lease; a fresh ballot; the ms of the sender's wall clock. Numbers of 16, 16 and
--                             13 digits
--       record                as in a hold message
--
-- The lease passes to owner 0, which no client is: its key keeps its life, and its end by the holder's clock stays. BALLOT
-- must exceed every ballot that the holder may name as known, or a node that has no key could repair it. So this node's vote
-- counts for the sender only if `highest` is below BALLOT. Where no ballot is remembered, one that was forgotten is at most now − W,
-- and nothing below that may be written: the next acquisition goes by what is remembered.
--
-- Answer  with now in us of this node's clock and highest the highest ballot that may have been honoured before this message
--         {REVOKED, now, highest, ms, value}  the lease was here; the lock is free here after so many ms
--         {ABSENT, now, highest}              nothing of the lease is here, or it is over: no key, and its end has passed by this
--                                             node's clock and the sender's
--         {HELD, now, 1, pttl ms, value}      another lease has the key, or '' another kind of key: nothing was changed
--         {AHEAD, now, 1}                     BALLOT is further ahead of this node's clock than ballots may be
--         {YOUNG, now, ms}                    this node may have forgotten votes. It did as asked, but that is no vote
--         Behind YOUNG stands {ms}, the longest lease of this node's record, where the sender knows of shorter ones only.
--         {FORGOT, now}                       this node's record is another one than the sender's, or none
local HELD, AHEAD, YOUNG, FORGOT, REVOKED, ABSENT = 2, 4, 9, 10, 11, 12
local NO_OWNER = string.rep('0', 32)

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local stored = redis.call('MGET', 'quorlock:node', KEYS[1], KEYS[2])
local record, asked = stored[1], ARGV[2]
local word, longest, till, till_wall, window =
  string.match(record or '', '^(%x+) (%d+) (%d+) (%d+) (%d+) %S+ %d %S+$')
if not word or word ~= string.match(asked, '^%x+') then return {FORGOT, now} end
longest, till, till_wall, window = tonumber(longest), tonumber(till), tonumber(till_wall), tonumber(window)
local token, ballot, wall = string.match(ARGV[1], '^(%d+) (%d+) (%d+)$')
ballot, wall = tonumber(ballot), tonumber(wall)
local value, text = stored[2], stored[3]
local state = resource_state(KEYS[2], text, now)

-- Returns the words of a lease with this token as those of owner 0; nil for any other.
local function revoked(lease)
  local words, found = string.gsub(lease, '^(ql1 ' .. token .. ') %x+ ', '%1 ' .. NO_OWNER .. ' ')
  return found == 1 and words or nil
end

local pttl = redis.call('PTTL', KEYS[1])
local new = value and revoked(value)
local is_other = pttl ~= -2 and not new or not state or not text and redis.call('EXISTS', KEYS[2]) == 1
if is_other then
  local theirs = value and string.find(value, '^ql1 %d+ %x+ %S+ %S') and string.sub(value, 1, 4096) or ''
  return {HELD, now, 1, pttl, theirs}
end
local last = state.last and revoked(state.last)
if ballot > now + window * 1000 and not (last and ballot <= state.highest + window * 1000) then
  return {AHEAD, now, 1}
end

-- None of quorlock's own keys outlives the longest lease.
if new then
  if pttl == -1 or pttl > longest then pttl = longest end
  redis.call('SET', KEYS[1], new, 'PX', math.max(pttl, 1))
end
local floor = state.highest == 0 and now - window * 1000 or 0
local highest = math.max(state.highest, floor)
if last then
  state.set_last(last, state.last_end)
  pttl = math.max(pttl, math.min(state.last_end - math.min(wall, math.floor(now / 1000)), longest))
end
if ballot > floor then state.raise_ballot(ballot) end
state.write(redis.call, 2 * window, longest)
if till > 0 and asked ~= record then
  local asked_longest = tonumber(string.match(asked, '^%x+ (%d+)') or longest)
  local longer = math.max(asked_longest - longest, 0)
  local waited = asked_longest >= longest and string.sub(asked, -7) == ' waited'
  local by_wall = waited and 0 or math.min(till_wall - wall, longest) + longer
  local young = math.max(till + longer - math.floor(now / 1000), by_wall)
  if young > 0 then
    local answer = {YOUNG, now, young}
    if longest > asked_longest then answer[4] = {longest} end
    return answer
  end
end
if new or last and pttl > 0 then return {REVOKED, now, highest, math.max(pttl, 0), new or last} end
return {ABSENT, now, highest}
