-- What the scripts on one name share, and all that the usual ways need: the clock, a session's life, a grant.
--
-- An owner is called by the name of its place, which it takes once: see `place.rs`.
--
-- KEYS[1]  state    hash: `token` -> the last token, maybe with a shape; owner -> the claim of one who holds
-- KEYS[2]  queue    sorted set: owner -> place, the smallest is next
-- KEYS[3]  waiters  hash: owner -> the claim of one who waits
-- ARGV[1]  what the key and the channel of every session begin with
--
-- A claim is text: session|weight|capacity|token|since in milliseconds|who, a JSON object for people. Weight and capacity are
-- its shape. A last token with a shape, token|weight|capacity, says that all claims in the state have that one, so that
-- their number alone tells whether one more fits. Every grant writes it anew; who leaves makes it no less true.
--
-- Observers listen on a channel with the name of the state: of each grant, and of a release that nobody is granted after.
--
-- Besides KEYS the scripts read `ARGV[1] .. session` of the sessions that they meet in claims. Those can't be declared
-- beforehand: in a cluster they lie in the same slot, and no script runs while that moves. See `scripts.rs`.
--
-- A call takes half a microsecond to two, whatever it does: so what can be asked at once is, and nothing is asked that nobody
-- needs. Numbers are given to it as text, which spares it the slow way that Redis writes them. To define all of
-- `prelude.lua` takes three microseconds: so the ways that nearly every script goes come before it, in `..._usual.lua`.

local call = redis.call
local state, queue, waiters = KEYS[1], KEYS[2], KEYS[3]
local sessions = ARGV[1]

-- How long a key outlives its last use at least, in milliseconds; and the same in microseconds, as tokens and places count.
local KEPT, HOUR = 3600000, 3600000000

-- A number, and as text; since when a claim is that is written now.
local micros, now, since
local function read_clock()
  if micros then return end
  local time = call('TIME')
  micros = time[1] * 1000000 + time[2]
  now = string.format('%.0f', micros)
  since = string.sub(now, 1, -4)
end

-- Whether a session lives: its key is there, and if it is a `connected` one, its subscription too. What the key holds is the
-- session's stamp, `kept|3` or `connected|3`: its form, and a number that `raise.lua` moves on.
local KEPT_FORM = string.byte('k')
local function lives(session)
  local key = sessions .. session
  local stamp = call('GET', key)
  return stamp and (string.byte(stamp) == KEPT_FORM or call('PUBSUB', NUMSUB, key)[2] > 0)
end

-- The number in a last token.
local function number_of(text)
  return tonumber(text) or tonumber(string.match(text, '^%d+'))
end

-- Writes a grant, `before` being the last token: answers the new one, as a number and as text. `head` is what a claim
-- begins with, session and shape; `alike` the shape that all who hold have from now on, if they have one.
--
-- Keeps the state for at least an hour after the clock has passed its last token. A token is the clock or more, so once the
-- key is gone the clock alone is above every token that was granted, however it was set in between. Its time is moved on
-- by the first grant of each hour of tokens, and then for two: the others have an hour left with it.
local function write_grant(before, owner, head, who, alike)
  read_clock()
  local last, token = micros, now
  if last <= before then
    last = before + 1
    token = string.format('%.0f', last)
  end
  local claim = head .. '|' .. token .. '|' .. since .. '|' .. who
  call('HSET', state, 'token', alike and token .. '|' .. alike or token, owner, claim)
  call(PUBLISH, state, '+' .. owner .. '|' .. claim)
  if math.floor(before / HOUR) ~= math.floor(last / HOUR) then
    call('PEXPIREAT', state, string.format('%.0f', math.floor(last / 1000) + 2 * KEPT))
  end
  return last, token
end
