-- Gives a session its next stamp, so that whatever its client sent with an earlier one is void when it arrives. A client does
-- this on each new connection of the session's own, and before it withdraws a request that it never heard back about.
--
-- KEYS[1]  the session's own key
-- ARGV[1]  the stamp               ARGV[2]  how long it lives unrefreshed, in milliseconds
--
-- Answers {'alive'}; {'stale', the stamp it has} if that is later; or {'ended'}.

local stamp = redis.call('GET', KEYS[1])
-- Never set again: whoever found it missing may have granted what this session held to another.
if not stamp then return { 'ended' } end

local function number(text)
  return tonumber(string.match(text, '%d+'))
end
if number(stamp) >= number(ARGV[1]) then return { 'stale', stamp } end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return { 'alive' }
