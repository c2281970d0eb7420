-- How messages are sent and subscribers counted in a slot of a cluster: by the node that serves the slot. Elsewhere `server.lua`
-- stands here.

local PUBLISH, NUMSUB = 'SPUBLISH', 'SHARDNUMSUB'
