-- Many attempts and releases of one client, one after the other. Each has the effect and the answer of its own script.
-- The files of those scripts are the functions `acquire` and `release` here, with their KEYS and ARGV as parameters.
--
-- The most frequent attempts and releases are done without these functions: those of `acquire_free.lua` and
-- `release_free.lua`. What is the same for all attempts is passed, read and made only once.
--
-- KEYS     the state of each request, and then the session's own key if there are attempts
-- ARGV[1]  a letter for each request: q for an attempt that takes a place in the queue, o for one that does not, and r for
--          a release. The owners follow, and then what all attempts have: the stamp of the session's key, the
--          beginning of the claim, and the holder. An attempt is for the whole capacity.
--
-- Answers the token of all free locks that were granted, and for each request that was not one of those most frequent
-- ones its number and its answer. The answer is missing if the request failed, as some of it may have been done. A failure is
-- always caught, so each request has an answer, whatever happens to the others.

local ask, letter_of = redis.pcall, string.byte
local QUEUES, RELEASES = 113, 114
local letters = ARGV[1]
local size = #letters
local session, stamp, head, who = KEYS[size + 1], ARGV[size + 2], ARGV[size + 3], ARGV[size + 4]
local now, span, claim = '', '', nil
if stamp and letter_of(stamp) == 107 and ask('GET', session) == stamp then -- `kept`
  local time = redis.call('TIME')
  now = time[1] .. string.sub('00000' .. time[2], -6)
  span = string.sub(now, 1, 7)
  claim = head .. '|' .. now .. '|' .. string.sub(now, 1, -4) .. '|' .. who
end

local answers = { now }
for i = 1, size do
  local state, owner, letter = KEYS[i], ARGV[i + 1], letter_of(letters, i)
  local fields, is_done
  if letter == RELEASES then
    is_done = ask('HLEN', state) == 2 and ask('HDEL', state, owner) == 1
  elseif claim then
    fields = ask('HGETALL', state)
    local before = #fields == 2 and fields[2]
    -- As in `acquire_free.lua`.
    if before and #before == #now and before < now and before > span then
      is_done = ask('HSET', state, 'token', now, owner, claim) == 1
    end
  end
  if not is_done then
    local answered, answer
    if letter == RELEASES then
      answered, answer = pcall(release, { state }, { owner })
    else
      local patience = letter ~= QUEUES and 'once' or nil
      local read = fields and #fields > 0 and fields
      answered, answer = pcall(acquire, { state, session }, { owner, stamp, head, who, patience, fields = read })
    end
    local last = #answers
    answers[last + 1], answers[last + 2] = i, answered and answer
  end
end
return answers
