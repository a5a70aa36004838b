-- What a node keeps of a resource beside the lock. In the ballot key: the highest ballot honoured, and the last lease honoured
-- until that is released here. In the queue key: the tickets of waiting requests. hold.lua and release.lua begin with this file.
--
-- The ballot key is 'BALLOT', or 'BALLOT END VALUE' while a lease may be in force, either with ' | UNTIL=CALLED' behind it while
-- requests wait or one of them has been called.
--
-- END is the end of that lease in ms of its sender's wall clock. VALUE is a copy of the lock key: it says who held the lock
-- when the lock key has expired by a clock that leapt, or was deleted by hand.
--
-- CALLED is the ticket for which the resource is reserved until UNTIL, in us of this node's clock; '-' for none.
--
-- The queue key is a sorted set of tickets NUMBER:CHANNEL, each with its NUMBER as score. It expires LIVES after the last look that
-- renewed it: a waiting request looks more often. The order of the queue prevents herds and split votes. No grant depends on it.
--
-- The function uses no local from outside: as an upvalue it would cost the usual cases more than making the function does.
local function mark_at(key, text, now)
  local DAY = 86400000 -- ms: a leap of this node's clock by less does not make it forget a lease that was not released
  local RESERVED, LIVES, FRESH = 100000, 5000, 1000 -- us, ms, ms
  local FULL, PASSED_OVER = 10000, 1000 -- tickets in a queue; tickets without a listener that one call takes from it
  local queue_key = 'quorlock:queue:' .. string.sub(key, 17) -- the ballot key is quorlock:ballot:LOCK-KEY

  local queued, till, called = false, 0, '-'
  local last_end, last
  local highest = tonumber(text or 0)
  if not (highest and highest < math.huge) then
    local head = text
    local bar = string.find(text, ' | ', 1, true)
    if bar then
      queued, head = true, string.sub(text, 1, bar - 1)
      local time, ticket = string.match(text, '^(%d+)=(%S+)$', bar + 3)
      if time then till, called = tonumber(time), ticket end -- What cannot be read there is in no one's way.
    end
    highest = string.match(head, '^%d+$')
    if not highest then
      highest, last_end, last = string.match(head, '^(%d+) (%d+) (ql1 %d+ %x+ %S+ %S.*)$')
      if not highest then return nil end -- Not ours: left alone.
      last_end = tonumber(last_end)
    end
    highest = tonumber(highest)
  end
  local mark = {highest = highest, last = last, last_end = last_end}
  local changed, renewed = false, false -- anything of it; what the life of the key depends on
  local leaving -- the ticket that mark.write or mark.call takes from the queue

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

  -- pcall, here and below: a node that is out of memory, or where a user's key stands, keeps no queue, and answers all the same.
  function mark.enter(me)
    local size = redis.pcall('ZCARD', queue_key)
    if type(size) ~= 'number' then return end
    if size < FULL then redis.pcall('ZADD', queue_key, 'NX', string.match(me, '%d+'), me) end
    if redis.pcall('PTTL', queue_key) < LIVES - FRESH then redis.pcall('PEXPIRE', queue_key, LIVES) end
    if not queued then queued, changed = true, true end
  end

  function mark.leave(me)
    if called == me then till, called, changed = 0, '-', true end
    if me ~= '0' then leaving = me end
  end

  -- Tells the oldest ticket that still has a listener that the resource is free, and reserves it for that ticket.
  function mark.call()
    if not queued then return end
    if leaving then redis.pcall('ZREM', queue_key, leaving) end
    till, called, changed = 0, '-', true
    for _ = 1, PASSED_OVER do
      local ticket = redis.pcall('ZPOPMIN', queue_key)[1]
      if not ticket then return end
      local number, channel = string.match(ticket, '^(%d+):(%x+)$')
      local heard = number and redis.pcall('PUBLISH', 'quorlock:call:' .. channel, number)
      if type(heard) == 'number' and heard > 0 then
        till, called = now + RESERVED, ticket
        return
      end
    end
  end

  -- No key outlives `most` ms from now. A clock that leapt and came back leaves such keys.
  function mark.limit(most)
    local left = redis.call('PTTL', key)
    if left > most or left == -1 then redis.pcall('PEXPIRE', key, most) end
  end

  -- `set` is redis.call, or redis.pcall for what may be left out: a node that is out of memory answers all the same.
  -- The key lives for `memory`, in ms, and for a day longer than `longest`, the longest lease, while one may be in force.
  -- Without `longest` a key with a last lease keeps the life that it has. So does any key of which only the queue changed.
  function mark.write(set, memory, longest)
    if queued and leaving and redis.pcall('ZREM', queue_key, leaving) == 1 then changed = true end
    if not changed then return end
    local life = memory
    if mark.last then life = longest and math.max(longest, DAY) + DAY end
    local value = string.format('%.0f', mark.highest)
    if mark.last then value = string.format('%s %.0f %s', value, mark.last_end, mark.last) end
    if called ~= '-' or queued and redis.call('EXISTS', queue_key) == 1 then
      value = string.format('%s | %.0f=%s', value, till, called)
    end
    if value == '0' then
      if text then set('DEL', key) end -- There were only tickets.
    elseif not text then
      set('SET', key, value, 'NX', 'PX', life) -- NX: a user's key of another type is left alone.
    elseif renewed and life then
      set('SET', key, value, 'PX', life)
    else
      set('SET', key, value, 'KEEPTTL')
    end
  end

  return mark
end
