-- Gives a session its next stamp, so that whatever its client sent with an earlier one is void when it arrives. A client does
-- this before it withdraws a place of which a request is without an answer.
--
-- KEYS[1]  the session's own key   ARGV[1]  how long it lives unrefreshed, in milliseconds
--
-- Answers the stamp, or '' if the session has ended.

-- Never set again: whoever found it missing may have granted what this session held to another. A script that has written
-- once, which this needs no memory for, may go on writing while the memory is full.
if redis.call('PEXPIRE', KEYS[1], ARGV[1]) == 0 then return '' end
local form, number = string.match(redis.call('GET', KEYS[1]), '^(%a+)|(%d+)$')
local stamp = form .. '|' .. string.format('%.0f', number + 1)
redis.call('SET', KEYS[1], stamp, 'PX', ARGV[1])
return stamp
