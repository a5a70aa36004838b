-- The state of a resource on a node, apart from its lock key. The ballot key holds the highest ballot honoured, and the last
-- lease honoured until that is released here. The queue key is the wait queue: the tickets of waiting requests. hold.lua and
-- release.lua begin with this file.
--
-- The ballot key is 'BALLOT', or 'BALLOT END VALUE' while a lease may be in force, either with ' | UNTIL=CALLED' behind it while
-- requests wait or one of them has been called.
--
-- END is the end of that lease in ms of its sender's wall clock. VALUE is a copy of the lock key: it says who held the lock
-- when the lock key has expired by a clock that leapt, or was deleted by hand.
--
-- CALLED is the ticket for which the resource is reserved until UNTIL, in us of this node's clock; '-' for none.
--
-- The queue key is a sorted set of tickets NUMBER:CHANNEL, each with its NUMBER as score. It expires QUEUE_LIFE after the last
-- message that renewed it: a waiting request asks more often. The order of the queue prevents herds and split votes. No grant
-- depends on it.
--
-- The function uses no local from outside: as an upvalue it would cost the usual cases more than making the function does.
local function resource_state(key, text, now)
  local DAY = 86400000 -- ms: a leap of this node's clock by less does not make it forget a lease that was not released
  local RESERVED, QUEUE_LIFE, RENEW_AFTER = 100000, 5000, 1000 -- us, ms, ms
  local MOST_TICKETS = 10000 -- in a queue
  local MOST_POPPED = 1000 -- tickets without a listener that one release takes from the queue
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
      if time then till, called = tonumber(time), ticket end -- What cannot be read there reserves nothing.
    end
    highest = string.match(head, '^%d+$')
    if not highest then
      highest, last_end, last = string.match(head, '^(%d+) (%d+) (ql1 %d+ %x+ %S+ %S.*)$')
      if not highest then return nil end -- Not ours: left alone.
      last_end = tonumber(last_end)
    end
    highest = tonumber(highest)
  end
  local state = {highest = highest, last = last, last_end = last_end}
  local changed, renewed = false, false -- anything of it; what the life of the key depends on
  local leaving -- the ticket that state.write or state.call_next takes from the queue

  function state.raise_ballot(ballot)
    if ballot > state.highest then state.highest, changed, renewed = ballot, true, true end
  end

  -- The last lease honoured here is now this one; nil when it was released.
  function state.set_last(value, value_end)
    state.last, state.last_end, changed, renewed = value, value_end, true, true
  end

  -- The words of the lock value of the last lease: 'ql1 TOKEN OWNER ', and the shares.
  function state.last_parts()
    return string.match(state.last, '^(ql1 %d+ %x+ )%S+( .*)$')
  end

  -- How long, in ms, the resource is still reserved for another ticket than this one.
  function state.reserved_from(ticket)
    local left = till - now
    return called ~= '-' and called ~= ticket and left > 0 and left <= RESERVED and math.ceil(left / 1000) or 0
  end

  -- pcall, here and below: a node that is out of memory, or where a user's key stands, keeps no queue, and answers all the same.
  function state.enqueue(ticket)
    local size = redis.pcall('ZCARD', queue_key)
    if type(size) ~= 'number' then return end
    if size < MOST_TICKETS then redis.pcall('ZADD', queue_key, 'NX', string.match(ticket, '%d+'), ticket) end
    local left = redis.pcall('PTTL', queue_key)
    if left < QUEUE_LIFE - RENEW_AFTER then redis.pcall('PEXPIRE', queue_key, QUEUE_LIFE) end
    if not queued then queued, changed = true, true end
  end

  function state.dequeue(ticket)
    if called == ticket then till, called, changed = 0, '-', true end
    if ticket ~= '0' then leaving = ticket end
  end

  -- Calls the oldest ticket whose channel has a listener: the resource is free, and reserved for that ticket.
  function state.call_next()
    if not queued then return end
    if leaving then redis.pcall('ZREM', queue_key, leaving) end
    till, called, changed = 0, '-', true
    for _ = 1, MOST_POPPED do
      local ticket = redis.pcall('ZPOPMIN', queue_key)[1]
      if not ticket then return end
      local number, channel = string.match(ticket, '^(%d+):(%x+)$')
      local receivers = number and redis.pcall('PUBLISH', 'quorlock:call:' .. channel, number)
      if type(receivers) == 'number' and receivers > 0 then
        till, called = now + RESERVED, ticket
        return
      end
    end
  end

  -- No key outlives `most` ms from now. A clock that leapt and came back leaves such keys.
  function state.limit(most)
    local left = redis.call('PTTL', key)
    if left > most or left == -1 then redis.pcall('PEXPIRE', key, most) end
  end

  -- `set` is redis.call, or redis.pcall for what may be left out: a node that is out of memory answers all the same.
  -- The key lives for `memory`, in ms, and for a day longer than `longest`, the longest lease, while one may be in force.
  -- Without `longest` a key with a last lease keeps the life that it has. So does any key of which only the queue changed.
  function state.write(set, memory, longest)
    if queued and leaving and redis.pcall('ZREM', queue_key, leaving) == 1 then changed = true end
    if not changed then return end
    local life = memory
    if state.last then life = longest and math.max(longest, DAY) + DAY end
    local value = string.format('%.0f', state.highest)
    if state.last then value = string.format('%s %.0f %s', value, state.last_end, state.last) end
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

  return state
end
