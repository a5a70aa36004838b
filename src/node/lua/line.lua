-- The line of those who wait for a resource, oldest first. Stands before hold.lua and release.lua, and costs nothing but
-- its own definition while nobody waits.
--
-- 'qw1 UNTIL=CALLED TICKET TICKET ...', each ticket as NUMBER:CHANNEL. CALLED is the ticket for which the resource is kept,
-- until UNTIL in us of this node's clock; '-' for nobody. The order is a courtesy that prevents herds and split votes: no
-- grant depends on it.
local function line_at(key, value, now)
  local KEPT_FOR, LIVES, FULL = 100000, 5000, 12000 -- us, ms, bytes

  local till, called, rest = 0, '-', ''
  if value then
    till, called, rest = string.match(value, '^qw1 (%d+)=(%S+)(.*)$')
    if not till then return nil end -- Not ours: left alone.
    till = tonumber(till)
  end
  local line, changed = {}, false

  -- How long, in ms, the resource is still kept for somebody else than `me`.
  function line.kept_from(me)
    local left = till - now
    return called ~= '-' and called ~= me and left > 0 and left <= KEPT_FOR and math.ceil(left / 1000) or 0
  end

  function line.enter(me)
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

  function line.leave(me)
    if called == me then till, called, changed = 0, '-', true end
    local at, past = string.find(rest .. ' ', ' ' .. me .. ' ', 1, true)
    if at then
      rest = string.sub(rest, 1, at - 1) .. string.sub(rest, past)
      changed = true
    end
  end

  -- Tells the oldest who still listens that the resource is free, and keeps it for that one.
  function line.call()
    till, called, changed = 0, '-', true
    while called == '-' and rest ~= '' do
      local ticket, number, channel, younger = string.match(rest, '^ ((%d+):(%S+))(.*)$')
      rest = younger
      local heard = redis.pcall('PUBLISH', 'quorlock:call:' .. channel, number)
      if type(heard) == 'number' and heard > 0 then till, called = now + KEPT_FOR, ticket end
    end
  end

  -- pcall: a node that is out of memory answers all the same, without a line.
  function line.write()
    if not changed then return end
    if rest == '' and called == '-' then
      if value then redis.pcall('DEL', key) end
      return
    end
    local text = string.format('qw1 %.0f=%s%s', till, called, rest)
    if value then
      redis.pcall('SET', key, text, 'PX', LIVES)
    else
      redis.pcall('SET', key, text, 'NX', 'PX', LIVES) -- NX: a user's key of another type is left alone.
    end
  end

  return line
end

