-- Gives a session its next stamp, so that a command with an earlier stamp is void when it arrives. A client does this
-- before it withdraws a place for which a request got no answer.
--
-- KEYS[1]  the session's own key   ARGV[1]  how long it lives without a refresh, in milliseconds
--
-- Answers the stamp, or '' if the session has ended.

-- A key that is gone must not be set again: a script that did not find it may have granted this session's locks to
-- another owner. `PEXPIRE` comes first because it needs no memory, and a script that has written once may write again
-- even if the memory is full.
if redis.call('PEXPIRE', KEYS[1], ARGV[1]) == 0 then return '' end
local form, number = string.match(redis.call('GET', KEYS[1]), '^(%a+)|(%d+)$')
local stamp = form .. '|' .. string.format('%.0f', number + 1)
redis.call('SET', KEYS[1], stamp, 'PX', ARGV[1])
return stamp
