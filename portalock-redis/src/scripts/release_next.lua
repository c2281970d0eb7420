-- The usual releases of a lock that others wait for, before anything is even defined: nobody observes, and nobody waits any
-- more; or the first waiter wants all of the lock, and gets it, or waits for others that hold too; or it wants as much as
-- each of the others, and gets it, and no other waiter does. All other releases continue in `release.lua`, which handles these cases too.
--
-- Besides claims, only the last token and the flag `waits` are left in the state.
if freed == 1 and found[2] and not found[3] then
  local prefix, kind, name = string.match(state, '^([^/]*/)([^/]*)(.*)$')
  local queue, waiters = prefix .. kind .. '-queue' .. name, prefix .. kind .. '-waiters' .. name
  local line = call('ZRANGE', queue, '0', '1')
  local first, second = line[1], line[2]
  if not first then
    call('HDEL', state, 'waits')
    return '1'
  end
  local texts = call('HMGET', waiters, first, second or first)
  local session, shape, weight, capacity, after, own, from =
    string.match(texts[1] or '', '^(%x+)|((%d+)|(%d+))|()(%d*)|%d+()|')
  local head = after and string.sub(texts[1], 1, after - 1)
  local last, alike = string.match(found[1] or '', '^(%d+)|?(.*)$')
  local others, is_next, its_shape = left - 2, false, ''
  -- To read all others with each release would take far too long if there are many. Whether they are alive, the next check
  -- of a waiter finds out.
  if head and weight == capacity then
    if others > 0 then return '1' end
    -- Otherwise the second waiter gets a token with this grant.
    is_next = not second or string.sub(texts[2] or '', 1, #head + 1) ~= head .. '|'
  elseif head and alike == shape then
    -- All holders have this shape, so their number decides. After this grant nothing is left, or nobody else waits.
    local limit, used = tonumber(capacity), weight * (others + 1)
    is_next = used == limit or used < limit and not second
    its_shape = '|' .. shape
  end
  if is_next then
    local key = prefix .. 'session/' .. session
    local stamp = call('GET', key)
    local time = call('TIME')
    local now = time[1] .. string.sub('00000' .. time[2], -6)
    local micros, before = tonumber(now), tonumber(last)
    -- As in `acquire_free.lua`; or the waiter has its token already, and the last token stays as it is.
    local is_simple = before and before < micros and before >= micros - micros % 1000000000
    if own ~= '' then is_simple = tonumber(own) <= (before or 0) end
    if is_simple and stamp and (string.byte(stamp) == 107 or call('PUBSUB', NUMSUB, key)[2] > 0) then -- `kept`
      call('HDEL', waiters, first)
      call('ZREM', queue, first)
      local since_and_who = '|' .. string.sub(now, 1, -4) .. string.sub(texts[1], from)
      if own == '' then
        own = now
        call('HSET', state, 'token', now .. its_shape, first, head .. now .. since_and_who)
      else
        call('HSET', state, first, head .. own .. since_and_who)
      end
      if first ~= ARGV[2] then call(PUBLISH, key, 'grant|' .. first .. '|' .. own) end
      return '1'
    end
  end
end
