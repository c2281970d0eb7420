-- One attempt: grants if it can, else keeps a place in the queue if asked to. It is the waiter's tick as well, since it
-- finds the place again and takes out whoever died.
--
-- KEYS[4]  the session's own key
-- ARGV[2]  session   ARGV[3]  owner   ARGV[4]  weight   ARGV[5]  capacity
-- ARGV[6]  '1' to keep a place in the queue   ARGV[7]  who, as JSON
-- ARGV[8]  the stamp that the session's key had, as far as its client knew when it sent this
--
-- Answers {'granted', token}, {'contended', how many wait behind, the claim of one in the way}, with '-' if it has no place
-- itself, {'ended'}, or {'stale', the session's present stamp}.

local refused = refusal()
if refused then return refused end

local session, owner = ARGV[2], ARGV[3]
local claim = {
  session = session,
  shape = shape,
  weight = tonumber(ARGV[4]),
  capacity = tonumber(ARGV[5]),
  token = '',
  who = ARGV[7],
}

read(fields)
local first = next_owner()
local waiting, first_text
if first then
  local texts = call('HMGET', waiters, owner, first)
  waiting, first_text = texts[1], texts[2]
end

-- Everyone whose life decides, looked at together: who is next, and the holders if that one or who asks would wait.
local deciding = {}
local first_claim = first_text and parse(first_text)
if first_claim and first_claim.session ~= session then deciding[1] = first_claim.session end
if not fits(first_claim or claim) then
  local known = { [session] = true }
  if deciding[1] then known[deciding[1]] = true end
  for _, holder in pairs(holders) do
    if not known[holder.session] then
      known[holder.session] = true
      deciding[#deciding + 1] = holder.session
    end
  end
end
seen[session] = true
look_at(deciding)

-- It holds already: an answer was lost, or a grant crossed with this attempt. The claim has been there all the time, so nobody else
-- was granted meanwhile.
if holders[owner] then return { 'granted', holders[owner].token } end

local must_wait = serve(first, first_text)
if holders[owner] then return { 'granted', holders[owner].token } end

local behind = '-'
if waiting then
  -- The last one in the queue looks often whether the holders live: if it has died, the one before it takes its part.
  local tail = last_owner()
  while tail and tail ~= owner do
    local text = call('HGET', waiters, tail)
    if text and look(parse(text).session) then break end
    leave_queue(tail)
    tail = last_owner()
  end
  local rank = call('ZREVRANK', queue, owner)
  if rank then behind = whole(rank) elseif ARGV[6] == '1' and line_up(last_place()) then behind = '0' end
else
  if not must_wait then
    if not fits(claim) then prune() end
    if fits(claim) then
      grant(owner, claim)
      return { 'granted', claim.token }
    end
  end
  if ARGV[6] == '1' and line_up(last_place()) then behind = '0' end
end

-- A new key has no time to live yet, which counts as less than none.
if behind ~= '-' and call('PTTL', queue) < KEPT / 2 then
  call('PEXPIRE', queue, KEPT)
  call('PEXPIRE', waiters, KEPT)
end

-- A release can be lost, with a server's last writes or in a failover: then nobody would end this claim while its session lives.
-- So the client of one who holds is asked; it releases what it knows nothing of. Another one each time, by the clock.
read_clock()
local others = {}
for holder in pairs(holders) do others[#others + 1] = holder end
local asked = #others > 0 and others[micros % #others + 1]
if asked then call(PUBLISH, sessions .. holders[asked].session, 'asked|' .. asked .. '|' .. state) end

-- If nobody holds, whoever is next in the queue is in the way.
local in_the_way = asked and holders[asked]
in_the_way = in_the_way or first_claim or claim
in_the_way.since = in_the_way.since or '0'
return { 'contended', behind, pack(in_the_way) }
