-- Before a hold is ended by force: for how long its client may still rely on it. `release.lua` comes after this, and the
-- owner is the place that was marked.
--
-- When the time in the mark has passed, the client has read the mark, or its session has ended. A failover or a restart may
-- have lost the first mark. Then the present mark has a later time.
--
-- Answers 'wait|milliseconds' if the client may still rely on the hold, and '0' if the place holds nothing.
do
  local claim = redis.call('HGET', KEYS[1], ARGV[1])
  if not claim then return '0' end
  local session = string.match(claim, '^(%x+)|')
  local key = session and string.match(KEYS[1], '^[^/]*/') .. 'session/' .. session
  local left = key and redis.call('PTTL', key) or -2
  if left ~= -2 then
    local mark = redis.call('HGET', key .. '/broken', ARGV[1])
    if mark then
      local time = redis.call('TIME')
      left = string.match(mark, '^%d+') - time[1] * 1000 - math.floor(time[2] / 1000)
    end
    if not mark or left > 0 then return string.format('wait|%.0f', math.max(left, 1)) end
  end
end
