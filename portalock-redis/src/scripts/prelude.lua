-- What all scripts on one name share. It is put in front of each of them.
--
-- KEYS[1]  state    hash: `token` -> the last token; owner -> the claim of one who holds
-- KEYS[2]  queue    sorted set: owner -> place, the smallest is next
-- KEYS[3]  waiters  hash: owner -> the claim of one who waits
-- ARGV[1]  what the key and the channel of every session begin with
--
-- A claim is text: session|weight|capacity|token|since in milliseconds|who, a JSON object for people.
--
-- Besides KEYS the scripts read `ARGV[1] .. session` of the sessions that they meet in claims. Those can't be declared
-- beforehand, which is one of two reasons why a cluster is refused; the other is that PUBSUB NUMSUB counts on one node.

local state, queue, waiters = KEYS[1], KEYS[2], KEYS[3]
local sessions = ARGV[1]

-- How long a key outlives its last use, in milliseconds.
local KEPT = 3600000

local function whole(number)
  return string.format('%.0f', number)
end

local time = redis.call('TIME')
local micros = time[1] * 1000000 + time[2]
local millis = math.floor(micros / 1000)

local function parse(text)
  local session, weight, capacity, token, since, who =
    string.match(text, '^(%x+)|(%d+)|(%d+)|(%d*)|(%d+)|(.*)$')
  if not session then
    error({ err = 'CORRUPT the claim of a lock is not one that portalock wrote' })
  end
  return {
    session = session,
    weight = tonumber(weight),
    capacity = tonumber(capacity),
    token = token,
    since = since,
    who = who,
  }
end

local function pack(claim)
  return table.concat({
    claim.session, whole(claim.weight), whole(claim.capacity), claim.token, claim.since, claim.who,
  }, '|')
end

-- Whether a session keeps what it holds, and whether it can be told of a grant. Subscribed *now* is what counts: Redis
-- ends a subscription together with its connection, before it runs the next command. The key covers a connection that
-- nobody knows to be dead. A `strict` session keeps what it holds until its key expires, subscribed or not.
local seen = {}
local function look(session)
  local known = seen[session]
  if not known then
    local form = redis.call('GET', sessions .. session)
    local subscribed = form and redis.call('PUBSUB', 'NUMSUB', sessions .. session)[2] > 0
    known = { keeps = form and (subscribed or form == 'strict'), hears = subscribed }
    seen[session] = known
  end
  return known
end

-- Those who hold, as last read or written.
local last, holders, used, limit = 0, {}, 0, nil

local function add(claim)
  used = used + claim.weight
  limit = math.min(claim.capacity, limit or claim.capacity)
end

local function count()
  used, limit = 0, nil
  for _, claim in pairs(holders) do add(claim) end
end

local function read()
  local fields = redis.call('HGETALL', state)
  for i = 1, #fields, 2 do
    if fields[i] == 'token' then
      last = tonumber(fields[i + 1])
    else
      holders[fields[i]] = parse(fields[i + 1])
    end
  end
  count()
end

local function fits(claim)
  return used + claim.weight <= math.min(claim.capacity, limit or claim.capacity)
end

-- Takes out the holders that are dead. Only asked for when somebody would have to wait for them.
local pruned = false
local function prune()
  if pruned then return end
  pruned = true
  for owner, claim in pairs(holders) do
    if not look(claim.session).keeps then
      redis.call('HDEL', state, owner)
      holders[owner] = nil
    end
  end
  count()
end

-- Keeps the state for an hour after the clock has passed its last token. A token is the clock or more, so once the key
-- is gone the clock alone is above every token that was granted, however it was set in between.
local function keep_state()
  redis.call('PEXPIREAT', state, whole(math.max(millis, math.floor(last / 1000)) + KEPT))
end

local function grant(owner, claim)
  last = math.max(last + 1, micros)
  claim.token = whole(last)
  claim.since = whole(millis)
  redis.call('HSET', state, 'token', claim.token, owner, pack(claim))
  keep_state()
  holders[owner] = claim
  add(claim)
end

local function next_owner()
  return redis.call('ZRANGE', queue, 0, 0)[1]
end

local function leave_queue(owner)
  redis.call('HDEL', waiters, owner)
  redis.call('ZREM', queue, owner)
end

-- Serves the queue in its order for as long as its next one can be granted. The dead are taken out, not waited for.
-- `asking` learns of its grant by the script's answer, everyone else by a message to its session; so does the one that
-- has become the next instead of `first`: from now on it looks after the holders.
local function serve(asking, first)
  local owner = next_owner()
  first = first or owner
  while owner do
    local text = redis.call('HGET', waiters, owner)
    local claim = text and parse(text)
    if not claim or not look(claim.session).hears then
      leave_queue(owner)
    else
      if not fits(claim) then prune() end
      if not fits(claim) then break end
      leave_queue(owner)
      grant(owner, claim)
      if owner ~= asking then
        redis.call('PUBLISH', sessions .. claim.session, 'grant|' .. owner .. '|' .. claim.token)
      end
    end
    owner = next_owner()
  end
  if owner and owner ~= first and owner ~= asking then
    local claim = parse(redis.call('HGET', waiters, owner))
    redis.call('PUBLISH', sessions .. claim.session, 'next|' .. owner)
  end
end
