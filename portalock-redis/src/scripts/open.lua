-- Opens a session, and ends the former sessions of its client.
--
-- KEYS[1]  the session's own key   KEYS[2...]  the keys of the sessions that it replaces
-- ARGV[1]  its first stamp          ARGV[2]  how long it lives without a refresh, in milliseconds
--
-- The client subscribes before this script: so a `connected` session with a key and without a subscription has always
-- ended.

-- A missing permission is reported before a lock depends on it.
local key = KEYS[1]
local refused = refusal({
  { 'GET', key }, { 'MGET', key }, { 'EXISTS', key }, { 'SET', key, 'v' }, { 'DEL', key },
  { 'PEXPIRE', key, '1' }, { 'PEXPIREAT', key, '1' }, { 'PTTL', key },
  { 'HGET', key, 'f' }, { 'HMGET', key, 'f' }, { 'HSET', key, 'f', 'v' }, { 'HSETNX', key, 'f', 'v' },
  { 'HDEL', key, 'f' }, { 'HGETALL', key }, { 'HLEN', key },
  { 'ZADD', key, '1', 'm' }, { 'ZREM', key, 'm' }, { 'ZRANGE', key, '0', '0' }, { 'ZREVRANK', key, 'm' },
  { 'TIME' }, { PUBLISH, key, 'm' }, { 'PUBSUB', NUMSUB, key },
})
if refused then return refused end

for i = 2, #KEYS do
  redis.call('DEL', KEYS[i])
end
redis.call('SET', key, ARGV[1], 'PX', ARGV[2])
return '1'
