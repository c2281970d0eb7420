-- Opens a session, and ends those that its client has given up.
--
-- KEYS[1]  the session's own key   KEYS[2...]  those of the sessions that it follows
-- ARGV[1]  its first stamp          ARGV[2]  how long it lives unrefreshed, in milliseconds
--
-- The subscription comes before this script: the key of a `connected` session without one always means that it has ended.

-- Says what the user lacks before a lock depends on it. Inside a script Redis 7 reports a missing permission as a bare
-- `ERR`; here the code is ours. Earlier versions have no way to ask.
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
