-- The commands that send messages and count subscribers in a slot of a cluster, at the node that serves the slot. On a
-- single server, `server.lua` replaces this file.

local PUBLISH, NUMSUB = 'SPUBLISH', 'SHARDNUMSUB'
