-- Frees what the owner holds, or takes it out of the queue, and serves the queue. Touches nobody else's claim; does
-- nothing if the owner has none. No session is asked for: owners are never used twice, so the right one is asking.
--
-- ARGV[2]  owner
--
-- Answers '1' if the owner held, else '0'.

local owner = ARGV[2]

local freed = redis.call('HDEL', state, owner)
if freed == 0 then
  if redis.call('HDEL', waiters, owner) == 0 then return '0' end
  local first = next_owner()
  redis.call('ZREM', queue, owner)
  -- Only the next one is in the way of the others.
  if first ~= owner then return '0' end
end

if next_owner() then
  read()
  serve(nil, owner)
end
return whole(freed)
