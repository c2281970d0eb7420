-- The common part of the scripts on one name, besides `grant.lua`: claims as tables, liveness of sessions, and the
-- queue, which is served in its order.

local function whole(number)
  return string.format('%.0f', number)
end

local function parse(text)
  local session, shape, weight, capacity, token, since, who =
    string.match(text, '^(%x+)|((%d+)|(%d+))|(%d*)|(%d+)|(.*)$')
  if not session then
    error({ err = 'CORRUPT the claim of a lock is not one that portalock wrote' })
  end
  return {
    session = session,
    shape = shape,
    weight = tonumber(weight),
    capacity = tonumber(capacity),
    token = token,
    since = since,
    who = who,
  }
end

local function pack(claim)
  return table.concat({ claim.session, claim.shape, claim.token, claim.since, claim.who }, '|')
end

-- Whether sessions are alive, by the rule in `grant.lua`. A `connected` session must be subscribed *now*: Redis ends a
-- subscription together with its connection, before it runs the next command.
local seen = {}

-- The number of arguments of one call. It is below Lua's limit, with a margin.
local AT_ONCE = 1000

local function look_at(asked)
  for from = 1, #asked, AT_ONCE do
    local keys, connected = {}, {}
    for i = from, math.min(from + AT_ONCE - 1, #asked) do
      keys[#keys + 1] = sessions .. asked[i]
    end
    local stamps = call('MGET', unpack(keys))
    for i, stamp in ipairs(stamps) do
      seen[asked[from + i - 1]] = stamp and true
      if stamp and string.byte(stamp) ~= KEPT_FORM then connected[#connected + 1] = keys[i] end
    end
    if #connected > 0 then
      local counts = call('PUBSUB', NUMSUB, unpack(connected))
      for i = 1, #counts, 2 do
        seen[string.sub(counts[i], #sessions + 1)] = counts[i + 1] > 0
      end
    end
  end
end

local function look(session)
  if seen[session] == nil then look_at({ session }) end
  return seen[session]
end

-- The current holders, as last read or written. `alike` is the shape of all holders: nil if there are none, false if
-- they differ.
local last, holders, used, limit, alike = 0, {}, 0, nil, nil

local function add(claim)
  if alike == nil then alike = claim.shape end
  if alike ~= claim.shape then alike = false end
  used = used + claim.weight
  limit = math.min(claim.capacity, limit or claim.capacity)
end

local function count()
  used, limit, alike = 0, nil, nil
  for _, claim in pairs(holders) do add(claim) end
end

local function read(fields)
  for i = 1, #fields, 2 do
    if fields[i] == 'token' then
      last = number_of(fields[i + 1])
    elseif fields[i] == 'watched' then
      watched = fields[i + 1]
    elseif fields[i] ~= 'waits' then
      holders[fields[i]] = parse(fields[i + 1])
    end
  end
  count()
end

local function fits(claim)
  return used + claim.weight <= math.min(claim.capacity, limit or claim.capacity)
end

-- Removes dead holders. Only called when a waiter would have to wait for them.
local pruned = false
local function prune()
  if pruned then return end
  pruned = true
  local unknown = {}
  for _, claim in pairs(holders) do
    if seen[claim.session] == nil then
      seen[claim.session] = true
      unknown[#unknown + 1] = claim.session
    end
  end
  look_at(unknown)
  for owner, claim in pairs(holders) do
    if not look(claim.session) then
      call('HDEL', state, owner)
      holders[owner] = nil
    end
  end
  count()
end

local has_granted = false
local function grant(owner, claim)
  has_granted = true
  holders[owner] = claim
  add(claim)
  -- The shape is only of use to those who share.
  local shape = claim.weight ~= claim.capacity and alike
  last, claim.token = write_grant(last, owner, claim.session .. '|' .. claim.shape, claim.who, shape, claim.token)
  claim.since = since
end

local function next_owner()
  return call('ZRANGE', queue, '0', '0')[1]
end

local function last_owner()
  return call('ZRANGE', queue, '-1', '-1')[1]
end

local function leave_queue(owner)
  call('HDEL', waiters, owner)
  call('ZREM', queue, owner)
end

-- The number of waiters that get a token at once.
local NEXT_AT_ONCE = 64

-- Gives a token to each waiter right behind the new holder, up to the first that is of another session or shares: see
-- `neighbours.rs`. Returns their names and tokens, for the holder's message.
local function give_tokens(holder)
  if holder.weight ~= holder.capacity then return '' end
  local names = call('ZRANGE', queue, '0', whole(NEXT_AT_ONCE - 1))
  if #names == 0 then return '' end
  local texts = call('HMGET', waiters, unpack(names))
  local told, written, before = {}, {}, last
  for i, name in ipairs(names) do
    local claim = texts[i] and parse(texts[i])
    if not claim or claim.session ~= holder.session or claim.weight ~= claim.capacity or claim.token ~= '' then break end
    last, claim.token = next_token(last)
    told[i] = '|' .. name .. '|' .. claim.token
    written[2 * i - 1], written[2 * i] = name, pack(claim)
  end
  if #told > 0 then
    call('HSET', waiters, unpack(written))
    call('HSET', state, 'token', whole(last))
    outlive(before, last)
  end
  return table.concat(told)
end

-- Serves the queue in its order, as long as the first waiter can be granted. Dead waiters are removed. Every waiter
-- learns of its grant by a message to its session, even the owner of the attempt that runs this. That attempt may have
-- arrived late from a connection that has ended: then its answer is lost, and the waiter may already have an answer
-- from another connection.
--
-- Starts with `owner`, the first waiter, and `text`, its claim if it was read. The client of the owner `knows` knows of
-- the grant already. Returns whether other owners must wait now.
local function serve(owner, text, knows)
  while owner do
    text = text or call('HGET', waiters, owner)
    local claim = text and parse(text)
    if not claim or not look(claim.session) then
      leave_queue(owner)
    else
      if not fits(claim) then prune() end
      if not fits(claim) then return true end
      leave_queue(owner)
      grant(owner, claim)
      local others = give_tokens(claim)
      if owner ~= knows or others ~= '' then
        call(PUBLISH, sessions .. claim.session, 'grant|' .. owner .. '|' .. claim.token .. others)
      end
      -- This owner is alive and leaves no capacity, so no other waiter needs a check.
      if claim.weight >= limit then return true end
    end
    owner, text = next_owner(), nil
  end
  return false
end
