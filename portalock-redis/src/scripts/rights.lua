-- The answer if the user has no permission for one of these commands, or nil. Inside a script, Redis 7 reports a missing
-- permission as a bare `ERR`; this answer has a code. Earlier versions have no such check.
local function refusal(commands)
  for _, command in ipairs(redis.acl_check_cmd and commands or {}) do
    if not redis.acl_check_cmd(unpack(command)) then
      return redis.error_reply('NOPERM this user has no permission for ' .. command[1])
    end
  end
end
