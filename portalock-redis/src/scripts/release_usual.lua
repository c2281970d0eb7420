-- The usual cases of a release, before anything else is even defined: nobody waits or observes; or the lock goes to the
-- first waiter, which wants all of it. All other cases continue in `release.lua`, which handles these cases too.

find_queue()
local found = call('HMGET', state, 'token', 'waits', 'watched')
local last_token, waits = found[1], found[2]
watched = found[3]
local line = (waits or freed == 0) and call('ZRANGE', queue, '0', '1') or {}
local first, second = line[1], line[2]
if freed == 1 and not first then
  if waits then call('HDEL', state, 'waits') end
  if watched then tell_observers('-' .. owner) end
  return '1'
end

-- Besides the last token and the flags.
local holders_left = left - 1 - (waits and 1 or 0) - (watched and 1 or 0)
if freed == 1 and holders_left == 0 then
  local texts = call('HMGET', waiters, first, second or first)
  local session, weight, capacity, own, who =
    string.match(texts[1] or '', '^(%x+)|(%d+)|(%d+)|(%d*)|%d+|(.*)$')
  -- The second waiter may get a token with this grant.
  local goes_on = session and second and string.find(texts[2] or '', '^' .. session .. '|%d+|%d+||')
  if session and weight == capacity and not goes_on and lives(session) then
    call('HDEL', waiters, first)
    call('ZREM', queue, first)
    local head = session .. '|' .. weight .. '|' .. capacity
    local _, token = write_grant(number_of(last_token), first, head, who, nil, own)
    if first ~= ARGV[2] then call(PUBLISH, sessions .. session, 'grant|' .. first .. '|' .. token) end
    return '1'
  end
end
