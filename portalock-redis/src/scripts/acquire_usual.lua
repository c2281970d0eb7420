-- The other usual attempts, before `prelude.lua`: the lock is free, or it can be shared. All other attempts continue in
-- `acquire.lua`, which handles these cases too, but takes twice as long.
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

local who = ARGV[4]
local weight, capacity = 1, 1
if found then
  local parts = { string.match(shape, '^(%d+)|(%d+)$') }
  weight, capacity = tonumber(parts[1]), tonumber(parts[2])
end

-- Shared: all holders have the same shape as this owner, the owner fits too, and there are no waiters. The number of
-- holders is the number of fields of the state without the last token and the flag. The first grant in each hour of tokens
-- reads them instead, in `acquire.lua`, to remove those that are dead.
if found and not fields then
  watched = found[4]
  read_clock()
  local count = call('HLEN', state) - (watched and 1 or 0)
  if weight * count <= capacity and tonumber(before) >= micros - micros % HOUR then
    local refused = refusal()
    if refused then return refused end
    local _, token = write_grant(tonumber(before), owner, asked, who, shape, '')
    return token
  end
end

-- Free: no holders and no waiters. Somebody may have deleted the state, and with it the flag.
if fields and not holder and not waits and weight <= capacity then
  find_queue()
  if last_token or call('EXISTS', queue) == 0 then
    local refused = refusal()
    if refused then return refused end
    watched = is_watched
    local _, token = write_grant(number_of(last_token or '0'), owner, asked, who, shape, '')
    return token
  end
end
