-- The ways that nearly every attempt goes, before anything else is even defined: the lock is free or shared, or it is not and
-- who asks takes a place in the queue. Any other attempt goes on to `acquire.lua`, which could do these as well, and takes twice as
-- long.
--
-- KEYS and ARGV are those of `acquire.lua`. What was read here is not read there again.

-- What to answer instead of a grant or a place, if who asks must have neither. A session that is over gets nothing: its client
-- knows, or will know in time. Nor does a command that was sent before its client made all older ones void: then the stamp is
-- another by now.
local function refusal()
  local stamp = call('GET', KEYS[4])
  if not stamp then return { 'ended' } end
  if stamp ~= ARGV[8] then return { 'stale', stamp } end
  if string.byte(stamp) ~= KEPT_FORM and call('PUBSUB', NUMSUB, KEYS[4])[2] == 0 then return { 'ended' } end
end

local shape = ARGV[4] .. '|' .. ARGV[5]
-- What its claim begins with.
local asked = ARGV[2] .. '|' .. shape
local shares = ARGV[4] ~= ARGV[5]

-- It fits beside others that are all like it, however many, and nobody waits. One field of the state is the last token.
if shares then
  local found = call('HMGET', state, 'token', ARGV[3])
  local before, alike = string.match(found[1] or '', '^(%d+)|(.*)$')
  if alike == shape and not found[2]
    and tonumber(ARGV[4]) * call('HLEN', state) <= tonumber(ARGV[5])
    and call('EXISTS', queue) == 0
  then
    local refused = refusal()
    if refused then return refused end
    local _, token = write_grant(tonumber(before), ARGV[3], asked, ARGV[7], shape)
    return { 'granted', token }
  end
end

local fields = call('HGETALL', state)
local holder, is_held
for i = 1, #fields, 2 do
  if fields[i] ~= 'token' then holder = fields[i + 1] end
  if fields[i] == ARGV[3] then is_held = true end
end

-- Free, and nobody waits.
if not holder and (not shares or tonumber(ARGV[4]) <= tonumber(ARGV[5])) and call('EXISTS', queue) == 0 then
  local refused = refusal()
  if refused then return refused end
  local _, token = write_grant(number_of(fields[2] or '0'), ARGV[3], asked, ARGV[7], shares and shape)
  return { 'granted', token }
end

-- Whether it can't be granted beside this holder, who lives.
local function is_in_the_way(text)
  local session, weight, capacity = string.match(text, '^(%x+)|(%d+)|(%d+)|')
  return session
    and tonumber(weight) + tonumber(ARGV[4]) > math.min(tonumber(capacity), tonumber(ARGV[5]))
    and lives(session)
end

-- Puts the claim of who asks at the end of the queue; false if it has one there. `back` is the last place that is taken.
--
-- A place is the clock or more, so the first newcomer of each hour knows that the time of the keys must be moved on.
local function line_up(back)
  read_clock()
  local claim = asked .. '||' .. since .. '|' .. ARGV[7]
  if call('HSETNX', waiters, ARGV[3], claim) == 0 then
    if call('ZREVRANK', queue, ARGV[3]) then return false end
    -- Somebody has deleted the queue, and nothing but it.
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
  return true
end

local function last_place()
  return tonumber(call('ZRANGE', queue, '-1', '-1', 'WITHSCORES')[2])
end

-- Behind others: whoever is the last in the queue looks after all of them, soon, and this one is the last from now on. Or
-- the first in the queue, behind a holder that was looked at.
if holder and not is_held and ARGV[6] == '1' then
  local back = last_place()
  if back or is_in_the_way(holder) then
    local refused = refusal()
    if refused then return refused end
    if line_up(back) then return { 'contended', '0', holder } end
  end
end
