-- The most frequent attempt, before anything is even defined, because definitions take longer than calls: an owner asks
-- for the whole capacity, and the state has only the last token, so nobody holds, waits or observes. All other attempts
-- continue in `acquire_behind.lua`; `acquire_usual.lua` handles this case too.
--
-- KEYS and ARGV are the same as in `acquire.lua`. If `batch.lua` has compared the stamp, it also passes the fields of the state
-- as `ARGV.fields`.

local call = redis.call
local state = KEYS[1]
local fields = not ARGV[6] and (ARGV.fields or call('HGETALL', state))
if fields and #fields == 2 then
  local stamp = call('GET', KEYS[2])
  if stamp == ARGV[2] and string.byte(stamp) == 107 then -- `kept`
    local time = call('TIME')
    local now = time[1] .. (#time[2] == 6 and time[2] or string.sub('00000' .. time[2], -6))
    local before = fields[2]
    -- The clock has passed the last token, in the same `SPAN`: then `write_grant` does no more than this. The texts are
    -- compared, because numbers of 16 digits take long to read. A text between the first digits of another one and all of
    -- it begins with these digits.
    if #before == #now and before < now and before > string.sub(now, 1, 7) then
      call('HSET', state, 'token', now, ARGV[1], ARGV[3] .. '|' .. now .. '|' .. string.sub(now, 1, -4) .. '|' .. ARGV[4])
      return now
    end
  end
end
