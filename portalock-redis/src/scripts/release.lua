-- Ends the owner's hold, or removes the owner from the queue, and serves the queue. Affects no other claim, and does
-- nothing if the owner has no claim. The script needs no session: place names are never used twice, so only the right
-- client can know this one.
--
-- ARGV[1]  owner   ARGV[2]  the waiter that now holds the lock at its client, if there is one: see `neighbours.rs`
--
-- Answers '1' if the owner held, 'waited' if it waited with a token and so may have held at its client, or else '0'.

find_queue()
local waits = found[2]
watched = found[3]
-- Without the flag nobody waits.
local first = (waits or freed == 0) and next_owner()
if freed == 1 and not first then
  if waits then call('HDEL', state, 'waits') end
  if watched then tell_observers('-' .. owner) end
  return '1'
end

local serves, was_last, had = freed == 1, false, false

if freed == 0 then
  local text = call('HGET', waiters, owner)
  if not text then return '0' end
  had = parse(text).token ~= ''
  call('HDEL', waiters, owner)
  -- Only the first waiter can block the others.
  serves = first == owner
  was_last = last_owner() == owner
  call('ZREM', queue, owner)
  if serves then first = next_owner() end
end

if serves and first then
  read(call('HGETALL', state))
  serve(first, nil, ARGV[2])
  -- The flag was deleted from outside, with the state.
  if not waits and next_owner() then call('HSET', state, 'waits', '1') end
  if watched and freed == 1 and not has_granted then tell_observers('-' .. owner) end
end

-- The new last waiter checks the holders from now on, so it must be told.
local tail = was_last and last_owner()
local text = tail and call('HGET', waiters, tail)
if text then
  call(PUBLISH, sessions .. parse(text).session, 'last|' .. tail)
end
return had and 'waited' or whole(freed)
