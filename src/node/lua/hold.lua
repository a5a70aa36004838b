-- Acquire, re-enter, extend, repair: "make it so that this share has this many holds". All resources or none.
--
-- KEYS  lock, ballot                         for each resource; the node record is always quorlock:node
-- ARGV  'NEXT END VALUE'                     what the ballot key of the first resource is to be when no other share holds it. NEXT
--                                            is this round's ballot, the token of what is newly acquired. END is the ms of the
--                                            sender's wall clock at which the lease is over: what the clock shows, the lease,
--                                            and 1. They have 16 and 13 digits. VALUE is what the lock key is to be then:
--                                            'ql1 TOKEN OWNER LABEL SHARE:HOLDS'
--       lease      ms
--       'TICKET END:TOKEN ...'               the ticket to leave where another lease is in the way, '0' for none; behind it the
--                                            ends that the sender has waited for by its own clock, or TIME:WORD, see EARLY;
--                                            last, +MS when END is later than above by that much, as it grows from message to
--                                            message. Left out when all of this is missing, and so are the words below
--       'TOKEN KNOWN HOLDS SHARE'            for each resource; token 0 acquires, any other continues that lease; left out
--                                            for one resource that is to be newly acquired. While no majority has honoured a
--                                            join, KNOWN is the share that was exported to it
--       record     the record of this node as the sender knows it, with the node's quarantine known to be over; otherwise
--                  'WORD LONGEST', and ' waited' behind it when the sender has waited for the end of the quarantine
--
-- What belongs together comes in one argument: a server takes longer to receive an argument than a script to take it apart.
--
-- Answer  1, when it was granted; or
--         {GRANTED, record}                  granted, and the record that the sender did not know
--         or, with now in us of this node's clock and i the refusing resource (from 1),
--         {HELD, now, i, pttl ms, value}     another owner's key; '' for one that is not quorlock's
--         {STALE, now, i, floor}             propose more than floor
--         {AHEAD, now, i}                    the proposal is further ahead of this node's clock than ballots may be
--         {GONE, now, i, ballot}             no key, and a newer ballot was honoured here, or this lease was released; or a join
--                                            whose exported share is not here. ballot is the newest here, 0 for none
--         {KEPT, now, i, ms}                 free, but reserved for a ticket that has waited longer
--         {EARLY, now, i, ms, end, value}    no key, but the last lease was not released, and by the sender's clock it may be
--                                            in force for so long. For a lease that this node may have forgotten, end is this
--                                            node's time in ms, and value its word
--         {FAR, now, i, ballot}              the ballot here is further ahead of this node's clock than ballots may be
--         {YOUNG, now, ms}                   this node may have forgotten leases that are in force for so long: it grants
--                                            nothing new. It may have honoured the message, but that is no vote
--         {FORGOT, now}                      this node's record is another one than the sender's
--         A refusal ends with {ms}, the longest lease of this node's record, where the sender knows of shorter ones only.
local GRANTED, HELD, STALE, AHEAD, GONE, KEPT, EARLY, FAR, YOUNG, FORGOT = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
local DAY = 86400000 -- ms: as in resource_state.lua

local argv, call, time, now = ARGV, redis.call, nil, nil

-- The usual cases in a straight line. The first is an acquisition: nothing stands in the way, and no request waits.
if #argv < 5 then
  local keys, ballot_value = KEYS, argv[1]
  local stored = call('MGET', 'quorlock:node', keys[2])
  if stored[1] == argv[#argv] then
    local next, highest = tonumber(string.sub(ballot_value, 1, 16)), tonumber(stored[2])
    if not stored[2] then
      -- No ballot is remembered here, so this node's clock must agree with the proposal and with the sender's.
      time = call('TIME')
      now = time[1] * 1000000 + time[2]
      local window = string.match(stored[1], '^%x+ %d+ %d+ %d+ (%d+)') * 1000
      local wall = string.sub(ballot_value, 18, 30) - argv[2] - 1
      if next > now - window and next <= now + window and math.abs(now / 1000 - wall) <= DAY then highest = 0 end
    end
    if highest and next > highest then
      -- pcall: a node that takes no writes still says who has the lock.
      local set = redis.pcall('SET', keys[1], string.sub(ballot_value, 32), 'NX', 'PX', argv[2])
      if set and set.ok then
        if stored[2] then
          call('PSETEX', keys[2], '172800000', ballot_value) -- 2 * DAY
          return 1
        end
        -- NX: MGET shows a user's key of another type as missing.
        if call('SET', keys[2], ballot_value, 'NX', 'PX', '172800000') then return 1 end
        call('DEL', keys[1])
      end
    end
  end
elseif #argv == 5 and argv[3] == '0' and #KEYS == 2 then
  -- The second is an extension: this share alone holds the lock, as often as before, and its last message was honoured here.
  local keys, ballot_value = KEYS, argv[1]
  local stored = call('MGET', 'quorlock:node', keys[2], keys[1])
  local value = stored[3]
  if stored[1] == argv[5] and value and value == string.sub(ballot_value, 32) then
    local highest, last_end, at = string.match(stored[2] or '', '^(%d+) (%d+) ()')
    if at == 32 and string.sub(stored[2], 32) == value and string.sub(ballot_value, 1, 16) + 0 > highest + 0
      and string.sub(ballot_value, 18, 30) + 0 > last_end + 0 then
      -- First what a node refuses that is out of memory.
      call('PSETEX', keys[2], '172800000', ballot_value) -- 2 * DAY
      -- A lease never gets shorter, also when the sender's clock has stepped ahead.
      if call('PTTL', keys[1]) < argv[2] + 0 then call('PEXPIRE', keys[1], argv[2]) end
      return 1
    end
  end
end

if not now then
  time = call('TIME')
  now = time[1] * 1000000 + time[2]
end
local stored = call('MGET', 'quorlock:node', unpack(KEYS))
local record, asked = stored[1], argv[#argv]
local word, longest, till, till_wall, window, rest =
  string.match(record or '', '^(%x+) (%d+) (%d+) (%d+) (%d+)( %S+ %d %S+)$')
local asked_word, asked_longest = string.match(asked, '^(%x+) (%d+)')
if not word or word ~= asked_word then return {FORGOT, now} end

local next_text, new_end, owner, label, first_share = string.match(argv[1], '^(%d+) (%d+) ql1 %d+ (%S+) (%S+) (%S+):%d+$')
local next, lease, waits = tonumber(next_text), tonumber(argv[2]), #argv > 3 and argv[3] or '0'
new_end = tonumber(new_end)
local wall = new_end - lease - 1 - (string.match(waits, ' %+(%d+)$') or 0) -- ms: the sender's wall clock
local memory = 2 * window -- ms that a ballot is kept
window = window * 1000 -- us that `next` and `known` may lie from this node's clock
local client = string.match(first_share, '^[^/]+')
local ticket = string.match(waits, '^%S+')

-- The quarantine. A longer lease than any before makes it longer, and a clock that was set back does not. The wait of a sender
-- that knows of shorter leases only says nothing.
longest, till, till_wall, asked_longest = tonumber(longest), tonumber(till), tonumber(till_wall), tonumber(asked_longest)
local longer, left, told = math.max(asked_longest - longest, 0), 0, longest > asked_longest and longest
local waited = not told and string.sub(asked, -7) == ' waited'
longest = longest + longer
if till > 0 and asked ~= record then
  till, till_wall = math.min(till + longer, math.floor(now / 1000) + longest), till_wall + longer
  local by_wall = waited and 0 or math.min(till_wall - wall, longest)
  left = math.max(till - math.floor(now / 1000), by_wall, 0)
end
local function renewed(used)
  return string.format('%s %.0f %.0f %.0f %.0f%s', word, used, till, till_wall, memory / 2, rest)
end

local created, lock_values, states = {}, {}, {}

-- Adds what the sender does not know.
local function tell(answer)
  if told then answer[#answer + 1] = {told} end
  return answer
end

local function refuse(answer)
  if #created > 0 then call('DEL', unpack(created)) end
  return tell(answer)
end

-- Refuses because of another owner, and enqueues the ticket.
local function busy(state, answer)
  if state and ticket ~= '0' then
    state.enqueue(ticket)
    state.write(redis.pcall, memory, longest)
  end
  return refuse(answer)
end

-- Has the sender waited for a lease that this node may have forgotten? That counts for this record only, and while this node's
-- clock has not leapt.
local function has_waited_here()
  for since, named in string.gmatch(waits, ' (%d+):(%x+)') do
    if named == word and math.abs(now / 1000 - since) <= longest + 120000 then return true end
  end
end

-- None of quorlock's own keys outlives the longest lease. A clock that leapt and came back leaves keys that would.
local function held(lock, value, i)
  local pttl = call('PTTL', lock)
  if not string.find(value, '^ql1 %d+ %x+ %S+ %S') then return {HELD, now, i, pttl, ''} end
  if pttl > longest or pttl == -1 then
    redis.pcall('PEXPIRE', lock, longest)
    pttl = longest
  end
  return {HELD, now, i, pttl, string.sub(value, 1, 4096)}
end

-- MGET shows a key of another type as missing; NX does not. So a missing key is created at once. If that fails, the key is
-- another's.
local function create(key, value, ms)
  if call('SET', key, value, 'NX', 'PX', ms) then
    created[#created + 1] = key
    return true
  end
end

for k = 1, #KEYS, 2 do
  local lock, ballot, i = KEYS[k], KEYS[k + 1], (k + 1) / 2
  local value, text = stored[k + 1], stored[k + 2]
  local state = resource_state(ballot, text, now)
  local token, known, holds, share = '0', '0', '1', first_share
  if #argv > 4 then token, known, holds, share = string.match(argv[i + 3], '^(%d+) (%S+) (%d+) (%S+)$') end
  local highest = state and state.highest or 0
  local floor = highest > 0 and highest or now - window
  local joins = string.find(known, '/', 1, true)
  local fresh = token == '0'
  local head = 'ql1 ' .. (fresh and next_text or token) .. ' ' .. owner .. ' '
  local entry = ' ' .. share .. ':' .. holds
  -- The same message once more, on another connection: it was granted here, and no other has come since.
  if fresh and left == 0 and next == highest and value == head .. label .. entry then fresh = false end
  local last_head, last_shares
  if state and state.last then last_head, last_shares = state.last_parts() end
  local new

  -- A ballot that is remembered, of a lease that goes on, says more than a clock that was set back.
  if next > now + window and (last_head ~= head or next > highest + window) then return refuse({AHEAD, now, i}) end
  if fresh then
    if left > 0 then
      if renewed(longest) ~= record then redis.pcall('SET', 'quorlock:node', renewed(longest)) end
      return refuse({YOUNG, now, left})
    end
    if value then
      -- Only what this very client has left of an older lease of the owner may be replaced.
      local theirs, shares = string.match(value, '^ql1 %d+ (%x+) %S+( .*)$')
      if theirs ~= owner or string.gsub(shares, ' ' .. client .. '/%x+:%d+', '') ~= '' then
        return busy(state, held(lock, value, i))
      end
    elseif state then
      local ms = state.reserved_from(ticket)
      if ms > 0 then return busy(state, {KEPT, now, i, ms}) end
      if last_head and wall < state.last_end then
        local named = string.format(' %013.0f:%s ', state.last_end, string.match(last_head, '%d+', 4))
        if not string.find(waits .. ' ', named, 1, true) then
          state.limit(math.max(longest, DAY) + DAY)
          local ms = math.min(state.last_end - wall, longest)
          return busy(state, {EARLY, now, i, ms, state.last_end, string.sub(state.last, 1, 4096)})
        end
      end
    end
    if highest == 0 and math.abs(now / 1000 - wall) > DAY and not has_waited_here() then
      -- Either clock is wrong. If it is this node's, and it leapt, then it may have forgotten a lease with it.
      return refuse({EARLY, now, i, longest, math.floor(now / 1000), word})
    end
    if next <= highest then
      if highest <= now + window then return refuse({STALE, now, i, highest}) end
      state.limit(memory) -- The last lease, if it was not released, is over by both clocks.
      return refuse({FAR, now, i, highest})
    end
    -- Too far behind this clock. One more than the least that would do now would be too old by the time it comes.
    if highest == 0 and next <= now - window then return refuse({STALE, now, i, now}) end
    new = head .. label .. entry
  elseif value then
    if string.sub(value, 1, #head) ~= head then return refuse(held(lock, value, i)) end
    local found
    new, found = string.gsub(value, ' ' .. share .. ':%d+', entry, 1)
    if found == 0 then
      -- A share that joins, or one whose release was overtaken by its own late message. A join goes by the exported share: a
      -- majority may have keys of the lease although each of its shares was released by a majority.
      if joins and not string.find(value, ' ' .. known .. ':', 1, true) then return refuse({GONE, now, i, highest}) end
      if next <= highest then return refuse({STALE, now, i, highest}) end
      new = value .. entry
    end
  else
    -- Where this share is in the last lease honoured, newer ballots are only those of requests that were given up.
    local is_last = last_head == head and string.find(last_shares, ' ' .. share .. ':', 1, true)
    -- A join never brings a key back.
    if joins or not is_last and tonumber(known) < floor then
      return refuse({GONE, now, i, highest})
    end
    new = head .. label .. entry
    if last_head == head then
      -- The key has gone before the lease was over: the other shares in it are as good as they were.
      local kept, found = string.gsub(last_shares, ' ' .. share .. ':%d+', entry, 1)
      new = head .. label .. (found == 0 and kept .. entry or kept)
    end
  end

  if not value and not create(lock, new, lease) then
    return refuse({HELD, now, i, call('PTTL', lock), ''})
  end
  if value then lock_values[lock] = new end
  -- Raised by every message: an end that stays the same says that none has come since.
  local ends = last_head == head and math.max(new_end, state.last_end + 1) or new_end
  if not text then
    if not create(ballot, string.format('%s %.0f %s', next_text, ends, new), math.max(longest, lease, DAY) + DAY) then
      return refuse({HELD, now, i, call('PTTL', ballot), ''})
    end
  elseif not state then
    return refuse({HELD, now, i, call('PTTL', ballot), ''})
  else
    state.raise_ballot(next)
    state.set_last(new, ends)
    if fresh then state.dequeue(ticket) end
    states[#states + 1] = state
  end
end

for lock, value in pairs(lock_values) do
  -- A lease never gets shorter.
  call('SET', lock, value, 'PX', math.max(math.min(call('PTTL', lock), longest), lease))
end
for _, state in ipairs(states) do state.write(call, memory, math.max(longest, lease)) end
-- What one sender has waited for is over, by its clock, for all whose clocks are not behind it.
if till > 0 and left == 0 and waited then till_wall = math.min(till_wall, wall) end
local new_record = renewed(math.max(longest, lease))
if new_record ~= record then call('SET', 'quorlock:node', new_record) end
if left > 0 then return tell({YOUNG, now, left}) end
if asked ~= new_record then return {GRANTED, new_record} end
return 1
