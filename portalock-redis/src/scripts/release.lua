-- Frees what the owner holds, or takes it out of the queue, and serves the queue. Touches nobody else's claim; does
-- nothing if the owner has none. No session is asked for: places are never taken twice, so the right one is asking.
--
-- ARGV[2]  owner
--
-- Answers '1' if the owner held, else '0'.

local serves, was_last = freed == 1, false

if freed == 0 then
  if call('HDEL', waiters, owner) == 0 then return '0' end
  -- Only the next one is in the way of the others.
  serves = first == owner
  was_last = last_owner() == owner
  call('ZREM', queue, owner)
  if serves then first = next_owner() end
end

if serves and first then
  read(fields or call('HGETALL', state))
  local before = last
  serve(first)
  if freed == 1 and last == before then call(PUBLISH, state, '-' .. owner) end
end

-- The one that has become the last looks after the holders from now on, and has to be told.
local tail = was_last and last_owner()
local text = tail and call('HGET', waiters, tail)
if text then
  call(PUBLISH, sessions .. parse(text).session, 'last|' .. tail)
end
return whole(freed)
