-- Opens a session, and ends the former sessions of its client.
--
-- KEYS[1]  the session's own key   KEYS[2...]  the keys of the sessions that it replaces
-- ARGV[1]  its first stamp          ARGV[2]  how long it lives without a refresh, in milliseconds
--
-- The client subscribes before this script: so a `connected` session with a key and without a subscription has always
-- ended.

-- Reports a missing permission before a lock depends on it. Inside a script, Redis 7 reports a missing permission as a
-- bare `ERR`; this check returns a code. Earlier versions have no such check.
if redis.acl_check_cmd then
  local key = KEYS[1]
  for _, command in ipairs({
    { 'GET', key }, { 'MGET', key }, { 'EXISTS', key }, { 'PEXPIRE', key, '1' }, { 'PEXPIREAT', key, '1' }, { 'PTTL', key },
    { 'HGET', key, 'f' }, { 'HMGET', key, 'f' }, { 'HSET', key, 'f', 'v' }, { 'HSETNX', key, 'f', 'v' },
    { 'HDEL', key, 'f' }, { 'HGETALL', key }, { 'HLEN', key },
    { 'ZADD', key, '1', 'm' }, { 'ZREM', key, 'm' }, { 'ZRANGE', key, '0', '0' }, { 'ZREVRANK', key, 'm' },
    { 'TIME' }, { PUBLISH, key, 'm' }, { 'PUBSUB', NUMSUB, key },
  }) do
    if not redis.acl_check_cmd(unpack(command)) then
      return redis.error_reply('NOPERM this user has no permission for ' .. command[1])
    end
  end
end

for i = 2, #KEYS do
  redis.call('DEL', KEYS[i])
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return '1'
