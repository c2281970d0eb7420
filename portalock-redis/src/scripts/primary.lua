-- For how long this server must not grant anything yet, because it has just become the primary.
--
-- This server may lack the last grants and answers of the former primary: it lost its data in a restart, or it is a
-- replica that was promoted before it had the last writes. A server that starts or is promoted takes a new replication
-- id. The first client that then connects to it records the time.
--
-- KEYS[1]  the last known replication id, and since when, as `id|milliseconds`
-- ARGV[1]  how long to wait, in milliseconds
-- ARGV[2]  '1' if enough replicas follow this server, or if none are required
--
-- Answers how many milliseconds are left; or 'unconfirmed' if replicas must follow first. The write of this script lets
-- the client check whether they do.

local KEPT = '2592000000' -- a month after the last connection

local key = KEYS[1]
local refused = refusal({
  { 'INFO', 'server' }, { 'TIME' }, { 'GET', key }, { 'SET', key, 'v' }, { 'PEXPIRE', key, '1' },
})
if refused then return refused end

-- As in `raise.lua`: this connection may be needed for a release, which frees memory.
redis.call('PEXPIRE', key, KEPT)
local info = redis.call('INFO', 'replication')
local id = string.match(info, 'master_replid:(%x+)')
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local known, since = string.match(redis.call('GET', key) or '', '^(%x+)|(%d+)$')
since = tonumber(since)
if known ~= id or since == 0 then
  if since ~= 0 and string.find(info, 'second_repl_offset:-1', 1, true) then
    -- This server has been the primary since it started. Redis counts whole seconds. In a cluster, the slot may come
    -- from a node that was promoted later than that.
    local uptime = tonumber(string.match(redis.call('INFO', 'server'), 'uptime_in_seconds:(%d+)'))
    since = math.max(since or 0, now - math.max(uptime - 1, 0) * 1000)
  else
    since = ARGV[2] == '1' and now or 0
  end
end
-- If the clock was set back, the wait starts now, instead of when the clock has caught up.
since = math.min(since, now)
redis.call('SET', key, id .. '|' .. string.format('%.0f', since), 'PX', KEPT)
if since == 0 then return 'unconfirmed' end
return string.format('%.0f', math.max(since + ARGV[1] - now, 0))
