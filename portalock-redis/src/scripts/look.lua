-- A session's sign of life, and a look whether what it holds is still there.
--
-- KEYS[1]  the session's own key   KEYS[2]  the marks on what it holds   KEYS[3...]  the states of names that it holds
-- ARGV[1]  how long it lives, in milliseconds            ARGV[2...]  the owners that hold them, in the same order
--
-- Answers {'alive', {an owner whose lock was broken, by whom, ...}, {those owners whose claim somebody has removed, ...}}, or
-- {'ended', {}, {}}.

-- Moved on, never set again: whoever found it missing may have granted what this session held to another.
if redis.call('PEXPIRE', KEYS[1], ARGV[1]) == 0 then return { 'ended', {}, {} } end

local KEPT = 3600000
local time = redis.call('TIME')
local millis = time[1] * 1000 + math.floor(time[2] / 1000)

local removed = {}
for i = 3, #KEYS do
  local owner = ARGV[i - 1]
  -- Something else may lie there by now, which is no reason to let the session end.
  local found = redis.pcall('HMGET', KEYS[i], owner, 'token')
  if found.err or not found[1] or not found[2] then
    removed[#removed + 1] = owner
  elseif redis.call('PTTL', KEYS[i]) < KEPT / 2 then
    -- Held for long: as `keep_state` counts.
    local from = math.max(millis, math.floor(tonumber(string.match(found[2], '^%d+')) / 1000))
    redis.call('PEXPIREAT', KEYS[i], string.format('%.0f', from + KEPT))
  end
end
return { 'alive', redis.call('HGETALL', KEYS[2]), removed }
