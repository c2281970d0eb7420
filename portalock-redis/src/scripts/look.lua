-- Checks whether places still exist. If a holder stays for long, this also keeps the state alive.
--
-- KEYS  the state and the waiters of each name   ARGV  the places, in the same order
--
-- Answers for each place its token if it holds, 'waits|' and maybe a token if it waits, or 'gone'. A waiter's token counts
-- only while its session holds the lock: otherwise somebody has deleted a key, and another session may be next.

local KEPT = 3600000
local time = redis.call('TIME')
local millis = time[1] * 1000 + math.floor(time[2] / 1000)

-- Also if another program has replaced the key.
local function is_held_in(session, state)
  for _, text in ipairs(redis.pcall('HGETALL', state)) do
    if string.sub(text, 1, #session + 1) == session .. '|' then return true end
  end
  return false
end

local answer = {}
for i, place in ipairs(ARGV) do
  local state, waiters = KEYS[2 * i - 1], KEYS[2 * i]
  -- Another program may have replaced the key by now. Then the place does not exist.
  local found = redis.pcall('HMGET', state, place, 'token')
  local token = found[1] and found[2] and string.match(found[1], '^%x+|%d+|%d+|(%d+)|')
  if token then
    answer[i] = token
    if redis.call('PTTL', state) < KEPT / 2 then
      -- The same calculation as in `write_grant`.
      local from = math.max(millis, math.floor(tonumber(string.match(found[2], '^%d+')) / 1000))
      redis.call('PEXPIREAT', state, string.format('%.0f', from + KEPT))
    end
  else
    local waits = redis.pcall('HGET', waiters, place)
    answer[i] = type(waits) == 'string' and 'waits|' or 'gone'
    local session, own = string.match(type(waits) == 'string' and waits or '', '^(%x+)|%d+|%d+|(%d+)|')
    if session and is_held_in(session, state) then answer[i] = 'waits|' .. own end
  end
end
return answer
