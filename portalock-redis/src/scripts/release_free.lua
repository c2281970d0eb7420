-- The most frequent releases, before anything is even defined: only the last token is left in the state, so nobody holds,
-- waits or observes; or others share the lock, and nobody waits or observes. All other releases continue in
-- `release_next.lua`.

local call = redis.call
local state, owner = KEYS[1], ARGV[1]
local freed = call('HDEL', state, owner)
local left = call('HLEN', state)
if freed == 1 and left == 1 then return '1' end
local found = call('HMGET', state, 'token', 'waits', 'watched')
if freed == 1 and not found[2] and not found[3] then return '1' end
