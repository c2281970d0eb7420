-- The usual releases of a lock that others wait for, before anything is even defined: nobody else holds or observes, and
-- the lock goes to the first waiter, which wants all of it; or nobody waits any more. All other releases continue in
-- `release.lua`, which handles these cases too.
--
-- Only the last token and the flag `waits` are left in the state.
if freed == 1 and left == 2 and found[2] then
  local prefix, kind, name = string.match(state, '^([^/]*/)([^/]*)(.*)$')
  local queue, waiters = prefix .. kind .. '-queue' .. name, prefix .. kind .. '-waiters' .. name
  local line = call('ZRANGE', queue, '0', '1')
  local first, second = line[1], line[2]
  if not first then
    call('HDEL', state, 'waits')
    return '1'
  end
  local texts = call('HMGET', waiters, first, second or first)
  local session, weight, capacity, after, own, from =
    string.match(texts[1] or '', '^(%x+)|(%d+)|(%d+)|()(%d*)|%d+()|')
  local head = after and string.sub(texts[1], 1, after - 1)
  -- The second waiter gets a token with this grant.
  local goes_on = head and second and string.sub(texts[2] or '', 1, #head + 1) == head .. '|'
  if head and weight == capacity and not goes_on then
    local key = prefix .. 'session/' .. session
    local stamp = call('GET', key)
    local time = call('TIME')
    local now = time[1] .. string.sub('00000' .. time[2], -6)
    local micros, before = tonumber(now), tonumber(string.match(found[1] or '', '^%d+'))
    -- As in `acquire_free.lua`; or the waiter has its token already, and the last token stays as it is.
    local is_simple = before and before < micros and before >= micros - micros % 1000000000
    if own ~= '' then is_simple = tonumber(own) <= (tonumber(found[1]) or 0) end
    if is_simple and stamp and (string.byte(stamp) == 107 or call('PUBSUB', NUMSUB, key)[2] > 0) then -- `kept`
      call('HDEL', waiters, first)
      call('ZREM', queue, first)
      local since_and_who = '|' .. string.sub(now, 1, -4) .. string.sub(texts[1], from)
      if own == '' then
        own = now
        call('HSET', state, 'token', now, first, head .. now .. since_and_who)
      else
        call('HSET', state, first, head .. own .. since_and_who)
      end
      if first ~= ARGV[2] then call(PUBLISH, key, 'grant|' .. first .. '|' .. own) end
      return '1'
    end
  end
end
