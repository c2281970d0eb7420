-- Marks the hold of an owner as broken, and asks its session to refresh. Its client finds the mark with the next
-- refresh at the latest, tells the guard, and releases: see `breaking.rs`. A client that does not know the place releases
-- it too: then the server has lost an earlier release.
--
-- KEYS[1]  the state of the name
-- ARGV[1]  owner   ARGV[2]  who breaks the lock, as JSON
--
-- Answers 'time|number': how long the session lives without another refresh, in milliseconds, because each later refresh
-- finds the mark; and the number of the place, because the owner's next place has another one. Answers '-' if the owner does
-- not hold the lock.
--
-- A mark is text: until when the session lives without another refresh, in milliseconds|who, a JSON object.

local KEPT = 3600000
local claim = redis.call('HGET', KEYS[1], ARGV[1])
local session = claim and string.match(claim, '^(%x+)|')
if not session then return '-' end
local number = string.match(ARGV[1], '%.(.*)$')

local key = string.match(KEYS[1], '^[^/]*/') .. 'session/' .. session
local left = redis.call('PTTL', key)
-- The session has ended: no client relies on its claims.
if left == -2 then return '0|' .. number end
if left == -1 then left = KEPT end

local time = redis.call('TIME')
local ends = time[1] * 1000 + math.ceil(time[2] / 1000) + left
local marks = key .. '/broken'
redis.call('HSETNX', marks, ARGV[1], string.format('%.0f', ends) .. '|' .. ARGV[2])
redis.call('PEXPIRE', marks, string.format('%.0f', left + KEPT))
redis.call(PUBLISH, key, 'broken|' .. ARGV[1] .. '|' .. KEYS[1])
return string.format('%.0f', left) .. '|' .. number
