-- The usual cases of an attempt, before anything else is even defined: the lock is free or can be shared; or it is
-- contended, and the owner takes a place in the queue. All other attempts continue in `acquire.lua`, which handles
-- these cases too, but takes twice as long.
--
-- KEYS and ARGV are the same as in `acquire.lua`. `acquire.lua` does not read again what was read here.

-- The answer if the owner must get neither a grant nor a place, or nil. A session that has ended gets nothing: its
-- client knows that, or will know in time. A command that its client has made void gets nothing either: then the
-- session has another stamp now.
local function refusal()
  local stamp = call('GET', KEYS[4])
  if not stamp then return { 'ended' } end
  if stamp ~= ARGV[8] then return { 'stale', stamp } end
  if string.byte(stamp) ~= KEPT_FORM and call('PUBSUB', NUMSUB, KEYS[4])[2] == 0 then return { 'ended' } end
end

local shape = ARGV[4] .. '|' .. ARGV[5]
-- The beginning of the owner's claim.
local asked = ARGV[2] .. '|' .. shape
local shares = ARGV[4] ~= ARGV[5]

-- Shared: all holders have the same shape as this owner, the owner fits too, and there are no waiters. The number of
-- holders is the number of fields of the state minus one, because one field is the last token.
if shares then
  local found = call('HMGET', state, 'token', ARGV[3])
  local before, alike = string.match(found[1] or '', '^(%d+)|(.*)$')
  if alike == shape and not found[2]
    and tonumber(ARGV[4]) * call('HLEN', state) <= tonumber(ARGV[5])
    and call('EXISTS', queue) == 0
  then
    local refused = refusal()
    if refused then return refused end
    local _, token = write_grant(tonumber(before), ARGV[3], asked, ARGV[7], shape, '')
    return { 'granted', token }
  end
end

local fields = call('HGETALL', state)
local before, holder_name, holder, is_held = '0', nil, nil, nil
for i = 1, #fields, 2 do
  if fields[i] == 'token' then before = fields[i + 1] else holder_name, holder = fields[i], fields[i + 1] end
  if fields[i] == ARGV[3] then is_held = true end
end

-- Free: no holders and no waiters.
if not holder and (not shares or tonumber(ARGV[4]) <= tonumber(ARGV[5])) and call('EXISTS', queue) == 0 then
  local refused = refusal()
  if refused then return refused end
  local _, token = write_grant(number_of(before), ARGV[3], asked, ARGV[7], shares and shape, '')
  return { 'granted', token }
end

-- Whether this holder is alive, and the owner does not fit next to it.
local function is_in_the_way(text)
  local session, weight, capacity = string.match(text, '^(%x+)|(%d+)|(%d+)|')
  return session
    and tonumber(weight) + tonumber(ARGV[4]) > math.min(tonumber(capacity), tonumber(ARGV[5]))
    and lives(session)
end

-- Whether this owner gets a token while it waits behind the owner of this claim: see `neighbours.rs`.
local function is_next(text)
  local session, weight, capacity = string.match(text or '', '^(%x+)|(%d+)|(%d+)|%d+|')
  return session == ARGV[2] and weight == capacity and not shares
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
  local claim = asked .. '|' .. token .. '|' .. since .. '|' .. ARGV[7]
  if call('HSETNX', waiters, ARGV[3], claim) == 0 then
    if call('ZREVRANK', queue, ARGV[3]) then return false end
    -- The queue key was deleted from outside, and the waiters key was not.
    call('HSET', waiters, ARGV[3], claim)
  end
  local place, text = micros, now
  if back and place <= back then
    place = back + 1
    text = string.format('%.0f', place)
  end
  call('ZADD', queue, text, ARGV[3])
  if not back or math.floor(back / HOUR) ~= math.floor(place / HOUR) then
    call('PEXPIRE', queue, 2 * KEPT)
    call('PEXPIRE', waiters, 2 * KEPT)
  end
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
if holder and not is_held and ARGV[6] == '1' then
  local tail, back = last_waiter()
  if back or is_in_the_way(holder) then
    local refused = refusal()
    if refused then return refused end
    local ahead = holder
    if tail and not shares then ahead = call('HGET', waiters, tail) end
    local token = line_up(back, ahead, number_of(before))
    if token == '' then return { 'contended', '0', holder } end
    if token then return { 'contended', '0', holder, tail or holder_name, token } end
  end
end
