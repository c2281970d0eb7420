-- How messages are sent and subscribers counted on a server of its own. In a cluster `slot.lua` stands here.

local PUBLISH, NUMSUB = 'PUBLISH', 'NUMSUB'
