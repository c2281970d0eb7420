-- The commands that send messages and count subscribers on a single server. In a cluster, `slot.lua` replaces this
-- file.

local PUBLISH, NUMSUB = 'PUBLISH', 'NUMSUB'
