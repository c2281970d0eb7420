-- One attempt: grants if it can, else keeps a place in the queue if asked to. It is the waiter's tick as well, since it
-- finds the place again and takes out whoever died.
--
-- KEYS[4]  the session's own key
-- ARGV[2]  session   ARGV[3]  owner   ARGV[4]  weight   ARGV[5]  capacity
-- ARGV[6]  '1' to keep a place in the queue   ARGV[7]  who, as JSON
--
-- Answers {'granted', token}, {'contended', place, since, who} with the place '-' if there is none, or {'ended'}.

local session, owner = ARGV[2], ARGV[3]

-- A dead session is granted nothing. This also voids an attempt that was stuck in a connection that its client has
-- given up: the client deletes the old session's key before it does anything in a new one.
if not look(session).hears then return { 'ended' } end

read()

-- The owner holds already: an answer was lost, or a grant crossed with this attempt. The claim has been there all the
-- time, so nobody else was granted meanwhile; if the owner comes from another session than before, the claim moves.
local held = holders[owner]
if held then
  if held.session ~= session then
    held.session = session
    redis.call('HSET', state, owner, pack(held))
  end
  return { 'granted', held.token }
end

local claim = {
  session = session,
  weight = tonumber(ARGV[4]),
  capacity = tonumber(ARGV[5]),
  token = '',
  since = whole(millis),
  who = ARGV[7],
}

-- Likewise a place in the queue.
local waiting = redis.call('HGET', waiters, owner)
if waiting then
  local before = parse(waiting)
  if before.session ~= session then
    before.session = session
    redis.call('HSET', waiters, owner, pack(before))
  end
end

serve(owner)
if holders[owner] then return { 'granted', holders[owner].token } end

if not waiting then
  if not next_owner() then
    if not fits(claim) then prune() end
    if fits(claim) then
      grant(owner, claim)
      return { 'granted', claim.token }
    end
  end
  if ARGV[6] == '1' then
    local back = redis.call('ZRANGE', queue, -1, -1, 'WITHSCORES')[2]
    redis.call('ZADD', queue, whole((tonumber(back) or 0) + 1), owner)
    redis.call('HSET', waiters, owner, pack(claim))
    redis.call('PEXPIRE', queue, KEPT)
    redis.call('PEXPIRE', waiters, KEPT)
    waiting = true
  end
elseif redis.call('PTTL', queue) < KEPT / 2 then
  redis.call('PEXPIRE', queue, KEPT)
  redis.call('PEXPIRE', waiters, KEPT)
end

local place = waiting and redis.call('ZRANK', queue, owner)
local _, holder = next(holders)
if not holder then
  -- Nobody holds: whoever is next in the queue is in the way.
  local first = next_owner()
  holder = first and parse(redis.call('HGET', waiters, first)) or claim
end
return { 'contended', place and whole(place) or '-', holder.since, holder.who }
