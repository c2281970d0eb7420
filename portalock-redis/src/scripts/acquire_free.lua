-- The two ways that nearly every attempt goes, before anything else is even defined: the lock is free, or others hold it and
-- others wait. Any other attempt goes on to `acquire.lua`, which could do these two as well, and takes twice as long.
--
-- KEYS and ARGV are those of `acquire.lua`. What was read here is not read there again.

local call = redis.call
-- As in `prelude.lua`.
local KEPT, HOUR_OF_TOKENS = 3600000, 3600000000
local fields = call('HGETALL', KEYS[1])
local first = call('ZRANGE', KEYS[2], 0, 0)[1]

-- `token` is the first field that is written, but nothing depends on their order.
local holder, is_held
for i = 1, #fields, 2 do
  if fields[i] ~= 'token' then holder = fields[i + 1] end
  if fields[i] == ARGV[3] then is_held = true end
end

local function session_lives()
  return call('MGET', KEYS[4])[1] and call('PUBSUB', 'NUMSUB', KEYS[4])[2] > 0
end

-- Free: as `grant` does it.
if not holder and not first and tonumber(ARGV[4]) <= tonumber(ARGV[5]) then
  if not session_lives() then return { 'ended' } end
  local time = call('TIME')
  local micros = time[1] * 1000000 + time[2]
  local before = tonumber(fields[2] or 0)
  local last = math.max(before + 1, micros)
  local token = string.format('%.0f', last)
  local since = string.format('%.0f', math.floor(micros / 1000))
  call('HSET', KEYS[1], 'token', token, ARGV[3],
    table.concat({ ARGV[2], ARGV[4], ARGV[5], token, since, ARGV[7] }, '|'))
  if math.floor(before / HOUR_OF_TOKENS) ~= math.floor(last / HOUR_OF_TOKENS) then
    call('PEXPIREAT', KEYS[1], string.format('%.0f', math.floor(last / 1000) + 2 * KEPT))
  end
  return { 'granted', token }
end

-- Behind others: whoever is the last in the queue looks after all of them, soon, and this one is the last from now on.
if holder and first and not is_held and ARGV[6] == '1' then
  if not session_lives() then return { 'ended' } end
  local time = call('TIME')
  local since = string.format('%.0f', math.floor((time[1] * 1000000 + time[2]) / 1000))
  local claim = table.concat({ ARGV[2], ARGV[4], ARGV[5], '', since, ARGV[7] }, '|')
  if call('HSETNX', KEYS[3], ARGV[3], claim) == 1 then
    local back = call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2]
    call('ZADD', KEYS[2], string.format('%.0f', back + 1), ARGV[3])
    if call('PTTL', KEYS[2]) < KEPT / 2 then
      call('PEXPIRE', KEYS[2], KEPT)
      call('PEXPIRE', KEYS[3], KEPT)
    end
    return { 'contended', '0', holder }
  end
end
