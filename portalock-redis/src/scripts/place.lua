-- Finds the place of an owner that holds the lock, for a script that gets only the owner. In a state, each claim has
-- the name of its place: the owner, a dot and a number.
--
-- KEYS[1]  the state of the name   ARGV[1]  the owner; this script replaces it with the place
do
  local own = ARGV[1] .. '.'
  local fields = redis.call('HGETALL', KEYS[1])
  for i = 1, #fields, 2 do
    if string.sub(fields[i], 1, #own) == own then ARGV[1] = fields[i] end
  end
end
