-- The usual attempts for a lock that others hold, before anything is even defined: the owner takes the last place in the
-- queue, or it has a place and is not the last. All other attempts continue in `acquire_usual.lua`.
--
-- `acquire_usual.lua` does not read again what was read here.

local owner, asked = ARGV[1], ARGV[3]

-- If all holders have the same shape as this owner, and nobody waits, then they need not be read: `acquire_usual.lua`
-- counts them.
local found = ARGV[6] and call('HMGET', state, 'token', owner, 'waits', 'watched')
local shape, before, alike
if found then
  shape = string.match(asked, '|(.*)$')
  before, alike = string.match(found[1] or '', '^(%d+)|(.*)$')
  if alike ~= shape or found[2] or found[3] then fields = call('HGETALL', state) end
end

local last_token, holder_name, holder, is_held, waits, is_watched
for i = 1, fields and #fields or 0, 2 do
  local field = fields[i]
  if field == 'token' then
    last_token = fields[i + 1]
  elseif field == 'waits' then
    waits = fields[i + 1]
  elseif field == 'watched' then
    is_watched = fields[i + 1]
  else
    holder_name, holder = field, fields[i + 1]
    if field == owner then is_held = true end
  end
end

if last_token and holder and not is_held and ARGV[5] ~= 'once' then
  local base, name = string.match(state, '^([^/]*/[^/]*)(.*)$')
  local queue, waiters = base .. '-queue' .. name, base .. '-waiters' .. name
  -- There are waiters: the last waiter soon checks all owners ahead, and this owner is the last waiter from now on.
  local last = waits and call('ZRANGE', queue, '-1', '-1', 'WITHSCORES') or {}
  local tail, back = last[1], tonumber(last[2])
  local is_blocked = back
  if not tail then
    -- This owner is the first waiter, and must know that the holder is alive.
    local session, weight, capacity = string.match(holder, '^(%x+)|(%d+)|(%d+)|')
    local key = session and (not found or weight == capacity) and string.match(KEYS[2], '^.*/') .. session
    local stamp = key and call('GET', key)
    is_blocked = stamp and (string.byte(stamp) == 107 or call('PUBSUB', NUMSUB, key)[2] > 0) -- `kept`
  end
  local stamp = is_blocked and (ARGV.fields and ARGV[2] or call('GET', KEYS[2]))
  if stamp == ARGV[2] and (string.byte(stamp) == 107 or call('PUBSUB', NUMSUB, KEYS[2])[2] > 0) then
    local time = call('TIME')
    local now = time[1] .. string.sub('00000' .. time[2], -6)
    local micros, before, token = tonumber(now), tonumber(last_token), ''
    -- Whether the owner ahead is a neighbour with a token: see `neighbours.rs`. Then all owners ahead are neighbours.
    local with_token = '^' .. asked .. '|%d'
    local is_next = not found and string.find(holder, with_token)
    if is_next and tail then is_next = string.find(call('HGET', waiters, tail) or '', with_token) end
    -- As in `acquire_free.lua`.
    local is_simple = before and before < micros and before >= micros - micros % 1000000000
    if is_next and is_simple then token = now end
    local claim = asked .. '|' .. token .. '|' .. string.sub(now, 1, -4) .. '|' .. ARGV[4]
    if (is_simple or not is_next) and call('HSETNX', waiters, owner, claim) == 1 then
      -- A place is the clock or more, so the first new waiter of each hour knows that it must extend the time to live of
      -- the keys.
      local place, text = micros, now
      if back and place <= back then
        place = back + 1
        text = string.format('%.0f', place)
      end
      call('ZADD', queue, text, owner)
      if not back or math.floor(back / 3600000000) ~= math.floor(place / 3600000000) then
        call('PEXPIRE', queue, '7200000')
        call('PEXPIRE', waiters, '7200000')
      end
      if not waits then call('HSET', state, 'waits', '1') end
      if token == '' then return { 'contended', '0', holder } end
      call('HSET', state, 'token', token)
      return { 'contended', '0', holder, tail or holder_name, token }
    end
    -- Otherwise the owner has a place already, and this is a check. If each of many waiters read each of many holders, it
    -- would take far too long, so a waiter that is not the last does not if another waiter has done so within `UNREAD`: see
    -- `queue.rs`. This is usually the last, so the last must be alive.
    local age = tail and micros - (tonumber(waits) or 0)
    local behind = age and age >= 0 and age < 200000 and call('ZREVRANK', queue, owner)
    if behind and behind > 0 then
      local texts = call('HMGET', waiters, owner, tail)
      local session = string.match(texts[2] or '', '^%x+')
      local key = session and string.match(KEYS[2], '^.*/') .. session
      local stamp = key and string.match(texts[1] or '', '^%x+|%d+|%d+||') and call('GET', key)
      if stamp and (string.byte(stamp) == 107 or call('PUBSUB', NUMSUB, key)[2] > 0) then -- `kept`
        return { 'contended', string.format('%.0f', behind), holder }
      end
    end
  end
end
