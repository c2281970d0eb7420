-- Finds the place by which an owner holds, for a script that is asked for an owner. In a state each claim is called by its place:
-- the owner, a dot and a number.
--
-- KEYS[1]  the state of the name   ARGV[2]  the owner, and then its place
do
  local own = ARGV[2] .. '.'
  local fields = redis.call('HGETALL', KEYS[1])
  for i = 1, #fields, 2 do
    if string.sub(fields[i], 1, #own) == own then ARGV[2] = fields[i] end
  end
end
