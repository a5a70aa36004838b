-- What a node keeps of a resource beside the lock, in the ballot key: the highest ballot honoured, the last lease honoured
-- until that is released here, and the queue of waiting requests. Stands before hold.lua and release.lua.
--
-- 'BALLOT', or 'BALLOT END VALUE' while a lease may be in force, either with ' | WRITTEN UNTIL=CALLED TICKET TICKET ...'
-- behind it while requests wait.
--
-- END is the end of that lease in ms of its sender's wall clock. VALUE is a copy of the lock key: it says who held the lock
-- when the lock key has expired by a clock that leapt, or was deleted by hand.
--
-- Tickets are NUMBER:CHANNEL, oldest first. CALLED is the ticket for which the resource is reserved until UNTIL, in us of this
-- node's clock; '-' for none. A queue that was not written for LIVES is forgotten: a waiting request looks again more often, and a look writes the queue
-- again when it is not FRESH.
-- The order of the queue prevents herds and split votes. No grant depends on it.
--
-- The function stands for itself: a local that it took from outside would cost the usual cases more than to make the function.
local function mark_at(key, text, now)
  local DAY = 86400000 -- ms: a leap of this node's clock by less does not make it forget a lease that was not released
  local RESERVED, LIVES, FRESH, FULL = 100000, 5000000, 1000000, 12000 -- us, us, us, bytes

  local written, till, called, rest = 0, 0, '-', ''
  local last_end, last
  local highest = tonumber(text or 0)
  if not (highest and highest < math.huge) then
    local head, queue = text, nil
    local bar = string.find(text, ' | ', 1, true)
    if bar then head, queue = string.sub(text, 1, bar - 1), string.sub(text, bar + 3) end
    highest = string.match(head, '^%d+$')
    if not highest then
      highest, last_end, last = string.match(head, '^(%d+) (%d+) (ql1 %d+ %x+ %S+ %S.*)$')
      if not highest then return nil end -- Not ours: left alone.
      last_end = tonumber(last_end)
    end
    if queue then
      written, till, called, rest = string.match(queue, '^(%d+) (%d+)=(%S+)(.*)$')
      if not written or string.gsub(rest, ' %d+:%x+', '') ~= '' then return nil end
      till = tonumber(till)
      if math.abs(now - written) > LIVES then till, called, rest = 0, '-', '' end
    end
    highest = tonumber(highest)
  end
  local mark = {highest = highest, last = last, last_end = last_end}
  local changed, renewed = false, false -- anything; what the life of the key depends on

  function mark.raise(ballot)
    if ballot > mark.highest then mark.highest, changed, renewed = ballot, true, true end
  end

  -- The last lease honoured here is now this one; nil when it was released.
  function mark.set_last(value, value_end)
    mark.last, mark.last_end, changed, renewed = value, value_end, true, true
  end

  -- The words of the lock value of the last lease: 'ql1 TOKEN OWNER ', and the shares.
  function mark.last_words()
    return string.match(mark.last, '^(ql1 %d+ %x+ )%S+( .*)$')
  end

  -- How long, in ms, the resource is still reserved for another ticket than `me`.
  function mark.reserved_from(me)
    local left = till - now
    return called ~= '-' and called ~= me and left > 0 and left <= RESERVED and math.ceil(left / 1000) or 0
  end

  function mark.enter(me)
    if string.find(rest .. ' ', ' ' .. me .. ' ', 1, true) then
      -- The more requests wait, the longer is what would be written for each look.
      if math.abs(now - written) > FRESH then changed = true end
      return
    end
    if #rest > FULL then return end -- The request looks again by its timer.
    changed = true
    local number, place = tonumber(string.match(me, '%d+')), #rest + 1
    for at, theirs in string.gmatch(rest, '() (%d+)%S+') do
      if tonumber(theirs) > number then
        place = at
        break
      end
    end
    rest = string.sub(rest, 1, place - 1) .. ' ' .. me .. string.sub(rest, place)
  end

  function mark.leave(me)
    if called == me then till, called, changed = 0, '-', true end
    local at, past = string.find(rest .. ' ', ' ' .. me .. ' ', 1, true)
    if at then rest, changed = string.sub(rest, 1, at - 1) .. string.sub(rest, past), true end
  end

  -- Tells the oldest ticket that still has a listener that the resource is free, and reserves it for that ticket.
  function mark.call()
    if called == '-' and rest == '' then return end
    till, called, changed = 0, '-', true
    while called == '-' and rest ~= '' do
      local ticket, number, channel, younger = string.match(rest, '^ ((%d+):(%S+))(.*)$')
      rest = younger
      local heard = redis.pcall('PUBLISH', 'quorlock:call:' .. channel, number)
      if type(heard) == 'number' and heard > 0 then till, called = now + RESERVED, ticket end
    end
  end

  -- No key outlives `most` ms from now. A clock that leapt and came back leaves such keys.
  function mark.limit(most)
    local left = redis.call('PTTL', key)
    if left > most or left == -1 then redis.pcall('PEXPIRE', key, most) end
  end

  -- `set` is redis.call, or redis.pcall for what may be left out: a node that is out of memory answers all the same.
  -- The key lives for `memory`, in ms, and for a day longer than `longest`, the longest lease, while one may be in force.
  -- Without `longest` such a key keeps the life that it has, and any key keeps it that only got another queue.
  function mark.write(set, memory, longest)
    if not changed then return end
    local life = memory
    if mark.last then life = longest and math.max(longest, DAY) + DAY end
    local value = string.format('%.0f', mark.highest)
    if mark.last then value = string.format('%s %.0f %s', value, mark.last_end, mark.last) end
    if called ~= '-' or rest ~= '' then value = string.format('%s | %.0f %.0f=%s%s', value, now, till, called, rest) end
    if not text then
      set('SET', key, value, 'NX', 'PX', life) -- NX: a user's key of another type is left alone.
    elseif value == '0' then
      set('DEL', key) -- Only tickets stood here.
    elseif renewed and life then
      set('SET', key, value, 'PX', life)
    else
      set('SET', key, value, 'KEEPTTL')
    end
  end

  return mark
end
