-- The way that most releases go, before anything else is even defined: nobody waits. Any other goes on to `release.lua`.

local call = redis.call
local freed = call('HDEL', KEYS[1], ARGV[2])
local first = call('ZRANGE', KEYS[2], 0, 0)[1]
if freed == 1 and not first then return '1' end
