-- One attempt: grants the lock if possible, or else adds a place to the queue if requested. It is also the check of a
-- waiter: it finds the waiter's place again, and removes dead owners.
--
-- KEYS[2]  the session's own key
-- ARGV[1]  owner
-- ARGV[2]  the stamp of the session's key, as the client knew it when it sent this
-- ARGV[3]  the beginning of the claim: session|weight|capacity   ARGV[4]  the holder, as JSON
-- ARGV[5]  'once' to take no place in the queue                  ARGV[6]  'shares' if it is less than the capacity
--
-- Answers the token if it grants; or {'contended', how many wait behind, the claim of one owner in the way}, {'ended'},
-- or {'stale', the session's current stamp}. If this owner has no place, the number behind is '-'. If it has a token
-- while it waits, the answer also has the owner right ahead and this token.

local refused = refusal()
if refused then return refused end

local session, shape, weight, capacity = string.match(asked, '^(%x+)|((%d+)|(%d+))$')
local queues = ARGV[5] ~= 'once'
local claim = {
  session = session,
  shape = shape,
  weight = tonumber(weight),
  capacity = tonumber(capacity),
  token = '',
  who = who,
}

find_queue()
fields = fields or call('HGETALL', state)
read(fields)

-- Sets the flag that there are waiters.
local function flag_waits()
  if waits then return end
  waits = true
  call('HSET', state, 'waits', '1')
  if #fields == 0 then call('PEXPIRE', state, 2 * KEPT) end
end

-- Adds the owner, which has no place, to the end of the queue, and returns how many wait behind it. It gets a token if the
-- last waiter, or the only holder if there is no waiter, is a neighbour with a token: see `neighbours.rs`.
--
-- The waiters key may still have a claim of this owner, if the queue key was deleted from outside. Its token is void.
local function line_up()
  read_clock()
  local back = call('ZRANGE', queue, '-1', '-1', 'WITHSCORES')
  local text = back[1] and call('HGET', waiters, back[1])
  local ahead = text and parse(text)
  if not back[1] then ahead = select(2, next(holders)) end
  local before, token = last, ''
  if ahead and ahead.session == session and ahead.weight == ahead.capacity and ahead.token ~= '' and not found then
    last, token = next_token(before)
  end
  call('HSET', waiters, owner, asked .. '|' .. token .. '|' .. since .. '|' .. who)
  call('ZADD', queue, whole(math.max(micros, (tonumber(back[2]) or 0) + 1)), owner)
  flag_waits()
  if token ~= '' then
    call('HSET', state, 'token', token)
    outlive(before, last)
  end
  return '0'
end

local first = next_owner()
local waiting, first_text
if first then
  local texts = call('HMGET', waiters, owner, first)
  waiting, first_text = texts[1], texts[2]
  -- The flag was deleted from outside, with the state.
  flag_waits()
elseif waits then
  waits = false
  call('HDEL', state, 'waits')
end

-- Checks together all sessions that matter: the session of the first waiter; and those of the holders, if the first
-- waiter (or this owner, if there is none) does not fit.
local deciding = {}
local first_claim = first_text and parse(first_text)
if first_claim and first_claim.session ~= session then deciding[1] = first_claim.session end
if not fits(first_claim or claim) then
  local known = { [session] = true }
  if deciding[1] then known[deciding[1]] = true end
  for _, holder in pairs(holders) do
    if not known[holder.session] then
      known[holder.session] = true
      deciding[#deciding + 1] = holder.session
    end
  end
end
seen[session] = true
look_at(deciding)

local must_wait = serve(first, first_text)
-- Or the owner already held the lock: an answer was lost, or a grant crossed this attempt. The claim has been in the state
-- all the time, so no other owner was granted meanwhile.
if holders[owner] then return holders[owner].token end

-- A release or a withdrawal can be lost with a server's last writes or in a failover. Then nothing would end this claim
-- while its session lives, and the first waiter keeps all others waiting for as long as anybody holds. So this asks the
-- clients of such owners, and a client releases a place that it doesn't know.
local function ask_client(place, claim)
  call(PUBLISH, sessions .. claim.session, 'asked|' .. place .. '|' .. state)
end

local behind = '-'
if waiting then
  -- The last waiter often checks whether the holders are alive. If it has died, the waiter ahead of it takes over, and is
  -- told, unless it is this owner. It may also have withdrawn.
  local tail, has_changed = last_owner(), false
  while tail and tail ~= owner do
    local text = call('HGET', waiters, tail)
    local its = text and parse(text)
    if its and look(its.session) then
      if has_changed then call(PUBLISH, sessions .. its.session, 'last|' .. tail) end
      ask_client(tail, its)
      break
    end
    leave_queue(tail)
    tail, has_changed = last_owner(), true
  end
  local rank = call('ZREVRANK', queue, owner)
  if rank then behind = whole(rank) elseif queues then behind = line_up() end
else
  if not must_wait then
    read_clock()
    if not fits(claim) or last < micros - micros % HOUR then prune() end
    if fits(claim) then
      grant(owner, claim)
      return claim.token
    end
  end
  if queues then behind = line_up() end
end

-- A new key has no time to live: `PTTL` is then negative. Only one of the keys is new if somebody has deleted it.
-- `acquire_behind.lua` does this only for the first new waiter of each hour, so the first leaves the others half an hour.
if behind ~= '-' and math.min(call('PTTL', queue), call('PTTL', waiters)) < 1.5 * KEPT then
  call('PEXPIRE', queue, 2 * KEPT)
  call('PEXPIRE', waiters, 2 * KEPT)
end

-- Asks about holders and the first waiters; and about other holders each time, by the clock. Only each fifth check of the
-- last waiter asks about many, by the clock too: all other attempts can be far more, and as a rule nothing is lost.
read_clock()
local at_once = waiting and behind == '0' and micros % 5 == 0 and 16 or 1
local others = {}
for holder in pairs(holders) do others[#others + 1] = holder end
for i = 1, math.min(#others, at_once) do
  local holder = others[(micros + i) % #others + 1]
  ask_client(holder, holders[holder])
end
local head = must_wait and call('ZRANGE', queue, '0', whole(at_once - 1)) or {}
local texts = #head > 0 and call('HMGET', waiters, unpack(head))
for i, waiter in ipairs(head) do
  if waiter ~= owner and texts[i] then ask_client(waiter, parse(texts[i])) end
end

-- When many holders were read, for `acquire_behind.lua`.
if behind ~= '-' and #others > 1 then call('HSET', state, 'waits', now) end

-- If there is no holder, the first waiter is in the way.
local in_the_way = #others > 0 and holders[others[micros % #others + 1]] or first_claim or claim
in_the_way.since = in_the_way.since or '0'
local answer = { 'contended', behind, pack(in_the_way) }

local text = behind ~= '-' and call('HGET', waiters, owner)
local token = text and parse(text).token or ''
local at = whole(-2 - (tonumber(behind) or 0))
local ahead = token ~= '' and (call('ZRANGE', queue, at, at)[1] or next(holders))
if ahead then
  answer[4], answer[5] = ahead, token
end
return answer
