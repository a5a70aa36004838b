-- What a node keeps of a resource beside the lock: the highest ballot honoured, and the line of those who wait, oldest
-- first. Stands before hold.lua and release.lua.
--
-- 'BALLOT', and when somebody waits 'BALLOT WRITTEN UNTIL=CALLED TICKET TICKET ...', each ticket as NUMBER:CHANNEL. CALLED
-- is the ticket for which the resource is kept, until UNTIL in us of this node's clock; '-' for nobody. A line that nobody has
-- touched since WRITTEN for a while is forgotten: who waits looks again more often. The order is a courtesy that prevents
-- herds and split votes: no grant depends on it.
local function mark_at(key, value, now)
  local KEPT_FOR, LIVES, FULL = 100000, 5000000, 12000 -- us, us, bytes

  local till, called, rest = 0, '-', ''
  local highest = tonumber(value or 0)
  if not (highest and highest < math.huge) then
    local written
    highest, written, till, called, rest = string.match(value, '^(%d+) (%d+) (%d+)=(%S+)(.*)$')
    if not highest or string.gsub(rest, ' %d+:%x+', '') ~= '' then return nil end -- Not ours: left alone.
    highest, till = tonumber(highest), tonumber(till)
    if math.abs(now - written) > LIVES then till, called, rest = 0, '-', '' end
  end
  local mark, changed = {highest = highest}, false

  function mark.raise(ballot)
    mark.highest, changed = math.max(mark.highest, ballot), true
  end

  -- How long, in ms, the resource is still kept for somebody else than `me`.
  function mark.kept_from(me)
    local left = till - now
    return called ~= '-' and called ~= me and left > 0 and left <= KEPT_FOR and math.ceil(left / 1000) or 0
  end

  function mark.enter(me)
    if #rest > FULL then return end -- Who comes too late for a place looks again now and then.
    changed = true
    if string.find(rest .. ' ', ' ' .. me .. ' ', 1, true) then return end
    local number, older = tonumber(string.match(me, '%d+')), ''
    for ticket, theirs in string.gmatch(rest, '( (%d+)%S+)') do
      if tonumber(theirs) > number then break end
      older = older .. ticket
    end
    rest = older .. ' ' .. me .. string.sub(rest, #older + 1)
  end

  function mark.leave(me)
    if called == me then till, called, changed = 0, '-', true end
    local at, past = string.find(rest .. ' ', ' ' .. me .. ' ', 1, true)
    if at then rest, changed = string.sub(rest, 1, at - 1) .. string.sub(rest, past), true end
  end

  -- Tells the oldest who still listens that the resource is free, and keeps it for that one.
  function mark.call()
    if called == '-' and rest == '' then return end
    till, called, changed = 0, '-', true
    while called == '-' and rest ~= '' do
      local ticket, number, channel, younger = string.match(rest, '^ ((%d+):(%S+))(.*)$')
      rest = younger
      local heard = redis.pcall('PUBLISH', 'quorlock:call:' .. channel, number)
      if type(heard) == 'number' and heard > 0 then till, called = now + KEPT_FOR, ticket end
    end
  end

  -- `set` is redis.call, or redis.pcall for what may be left out: a node that is out of memory answers all the same.
  function mark.write(set, memory)
    if not changed then return end
    local text = string.format('%.0f', mark.highest)
    if called ~= '-' or rest ~= '' then text = string.format('%s %.0f %.0f=%s%s', text, now, till, called, rest) end
    if value and text == '0' then
      set('DEL', key) -- Somebody has waited, and nobody was ever here.
    elseif value then
      set('SET', key, text, 'PX', memory)
    else
      set('SET', key, text, 'NX', 'PX', memory) -- NX: a user's key of another type is left alone.
    end
  end

  return mark
end
