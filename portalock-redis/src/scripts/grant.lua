-- The common part of the scripts on one name, besides `prelude.lua`: the clock, and a grant.
--
-- In the keys, an owner is called by the name of its place, which is used only once: see `NamedPlace`.
--
-- KEYS[1]  state    hash: `token` -> the last token, maybe with a shape; owner -> the claim of a holder; and two flags
--
-- The keys of the queue are made from the name of the state when they are needed:
--          queue    sorted set: owner -> place; the smallest place is the first waiter
--          waiters  hash: owner -> the claim of a waiter
--
-- A claim is text: session|weight|capacity|token|since, in milliseconds|who, a JSON object for people. A waiter has a
-- token if nobody of another session can come before it: see `neighbours.rs`. Weight and capacity are its shape. If
-- the last token has a shape, as token|weight|capacity, then all claims in the state have this shape, so their number
-- alone decides whether one more fits. Every grant of less than the whole capacity writes the shape again, the others
-- write the token alone; a release makes neither wrong.
--
-- The flags are fields of the state, so a state that has only its token shows in one call that nobody holds, waits or
-- observes:
--   `waits`    is set when the queue gets its first waiter. It may stay when the queue is empty. If there is no last token,
--              the state is new, and the flag may be missing. Its value is the time of the last check of a waiter that has
--              read several holders, or 1.
--   `watched`  is set while there are observers: its value is the channel to which they have subscribed. The channel gets a
--              message for each grant, and for each release that is not followed by a grant. The first message that nobody
--              receives removes the flag.
--
-- Besides KEYS the scripts read the keys of the queue and of sessions in claims. In a cluster they are in the same slot,
-- and no script runs while the slot moves: see `scripts.rs`.
--
-- A call takes half a microsecond to two microseconds, whatever it does, and an argument a fifth of that. So the scripts
-- combine reads into one call, and read and pass nothing that is not needed. They pass numbers as text, because Redis
-- formats numbers slowly. Definitions take time too: those here a microsecond, and those in `prelude.lua` three. So the
-- usual cases come before both: `acquire_free.lua`, `acquire_behind.lua`, `release_free.lua` and `release_next.lua`.

local call = redis.call
local state = KEYS[1]
local watched

-- The prefix of the key and the channel of every session, and the keys of the queue.
local sessions, queue, waiters
local function find_queue()
  local prefix, kind, name = string.match(state, '^([^/]*/)([^/]*)(.*)$')
  sessions = prefix .. 'session/'
  queue = prefix .. kind .. '-queue' .. name
  waiters = prefix .. kind .. '-waiters' .. name
end

-- The shortest time that a key lives after its last use: in milliseconds, and in microseconds, the unit of tokens and
-- places.
local KEPT, HOUR = 3600000, 3600000000

-- The clock as a number and as text, and the start time of a claim that is written now.
local micros, now, since
local function read_clock()
  if micros then return end
  local time = call('TIME')
  micros = time[1] * 1000000 + time[2]
  now = time[1] .. string.sub('00000' .. time[2], -6)
  since = string.sub(now, 1, -4)
end

-- A session is alive if its key exists, and for a `connected` session its subscription too. The value of the key is the
-- session's stamp, `kept|3` or `connected|3`: its form, and a number that `raise.lua` increments.
local KEPT_FORM = string.byte('k')

-- The number in the last token, with or without a shape.
local function number_of(text)
  return tonumber(text) or tonumber(string.match(text, '^%d+'))
end

-- Tells the observers, or notices that there are none.
local function tell_observers(message)
  if call(PUBLISH, watched, message) == 0 then call('HDEL', state, 'watched') end
end

-- The token after `before`, as a number and as text.
local function next_token(before)
  read_clock()
  if micros > before then return micros, now end
  return before + 1, string.format('%.0f', before + 1)
end

-- The state exists for at least an hour after the clock has passed its last token. A token is the clock or more. So
-- when the key is gone, the clock alone is larger than every token that was granted, even if the clock was changed in
-- between. The first token in each `SPAN` of tokens sets the time to live to two hours; so at the other tokens, at least
-- one hour is left. Tokens of one span have the same first seven digits, so that texts can be compared.
local SPAN = 1000000000
local function outlive(before, last)
  if before < last - last % SPAN then
    call('PEXPIREAT', state, string.format('%.0f', math.floor(last / 1000) + 2 * KEPT))
  end
end

-- Writes a grant and returns the last token as a number, and the owner's as text. `before` is the last token, `head`
-- the beginning of the claim (session and shape), and `alike` the shape that all holders have from now on, if they have
-- the same. `own` is the token that the owner got while it waited, or ''.
local function write_grant(before, owner, head, who, alike, own)
  local last, token
  if own == '' then
    last, token = next_token(before)
  else
    read_clock()
    -- The last token is smaller only if the key was deleted from outside.
    last, token = math.max(before, tonumber(own)), own
  end
  local claim = head .. '|' .. token .. '|' .. since .. '|' .. who
  local latest = own == '' and token or string.format('%.0f', last)
  call('HSET', state, 'token', alike and latest .. '|' .. alike or latest, owner, claim)
  if watched then tell_observers('+' .. owner .. '|' .. claim) end
  outlive(before, last)
  return last, token
end
