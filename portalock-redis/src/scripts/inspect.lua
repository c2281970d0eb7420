-- The holders and the waiters, without dead owners. This only reads, unless an observer asks.
--
-- ARGV[1]  the channel to which an observer has subscribed, if one asks: see the flags in `grant.lua`
--
-- Answers {last token that was granted, the number of holders, owner, weight, token, since, who, ..., the same for the waiters}.

find_queue()
read(redis.call('HGETALL', state))
if ARGV[1] and watched ~= ARGV[1] then
  call('HSET', state, 'watched', ARGV[1])
  -- A new key has no time to live.
  if call('PTTL', state) < 0 then call('PEXPIRE', state, 2 * KEPT) end
end
local answer = { whole(last), 0 }

local function tell(owner, claim)
  answer[#answer + 1] = owner
  answer[#answer + 1] = whole(claim.weight)
  answer[#answer + 1] = claim.token
  answer[#answer + 1] = claim.since
  answer[#answer + 1] = claim.who
end

-- Holders are listed in the order of their grants.
local living = {}
for owner, claim in pairs(holders) do
  if look(claim.session) then living[#living + 1] = owner end
end
table.sort(living, function(a, b) return tonumber(holders[a].token) < tonumber(holders[b].token) end)
for _, owner in ipairs(living) do tell(owner, holders[owner]) end
answer[2] = whole(#living)

for _, owner in ipairs(redis.call('ZRANGE', queue, 0, -1)) do
  local text = redis.call('HGET', waiters, owner)
  if text then
    local claim = parse(text)
    -- A waiter has no token for others: it has not been granted. So the last one that was granted is the holder's.
    if claim.token ~= '' then
      for _, holder in pairs(holders) do answer[1] = holder.token end
      claim.token = ''
    end
    if look(claim.session) then tell(owner, claim) end
  end
end
return answer
