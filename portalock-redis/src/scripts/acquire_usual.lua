-- The usual cases of an attempt, before anything else is even defined: the lock is free or can be shared; or it is
-- contended, and the owner takes a place in the queue. All other attempts continue in `acquire.lua`, which handles
-- these cases too, but takes twice as long.
--
-- KEYS and ARGV are the same as in `acquire.lua`. `acquire.lua` does not read again what was read here.

-- The answer if the owner must get neither a grant nor a place, or nil. A session that has ended gets nothing: its
-- client knows that, or will know in time. A command that its client has made void gets nothing either: then the
-- session has another stamp now.
local function refusal()
  local stamp = call('GET', KEYS[2])
  if not stamp then return { 'ended' } end
  if stamp ~= ARGV[2] then return { 'stale', stamp } end
  if string.byte(stamp) ~= KEPT_FORM and call('PUBSUB', NUMSUB, KEYS[2])[2] == 0 then return { 'ended' } end
end

local owner, asked, who = ARGV[1], ARGV[3], ARGV[4]
local shares = ARGV[6] == 'shares'
local shape, weight, capacity

-- Shared: all holders have the same shape as this owner, the owner fits too, and there are no waiters. The number of
-- holders is the number of fields of the state without the last token and the flag.
if shares then
  local parts
  shape, parts, capacity = string.match(asked, '|((%d+)|(%d+))$')
  weight, capacity = tonumber(parts), tonumber(capacity)
  local found = call('HMGET', state, 'token', owner, 'waits', 'watched')
  local before, alike = string.match(found[1] or '', '^(%d+)|(.*)$')
  watched = found[4]
  if alike == shape and not found[2] and not found[3]
    and weight * (call('HLEN', state) - (watched and 1 or 0)) <= capacity
  then
    local refused = refusal()
    if refused then return refused end
    local _, token = write_grant(tonumber(before), owner, asked, who, shape, '')
    return token
  end
end

fields = fields or call('HGETALL', state)
local last_token, holder_name, holder, is_held, waits
for i = 1, #fields, 2 do
  local field = fields[i]
  if field == 'token' then
    last_token = fields[i + 1]
  elseif field == 'waits' then
    waits = true
  elseif field == 'watched' then
    watched = true
  else
    holder_name, holder = field, fields[i + 1]
    if field == owner then is_held = true end
  end
end

-- Somebody may have deleted the state, and with it the flag.
local is_left = false
if not last_token then
  find_queue()
  is_left = call('EXISTS', queue) == 1
end

-- Free: no holders and no waiters.
if not holder and not waits and not is_left and (not shares or weight <= capacity) then
  local refused = refusal()
  if refused then return refused end
  local _, token = write_grant(number_of(last_token or '0'), owner, asked, who, shares and shape, '')
  return token
end

if not queue then find_queue() end
local queues = ARGV[5] == 'queues'

-- Sets the flag that there are waiters.
local function flag_waits()
  if waits then return end
  waits = true
  call('HSET', state, 'waits', '1')
  if #fields == 0 then call('PEXPIRE', state, 2 * KEPT) end
end

-- Whether this owner gets a token while it waits behind the owner of this claim: see `neighbours.rs`.
local function is_next(text)
  local session, weight, capacity = string.match(text or '', '^(%x+)|(%d+)|(%d+)|%d+|')
  return session and weight == capacity and not shares and session == string.match(asked, '^%x+')
end

-- Adds the owner's claim to the end of the queue; returns false if the owner already has a place. `back` is the last
-- place in the queue. `ahead` is the claim of the last waiter, or of the only holder if there is no waiter; `before` is
-- the last token. Returns the token that the owner got, or ''.
--
-- A place is the clock or more, so the first new waiter of each hour knows that it must extend the time to live of the
-- keys.
local function line_up(back, ahead, before)
  read_clock()
  local last, token = before, ''
  if is_next(ahead) then last, token = next_token(before) end
  local claim = asked .. '|' .. token .. '|' .. since .. '|' .. who
  if call('HSETNX', waiters, owner, claim) == 0 then
    if call('ZREVRANK', queue, owner) then return false end
    -- The queue key was deleted from outside, and the waiters key was not.
    call('HSET', waiters, owner, claim)
  end
  local place, text = micros, now
  if back and place <= back then
    place = back + 1
    text = string.format('%.0f', place)
  end
  call('ZADD', queue, text, owner)
  if not back or math.floor(back / HOUR) ~= math.floor(place / HOUR) then
    call('PEXPIRE', queue, 2 * KEPT)
    call('PEXPIRE', waiters, 2 * KEPT)
  end
  flag_waits()
  if token ~= '' then
    call('HSET', state, 'token', token)
    outlive(before, last)
  end
  return token
end

-- The last waiter, and its place.
local function last_waiter()
  local found = call('ZRANGE', queue, '-1', '-1', 'WITHSCORES')
  return found[1], tonumber(found[2])
end

-- There are waiters: the last waiter soon checks all owners ahead, and this owner is the last waiter from now on. Or
-- the queue is empty, and the holder was checked above: this owner is the first waiter.
if holder and not is_held and queues then
  local tail, back
  if waits then tail, back = last_waiter() end
  local is_blocked = back
  if not back then
    local session, used, limit = string.match(holder, '^(%x+)|(%d+)|(%d+)|')
    local fits = session and shares and tonumber(used) + weight <= math.min(tonumber(limit), capacity)
    is_blocked = session and not fits and lives(session)
  end
  if is_blocked then
    local refused = refusal()
    if refused then return refused end
    local ahead = holder
    if tail and not shares then ahead = call('HGET', waiters, tail) end
    local token = line_up(back, ahead, number_of(last_token or '0'))
    if token == '' then return { 'contended', '0', holder } end
    if token then return { 'contended', '0', holder, tail or holder_name, token } end
  end
end
