-- The queue's state machine: every change of a job's state is one call of one of these functions.
--
-- The same text runs inside Redis (as a library of functions) and inside the engine (embedded queue); docs/queue.md
-- describes keys and functions for people. Rules: every loop is bounded, no key is looked for by pattern, time is the
-- server's, and all keys begin with the queue's tag so that they lie in one slot.
--
-- Keys, after "{queue}:":
--   j:<id>   "score class timeout submitted flags service n rest", right after it the payload: what was submitted, never
--            changed; timeout in ms, or - for an hour; submitted in ms, base 36; rest is n bytes of JSON
--   m:<id>   hash, what changes; missing until something does; ch has the jobs that wait, of which it is not missing
--              st   f failed, x cancelled, b blocked; missing while it waits or runs, and when it is completed
--              at lo fin cl w n   attempts, losses, finished, last claim's time, worker and fence
--              pr fail sv h   progress, failure, saved value, history, as JSON
--              x    cancellation asked for      c   class, where it is not the submitted one      av  whom to avoid
--              need how many jobs it waits for that have not ended  dp  what becomes of it when one fails    due   not before
--   C id -> "place finished fence claimed worker result" of completed jobs; fc list of their ids, oldest first; fp how many
--            have left that list. The first of the list has place fp + 1; an id whose job says another place means nothing
--   e:<id>   list of events "time kind json"; m.ev counts those that were trimmed
--   c:<class> zset of waiting jobs by score; l:<lane> zset of class heads; H zset of lane heads; found lanes, within one call
--   cls class -> definition; cs class -> scopes; cn class -> live jobs; cz classes without jobs, since when
--   s:<class> profiles that match; lane class -> lane; lanes lane -> classes; lp:<lane> profiles; pl:<profile> lanes
--   pc:<profile> classes; profiles profile -> capabilities; pd complete profiles; pn live workers; pz unused, since when
--   W incarnation -> end of lease; I incarnation -> "worker profile [account] channel", which ends in :a where jobs may be assigned; N worker -> incarnation; workers -> JSON
--   i:<incarnation> its jobs; R id -> "fence claimed incarnation worker class flags scopes", with the flag h when there are
--     events of the job, and the class's scopes, for which it counts until it ends; r id -> deadline, where it has run for a heartbeat; fz last fence: at least the microseconds since 1970,
--     so that a server which lost its memory gives none out twice
--   d zset of delayed jobs by due time; av when jobs leave the class that avoids a worker; b blocked; f:f f:x finished
--   z:<profile> idle incarnations; zp profiles with idle ones; np number of pending jobs; ep epoch of profiles
--   as incarnation -> "id fence" of the last job that it was assigned, until it says that it has it
--   lim scope -> "max rate burst paused"; run scope -> running; tb token buckets; pk:<scope> parked classes; pb; ut
--   al the same as lim of accounts, which hold back who claims and not what waits; ah account -> "until pauses id fence why"
--     of holds; hw:<account> incarnations that wait for it, since when; ha accounts that somebody waits for; aa all accounts
--     that are known; an account -> how many incarnations have it
--   vt, ft:<base> virtual time of fair queueing; wf, wfz place of a workflow; ik, ki idempotency; uq, uk unique keys
--   wt jobs whose events somebody watches, until when
--   bl jobs that have something in the blob store; bg those of them that are gone: "id time"
--   dp:<id> who waits for it; ds jobs that have one; sl finished jobs whose dependents have to be told; o outbox of webhooks
--   sc schedules by next time; sj their definitions; inbox submissions by plain clients; wm:<model> who has it loaded
--   machine:<id> what a machine said last of itself, gone with its presence; ms machines by the end of that, past or to come;
--     mw machine -> "said until summary", its last word, for a day

local LEVEL = 8796093022208 -- 2^43: places within one priority
local USUAL = 500 -- the base of the usual priority, whose scores are short: Redis and Lua print and read them all the time
local MAX_EVENTS = 1000
local MAX_ENTRY = 8388608 -- bytes of one submission in the inbox, and about as many are read at once
local BATCH = 50
local CLAIM = 64 -- jobs of one claim at most
local DUE = 3 -- delayed jobs that one call makes claimable
local CLAIM_DUE = 2 -- and a claim
local MOVES = 5 -- classes that change their lane in one call
local GRACE = 15000 -- the holder stops an attempt at its time; the reaper does so many ms after
local SLACK = 50 -- a loaded model may overtake by so many places
local UNPARK = 16 -- so many classes are put back at once, the next so many ms later
local UNPARK_PAUSE = 10
local ASSIGNED = 16384 -- bytes of a record that goes with a message
local ANSWER = 4194304 -- bytes of data in one answer, unless one job has more: a slow network has to carry it in time
local REMEMBERED = 86400000 -- ms for which a machine that is gone is listed
local HOLD_REMEMBERED = 3600000 -- and for which the hold of an account that nobody has any more is known after its end

-- Small numbers as text: Redis prints a number that is an argument with 17 digits, each time. DIGITS have their zeros.
local TEXT, DIGITS = {}, {}
for n = 0, 999 do TEXT[n], DIGITS[n] = n .. '', (n < 100 and '0' or '') .. (n < 10 and '0' or '') .. n end

local P -- the queue's prefix
local call, find, match, sub, format

-- Begins every call: while Redis loads a library, nothing global can be seen.
local function enter(prefix)
  P, call = prefix, redis.call
  find, match, sub, format = string.find, string.match, string.sub, string.format
end

-- %d is faster, and makes nonsense of what is no whole number any more.
local function num(n) return TEXT[n] or format(n < 9007199254740992 and '%d' or '%.0f', n) end

-- Prints numbers of a row, which mostly differ in their last digits: to print one whole takes longer than all else of a claim's entry.
local function counter()
  local high, text
  return function(n)
    if n < 1000 then return TEXT[n] end
    local low = n % 1000
    local rest = (n - low) / 1000
    if rest ~= high then high, text = rest, num(rest) end
    return text .. DIGITS[low]
  end
end

local function base36(n)
  local out = ''
  while n > 0 do
    local d = n % 36
    out = sub('0123456789abcdefghijklmnopqrstuvwxyz', d + 1, d + 1) .. out
    n = (n - d) / 36
  end
  return out
end

local function now_ms()
  local t = call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function claimed_event(at, worker, fence)
  return at .. ' claimed {"worker":"' .. worker .. '","claim":' .. fence .. '}'
end

-- Tells those who watch, if anybody does.
local function tell(id, kind)
  if call('ZCARD', P .. 'wt') > 0 then call('PUBLISH', P .. 'e:' .. id, kind) end
end

-- Of a job's entry in R.
local function has_events(run) return find(match(run, '^%S+ %S+ %S+ %S+ %S+ (%S+)') or '', 'h', 1, true) end
local function with_events(run) return (string.gsub(run, '^%S+ %S+ %S+ %S+ %S+ %S+', '%0h')) end
-- An entry that an older engine wrote has none.
local function scopes_of(run)
  return match(run, '^%S+ %S+ %S+ %S+ %S+ %S+ (%S.*)$') or call('HGET', P .. 'cs', match(run, '^%S+ %S+ %S+ %S+ (%S+)')) or ''
end

-- run: the job's entry in R, where it runs. The event of its claim is written with the first that follows it: of most
-- jobs no event is ever written, for what happened to them can be told from their state.
local function event(id, now, kind, data, run)
  local ek = P .. 'e:' .. id
  if run then
    local fence, at, _, worker = match(run, '^(%S+) (%S+) (%S+) (%S+)')
    if call('HGET', P .. 'm:' .. id, 'ce') ~= fence then
      call('HSET', P .. 'm:' .. id, 'ce', fence)
      call('RPUSH', ek, claimed_event(at, worker, fence))
    end
    if not has_events(run) and call('HGET', P .. 'R', id) == run then call('HSET', P .. 'R', id, with_events(run)) end
  end
  local n = call('RPUSH', ek, num(now) .. ' ' .. kind .. ' ' .. data)
  while n > MAX_EVENTS do
    call('LPOP', ek)
    call('HINCRBY', P .. 'm:' .. id, 'ev', '1')
    n = n - 1
  end
  tell(id, kind)
end

-- Lanes ------------------------------------------------------------------------------------------------------------

local function lane_fix(lane)
  local h = call('ZRANGE', P .. 'l:' .. lane, '0', '0', 'WITHSCORES')
  if h[1] then call('ZADD', P .. 'H', h[2], lane) else call('ZREM', P .. 'H', lane) end
end

-- Carries the head of a class to where it is looked for; answers with its lane.
local function class_fix(cid)
  local t = call('ZRANGE', P .. 'c:' .. cid, '0', '0', 'WITHSCORES')
  local scope = call('HGET', P .. 'pb', cid)
  if scope then
    if t[1] then
      call('ZADD', P .. 'pk:' .. scope, t[2], cid)
      return false
    end
    call('ZREM', P .. 'pk:' .. scope, cid)
    call('HDEL', P .. 'pb', cid)
  end
  local lane = call('HGET', P .. 'lane', cid)
  if not lane then return false end
  if t[1] then call('ZADD', P .. 'l:' .. lane, t[2], cid) else call('ZREM', P .. 'l:' .. lane, cid) end
  lane_fix(lane)
  return lane
end

-- Sends a message to the process of an incarnation; answers whether there is one.
local function send(inc, text)
  local info = call('HGET', P .. 'I', inc)
  if info then call('PUBLISH', P .. match(info, '%S+$'), text) end
  return info
end

-- Whether a worker is idle.
local function idle() return call('EXISTS', P .. 'zp') == 1 end

-- Tells up to n idle workers that the lane has something; answers whether there were so many.
local function wake(lane, n)
  if not lane or not idle() then return false end
  for _, pid in ipairs(call('SINTER', P .. 'lp:' .. lane, P .. 'zp')) do
    while n > 0 do
      local inc = call('ZRANGE', P .. 'z:' .. pid, '0', '0')[1]
      if not inc then
        call('SREM', P .. 'zp', pid)
        break
      end
      call('ZREM', P .. 'z:' .. pid, inc)
      if send(inc, 'w ' .. inc) then n = n - 1 end
    end
    if n <= 0 then return true end
  end
  return false
end

-- Adds jobs, each a score and an id, to those waiting of a class. Only a new head is somebody else's business, and idle workers'.
local function put(cid, jobs, some_idle)
  local ck = P .. 'c:' .. cid
  call('ZADD', ck, unpack(jobs))
  local head, lane = call('ZRANGE', ck, '0', '0')[1], nil
  for i = 2, #jobs, 2 do if jobs[i] == head then lane = class_fix(cid) end end
  if some_idle then
    if lane == nil then lane = call('HGET', P .. 'lane', cid) end
    wake(lane, math.min(#jobs / 2, 16))
  end
end

-- The lane with the best head among those of the profile, which mostly is one of the first of all. Where many go before that
-- the profile cannot run, Redis finds out which it can: a lane takes it a third of the time that it takes to ask here.
local function best(pid)
  local H, pl = P .. 'H', P .. 'pl:' .. pid
  local k = call('SCARD', pl)
  if k == 0 then return nil end
  local top = call('ZRANGE', H, '0', '0', 'WITHSCORES')
  if not top[1] then return nil end
  if call('SISMEMBER', pl, top[1]) == 1 then return top[1], tonumber(top[2]) end
  local off, step = 1, 8
  while off * 3 < k and off < 512 do
    local hs = call('ZRANGE', H, off, off + step - 1)
    if #hs == 0 then return nil end
    local m = call('SMISMEMBER', pl, unpack(hs))
    for i = 1, #hs do
      if m[i] == 1 then return hs[i], tonumber(call('ZSCORE', H, hs[i])) end
    end
    off = off + #hs
    step = math.min(step * 2, 128)
  end
  local found = P .. 'found'
  if call('ZINTERSTORE', found, '2', H, pl, 'WEIGHTS', '1', '0') == 0 then return nil end
  local first = call('ZRANGE', found, '0', '0', 'WITHSCORES')
  call('UNLINK', found)
  return first[1], tonumber(first[2])
end

-- The class has joined or left profiles; it moves to the lane of its new set. Only its head moves, never a job.
local function find_lane(cid)
  local old = call('HGET', P .. 'lane', cid)
  if old then
    call('ZREM', P .. 'l:' .. old, cid)
    lane_fix(old)
    if call('HINCRBY', P .. 'lanes', old, '-1') == 0 then
      call('HDEL', P .. 'lanes', old)
      for _, q in ipairs(call('SMEMBERS', P .. 'lp:' .. old)) do call('SREM', P .. 'pl:' .. q, old) end
      call('DEL', P .. 'lp:' .. old)
    end
  end
  local set = call('SMEMBERS', P .. 's:' .. cid)
  if #set == 0 then
    call('HDEL', P .. 'lane', cid)
    return
  end
  table.sort(set)
  local lane = sub(redis.sha1hex(table.concat(set, ' ')), 1, 12)
  call('HSET', P .. 'lane', cid, lane)
  if call('HINCRBY', P .. 'lanes', lane, '1') == 1 then
    for a = 1, #set, 1000 do call('SADD', P .. 'lp:' .. lane, unpack(set, a, math.min(a + 999, #set))) end
    for _, q in ipairs(set) do call('SADD', P .. 'pl:' .. q, lane) end
  end
  class_fix(cid)
end

-- Answers whether that is new.
local function join(cid, pid)
  call('SADD', P .. 'pc:' .. pid, cid)
  return call('SADD', P .. 's:' .. cid, pid) == 1
end

local function subscribe(cid, pid, add)
  local changed
  if add then
    changed = join(cid, pid)
  else
    call('SREM', P .. 'pc:' .. pid, cid)
    changed = call('SREM', P .. 's:' .. cid, pid) == 1
  end
  if changed then find_lane(cid) end
end

-- Scopes: what is paused or limited --------------------------------------------------------------------------------

-- What is in the scope's token bucket now.
local function tokens_of(scope, rate, burst, now)
  local bucket = call('HGET', P .. 'tb', scope)
  if not bucket then return burst end
  local tokens, at = match(bucket, '^(%S+) (%S+)$')
  return math.min(burst, tonumber(tokens) + math.max(0, now - tonumber(at)) * rate / 1000)
end

-- Limits of accounts lie apart: they must not make claims of others look at every class's scopes.
local function limits_of(scope) return P .. (sub(scope, 1, 8) == 'account:' and 'al' or 'lim') end

-- How many jobs of the scope may start now; what it is and when to look again.
local function room_of(scope, now)
  local lim = call('HGET', limits_of(scope), scope)
  if not lim then return math.huge end
  local max, rate, burst, paused = match(lim, '^(%S+) (%S+) (%S+) (%S+)$')
  if paused == '1' then return 0 end
  local room = math.huge
  if max ~= '-' then room = tonumber(max) - tonumber(call('HGET', P .. 'run', scope) or 0) end
  if rate ~= '-' then
    rate = tonumber(rate)
    local tokens = tokens_of(scope, rate, tonumber(burst), now)
    if math.floor(tokens) < room then
      room = math.floor(tokens)
      if room < 1 then return room, now + math.ceil((1 - tokens) * 1000 / rate) end
    end
  end
  return room
end

local function spend(scope, n, now)
  local lim = call('HGET', limits_of(scope), scope)
  if not lim then return end
  local rate, burst = match(lim, '^%S+ (%S+) (%S+)')
  if rate == '-' then return end
  local tokens = tokens_of(scope, tonumber(rate), tonumber(burst), now)
  call('HSET', P .. 'tb', scope, format('%.6f', tokens - n) .. ' ' .. num(now))
end

-- Has the scope looked at again at that time, or before.
local function look_again(scope, til)
  local old = call('ZSCORE', P .. 'ut', scope)
  if not old or tonumber(old) > til then
    call('ZADD', P .. 'ut', num(til), scope)
    call('PUBLISH', P .. 'due', num(til))
  end
end

-- Takes the class out of its lane until its scope has room.
local function park(cid, scope, til)
  local lane = call('HGET', P .. 'lane', cid)
  local t = call('ZRANGE', P .. 'c:' .. cid, '0', '0', 'WITHSCORES')
  local was = call('HGET', P .. 'pb', cid)
  if was then call('ZREM', P .. 'pk:' .. was, cid) end
  call('HSET', P .. 'pb', cid, scope)
  call('ZADD', P .. 'pk:' .. scope, t[2] or 0, cid)
  if lane then
    call('ZREM', P .. 'l:' .. lane, cid)
    lane_fix(lane)
  end
  if til then look_again(scope, til) end
end

-- Accounts: what all workers share that use one key at one provider -----------------------------------------------

-- The account of an incarnation, of its entry in I; nil where it has none.
local function account_of(info) return match(info or '', '^%S+ %S+ (%S+) %S+$') end

-- Until when the account is held; how many holds there were in a row, 0 where it opens by itself; the job that is tried and
-- its claim, 0 for none; why it is held. Nothing where it is not.
local function hold_of(account)
  local til, pauses, id, fence, why = match(call('HGET', P .. 'ah', account) or '', '^(%S+) (%S+) (%S+) (%S+) (.*)$')
  if til then return tonumber(til), tonumber(pauses), id, fence, why end
end

local function set_hold(account, til, pauses, id, fence, why)
  call('HSET', P .. 'ah', account, num(til) .. ' ' .. num(pauses) .. ' ' .. id .. ' ' .. fence .. ' ' .. why)
end

-- How many jobs workers with the account may take now; when to look again; why not more ("" for a limit); whether the one
-- that they may take is tried for all.
local function account_room(account, now)
  local til, pauses, id, fence, why = hold_of(account)
  if til then
    if now < til then return 0, til, why end
    if pauses == 0 then
      call('HDEL', P .. 'ah', account)
      til = nil
    elseif fence ~= '0' then
      -- Still under way, and still with this account.
      local holds, inc = match(call('HGET', P .. 'R', id) or '', '^(%S+) %S+ (%S+)')
      if holds == fence and account_of(call('HGET', P .. 'I', inc)) == account then return 0, nil, why end
    end
  end
  local room, again = room_of('account:' .. account, now)
  if room < 1 then return 0, again, '' end
  if til then return 1, nil, why, true end
  return room
end

-- Tells whoever waits for the account, at most so many, that there is room, if there is.
local function open_account(account, now, most)
  local waiting, scope = P .. 'hw:' .. account, 'account:' .. account
  local room, til = account_room(account, now)
  local n = math.min(room, most)
  while n > 0 do
    local inc = call('ZRANGE', waiting, '0', '0')[1]
    if not inc then break end
    call('ZREM', waiting, inc)
    if send(inc, 'w ' .. inc) then n = n - 1 end
  end
  call('ZREM', P .. 'ut', scope)
  if call('EXISTS', waiting) == 0 then
    call('SREM', P .. 'ha', account)
  elseif til then
    look_again(scope, til)
  end
end

-- The incarnation waits for the account: it is not idle, and told when there is room.
local function wait_for(account, inc, til, now)
  local waiting = P .. 'hw:' .. account
  if not call('ZSCORE', waiting, inc) then
    call('ZADD', waiting, num(now), inc)
    call('SADD', P .. 'ha', account)
  end
  if til then look_again('account:' .. account, til) end
end

-- The incarnation claims no more with the account. It may be the one that was told.
local function leave_account(account, inc, now)
  call('ZREM', P .. 'hw:' .. account, inc)
  if call('EXISTS', P .. 'hw:' .. account) == 1 then open_account(account, now, 1) end
end

-- So many more (or, negative, fewer) jobs run with the account, where there is one.
local function account_running(account, n, now)
  if not account or n == 0 then return end
  local scope = 'account:' .. account
  if call('HINCRBY', P .. 'run', scope, n) <= 0 then call('HDEL', P .. 'run', scope) end
  if n < 0 and call('EXISTS', P .. 'hw:' .. account) == 1 then open_account(account, now, -n) end
end

-- Forgets the account where nobody has it, and nothing is to be known of it.
local function forget_account(account, now)
  local scope = 'account:' .. account
  if call('HEXISTS', P .. 'an', account) == 1 or call('HEXISTS', P .. 'al', scope) == 1 then return end
  local til = hold_of(account)
  if til and now < til + HOLD_REMEMBERED then return end
  call('SREM', P .. 'aa', account)
  call('HDEL', P .. 'ah', account)
  call('HDEL', P .. 'tb', scope)
end

-- So many more (or, negative, fewer) incarnations have the account, where there is one.
local function account_used(account, n, now)
  if not account then return end
  if call('HINCRBY', P .. 'an', account, n) > 0 then
    call('SADD', P .. 'aa', account)
  else
    call('HDEL', P .. 'an', account)
    forget_account(account, now)
  end
end

-- Puts parked classes back into their lanes while there is room, the best first: more than there is room for, since of
-- the best there may be nobody who can run them. The rest follow a little later if there still is room.
local function unpark(scope, now)
  if sub(scope, 1, 8) == 'account:' then return open_account(sub(scope, 9), now, UNPARK) end
  local room, til = room_of(scope, now)
  local parked = room > 0 and call('ZRANGE', P .. 'pk:' .. scope, '0', UNPARK - 1) or {}
  for _, cid in ipairs(parked) do
    call('ZREM', P .. 'pk:' .. scope, cid)
    call('HDEL', P .. 'pb', cid)
    local lane = class_fix(cid)
    if room > 0 and wake(lane, 1) then room = room - 1 end
  end
  if #parked == UNPARK then til = now + UNPARK_PAUSE end
  if til and call('ZCARD', P .. 'pk:' .. scope) > 0 then
    call('ZADD', P .. 'ut', num(til), scope)
    call('PUBLISH', P .. 'due', num(til))
  else
    call('ZREM', P .. 'ut', scope)
  end
end

-- counts: scopes of a class -> how many more (or, negative, fewer) jobs that have these run.
local function running(counts, now)
  local by = {}
  for scopes, n in pairs(counts) do
    for scope in string.gmatch(scopes, '%S+') do by[scope] = (by[scope] or 0) + n end
  end
  for scope, n in pairs(by) do
    if sub(scope, 1, 9) ~= 'affinity:' then
      local left = call('HINCRBY', P .. 'run', scope, n)
      if left <= 0 then call('HDEL', P .. 'run', scope) end
      if n < 0 and call('ZCARD', P .. 'pk:' .. scope) > 0 then unpark(scope, now) end
    end
  end
end

-- Where a job is ---------------------------------------------------------------------------------------------------

local function header(id)
  -- Its beginning, never the payload.
  return match(call('GETRANGE', P .. 'j:' .. id, '0', '127'), '^(%S+) (%S+) (%S+) (%S+) (%S+) ')
end

local function class_of(id, base) return call('HGET', P .. 'm:' .. id, 'c') or base end

-- The letter of a job that is over, or blocked.
local function fixed_state(id)
  if call('HEXISTS', P .. 'C', id) == 1 then return 'c' end
  return call('HGET', P .. 'm:' .. id, 'st')
end

local function state_of(id)
  local run = call('HGET', P .. 'R', id)
  if run then return 'r', run end
  local st = fixed_state(id)
  if st then return st end
  if call('ZSCORE', P .. 'd', id) then return 'd' end
  if call('EXISTS', P .. 'j:' .. id) == 1 then return 'p' end
  return nil
end

local function live(cid, n, now)
  local left = call('HINCRBY', P .. 'cn', cid, n)
  if left <= 0 then call('ZADD', P .. 'cz', num(now), cid) end
end

-- counts: class -> how many more (or, negative, fewer) of its jobs are live.
local function live_all(counts, now)
  local cids, sums = {}, {}
  for cid in pairs(counts) do cids[#cids + 1] = cid end
  for i, n in ipairs(call('HMGET', P .. 'cn', unpack(cids))) do
    local left = tonumber(n or 0) + counts[cids[i]]
    sums[2 * i - 1] = cids[i]
    sums[2 * i] = num(left)
    if left <= 0 then call('ZADD', P .. 'cz', num(now), cids[i]) end
  end
  call('HSET', P .. 'cn', unpack(sums))
end

-- The job does not go back any more to the class that it was moved from, which was kept for it.
local function comes_back(id, base, now)
  if call('ZREM', P .. 'av', id) == 1 then live(base, -1, now) end
end

local function leave_running(id, run, now)
  local inc = match(run, '^%S+ %S+ (%S+)')
  call('HDEL', P .. 'R', id)
  call('SREM', P .. 'i:' .. inc, id)
  call('ZREM', P .. 'r', id)
  running({ [scopes_of(run)] = -1 }, now)
  account_running(account_of(call('HGET', P .. 'I', inc)), -1, now)
end

-- Others may wait for the end of this job.
local function tell_dependents(id, now)
  call('RPUSH', P .. 'sl', id)
  call('PUBLISH', P .. 'due', num(now))
end

-- What follows from a job's end: its unique key is free, its webhook due, its dependents are told.
local function ended(id, st, flags, now)
  if st ~= 'c' then call('ZADD', P .. 'f:' .. st, num(now), id) end
  if find(flags, 'u', 1, true) then
    -- The job remembers its key, for when it is tried again.
    local key = call('HGET', P .. 'uk', id)
    if key and call('HGET', P .. 'uq', key) == id then call('HDEL', P .. 'uq', key) end
  end
  if find(flags, 'w', 1, true) then
    call('ZADD', P .. 'o', num(now), id)
    call('PUBLISH', P .. 'due', num(now))
  end
  if call('EXISTS', P .. 'dp:' .. id) == 1 then tell_dependents(id, now) end
end

-- The job fails because another, which it waits for, did not complete.
local function fail_with(dependency, id, flags, now)
  local fail = '{"class":"fatal","message":"job ' .. dependency .. ', which it waits for, did not complete"}'
  call('SREM', P .. 'ch', id)
  call('HSET', P .. 'm:' .. id, 'st', 'f', 'fin', num(now), 'fail', fail)
  event(id, now, 'failed', '{"failure":' .. fail .. '}')
  ended(id, 'f', flags, now)
end

-- Puts a job that was not pending among those that are.
local function make_pending(id, cid, score)
  call('INCR', P .. 'np')
  put(cid, { score, id }, idle())
end

local function delay(id, due)
  local head = call('ZRANGE', P .. 'd', '0', '0', 'WITHSCORES')
  call('ZADD', P .. 'd', num(due), id)
  if not head[1] or tonumber(head[2]) > due then call('PUBLISH', P .. 'due', num(due)) end
end

-- Puts jobs that are due among those that wait, class by class.
local function undelay(ids)
  call('ZREM', P .. 'd', unpack(ids))
  local keys = {}
  for i, id in ipairs(ids) do keys[i] = P .. 'j:' .. id end
  local raws = call('MGET', unpack(keys))
  local changed = call('SMISMEMBER', P .. 'ch', unpack(ids))
  local of, n = {}, 0
  for i, id in ipairs(ids) do
    if raws[i] then
      local score, base = match(raws[i], '^(%S+) (%S+) ')
      local cid = changed[i] == 1 and class_of(id, base) or base
      local jobs = of[cid] or {}
      of[cid] = jobs
      jobs[#jobs + 1] = score
      jobs[#jobs + 1] = id
      n = n + 1
    end
  end
  call('INCRBY', P .. 'np', n)
  local some_idle = idle()
  for cid, jobs in pairs(of) do put(cid, jobs, some_idle) end
end

-- Whether anything at all waits for a time.
local function some_later() return call('EXISTS', P .. 'd', P .. 'av', P .. 'ut') > 0 end

local function promote(now, most)
  if not some_later() then return end
  local due = call('ZRANGEBYSCORE', P .. 'd', '-inf', num(now), 'LIMIT', '0', most)
  if #due > 0 then undelay(due) end
  -- Others had their time with these: whoever failed them may have them again.
  for _, id in ipairs(call('ZRANGEBYSCORE', P .. 'av', '-inf', num(now), 'LIMIT', '0', BATCH)) do
    local score, base = header(id)
    local current = call('HGET', P .. 'm:' .. id, 'c')
    local waits = current and call('ZREM', P .. 'c:' .. current, id) == 1
    if waits or (current and call('ZSCORE', P .. 'd', id)) then
      live(current, -1, now)
      live(base, 1, now)
      call('HDEL', P .. 'm:' .. id, 'c')
    end
    if waits then
      class_fix(current)
      put(base, { score, id }, idle())
    end
    comes_back(id, base, now)
  end
  for _, scope in ipairs(call('ZRANGEBYSCORE', P .. 'ut', '-inf', num(now), 'LIMIT', '0', '10')) do unpark(scope, now) end
end

local function next_due()
  if not some_later() then return '' end
  local first
  for _, key in ipairs({ 'd', 'ut', 'av' }) do
    local t = call('ZRANGE', P .. key, '0', '0', 'WITHSCORES')[2]
    if t and (not first or tonumber(t) < tonumber(first)) then first = t end
  end
  return first or ''
end

-- What begins ------------------------------------------------------------------------------------------------------

-- The entry in R of a job; by: what those of one claim have in common.
local function held_by(now, inc, worker) return ' ' .. num(now) .. ' ' .. inc .. ' ' .. worker .. ' ' end
local function entry(fence, by, cid, flags, scopes) return fence .. by .. cid .. ' ' .. flags .. ' ' .. scopes end

-- The fence before the first of n jobs.
local function fences(n, now)
  local before = call('INCRBY', P .. 'fz', n) - n
  if before < now * 1000 then
    -- Ahead of whatever was given out by a server that this one does not remember.
    before = now * 1000
    call('SET', P .. 'fz', num(before + n))
  end
  return before
end

-- Fair queueing has come to the tag.
local function come_to(base, tag)
  if tag > tonumber(call('HGET', P .. 'vt', base) or 0) then call('HSET', P .. 'vt', base, num(tag)) end
end

-- raws: records of jobs that were taken in turns, each to its index; a turn's are in their order, so that of those of one level
-- the last has come the furthest.
local function came_to(raws, turns)
  local function place(i)
    local score = tonumber(match(raws[i] or '', '^%S+') or 0)
    local level = math.floor(score / LEVEL)
    return level, score - level * LEVEL
  end
  local tags, from = {}, 1
  for _, til in ipairs(turns) do
    if place(from) == place(til) then from = til end
    for i = from, til do
      local level, tag = place(i)
      tags[level] = math.max(tags[level] or 0, tag)
    end
    from = til + 1
  end
  for level, tag in pairs(tags) do come_to(num(level + USUAL), tag) end
end

-- Begins a job that is being submitted, where somebody is idle who can run it, and nothing that waits goes before it: the
-- message that would wake the worker brings the job, a round trip sooner than a claim. Answers whether that was done.
local function assign(job, now)
  local cid, scopes = job.cid, job.scopes
  if #job.record > ASSIGNED or find(scopes, 'affinity:', 1, true) then return false end
  local others = call('EXISTS', P .. 'H', P .. 'pb', P .. 'lim', P .. 'd', P .. 'av', P .. 'ut', P .. 'wt') > 0
  if others then promote(now, CLAIM_DUE) end
  local lane = call('HGET', P .. 'lane', cid)
  local pid = lane and call('SINTER', P .. 'lp:' .. lane, P .. 'zp')[1]
  local inc = pid and call('ZRANGE', P .. 'z:' .. pid, '0', '0')[1]
  local info = inc and call('HGET', P .. 'I', inc)
  local worker, profile, channel = match(info or '', '^(%S+) (%S+) (%S+:a)$')
  if not channel or tonumber(call('ZSCORE', P .. 'W', inc) or 0) <= now then return false end
  local limited = others and call('HLEN', P .. 'lim') > 0
  if others then
    if call('HGET', P .. 'pb', cid) or best(profile) or best('w:' .. worker) then return false end
    for scope in string.gmatch(limited and scopes or '', '%S+') do if room_of(scope, now) < 1 then return false end end
  end
  -- Whoever was told of a job is idle no more, although another list of idle workers may still name it.
  if call('ZREM', P .. 'z:' .. profile, inc) == 0 then return false end
  local fence = num(fences(1, now) + 1)
  local text = 'a ' .. inc .. ' ' .. num(now) .. ' ' .. fence .. ' ' .. job.id .. ' ' .. job.record
  -- Nobody hears of it where the connection has just ended.
  if call('PUBLISH', P .. channel, text) == 0 then return false end
  call('HSET', P .. 'as', inc, job.id .. ' ' .. fence)
  call('HSET', P .. 'R', job.id, entry(fence, held_by(now, inc, worker), cid, job.flags, scopes))
  call('SADD', P .. 'i:' .. inc, job.id)
  if limited then for scope in string.gmatch(scopes, '%S+') do spend(scope, 1, now) end end
  running({ [scopes] = 1 }, now)
  if job.turn then
    -- It is after all that were claimed.
    call('HSET', P .. 'vt', job.base, num(job.turn))
  else
    local level = math.floor(job.score / LEVEL)
    come_to(num(level + USUAL), job.score - level * LEVEL)
  end
  if others and call('EXISTS', P .. 'wt') == 1 then call('PUBLISH', P .. 'e:' .. job.id, 'claimed') end
  return true
end

-- Functions --------------------------------------------------------------------------------------------------------

local F, reads = {}, {}

-- classes..., "", then per job: id base customer class timeout flags (u unique, w webhook, l payload in the blob store) due idempotency unique workflow policy n deps... json
function F.submit(a)
  local now = now_ms()
  local i, wanted = 1, {}
  while a[i] ~= '' do
    wanted[#wanted + 1] = a[i]
    i = i + 1
  end
  local known = call('HMGET', P .. 'cs', unpack(wanted))
  local missing, scopes = {}, {}
  for n, cid in ipairs(wanted) do
    scopes[cid] = known[n]
    if not known[n] then missing[#missing + 1] = cid end
  end
  if #missing > 0 then return { 'NOCLASS', missing } end
  i = i + 1
  local first = i
  -- All or nothing: a job it waits for that nobody knows refuses the whole call.
  local index, given = 0, {}
  while a[i] do
    local deps = tonumber(a[i + 11])
    for n = 1, deps do
      local dep = a[i + 11 + n]
      if not given[dep] and call('EXISTS', P .. 'j:' .. dep) == 0 then return { 'NODEP', index, dep } end
    end
    given[a[i]] = true
    i = i + 13 + deps
    index = index + 1
  end
  i = first
  local stamp = base36(now)
  local out, vt, ft, touched, count, pending, last = {}, {}, {}, {}, {}, 0, nil
  local instead = {} -- id that was given -> the job that there was
  while a[i] do
    local id, base, customer, cid, timeout, flags = a[i], a[i + 1], a[i + 2], a[i + 3], a[i + 4], a[i + 5]
    local due, idem, unique, flow, policy, deps = tonumber(a[i + 6]), a[i + 7], a[i + 8], a[i + 9], a[i + 10], tonumber(a[i + 11])
    local json = a[i + 12 + deps]
    local duplicate = idem ~= '' and call('HGET', P .. 'ik', idem) or unique ~= '' and call('HGET', P .. 'uq', unique)
    local score, record, who, turn
    if not duplicate then
      score = flow ~= '' and call('HGET', P .. 'wf', flow)
      if not score then
        vt[base] = vt[base] or tonumber(call('HGET', P .. 'vt', base) or 0)
        who = base .. ' ' .. customer
        local last = ft[who] or tonumber(call('ZSCORE', P .. 'ft:' .. base, customer) or 0)
        turn = math.max(last, vt[base]) + 1
        score = num((tonumber(base) - USUAL) * LEVEL + turn)
      end
      record = score .. ' ' .. cid .. ' ' .. timeout .. ' ' .. stamp .. ' ' .. flags .. ' ' .. json
      if not call('SET', P .. 'j:' .. id, record, 'NX') then
        duplicate = id
      elseif who then
        ft[who] = turn
      end
    end
    if duplicate then
      instead[id] = duplicate
      out[#out + 1] = duplicate
      out[#out + 1] = state_of(duplicate) or 'p'
      out[#out + 1] = 1
    else
      if flow ~= '' then
        call('HSET', P .. 'wf', flow, score)
        call('ZADD', P .. 'wfz', num(now), flow)
      end
      if idem ~= '' then
        call('HSET', P .. 'ik', idem, id)
        call('HSET', P .. 'ki', id, idem)
      end
      if unique ~= '' then
        call('HSET', P .. 'uq', unique, id)
        call('HSET', P .. 'uk', id, unique)
      end
      if find(flags, 'l', 1, true) then call('SADD', P .. 'bl', id) end
      count[cid] = (count[cid] or 0) + 1
      local need, doomed = 0, nil
      for n = 1, deps do
        local dep = instead[a[i + 11 + n]] or a[i + 11 + n]
        local st = fixed_state(dep)
        if st == 'c' or ((st == 'f' or st == 'x') and policy == 'run') then
          -- Done already.
        elseif st == 'f' or st == 'x' then
          doomed = dep
        elseif call('SADD', P .. 'dp:' .. dep, id) == 1 then
          call('SADD', P .. 'ds', dep)
          need = need + 1
        end
      end
      local st = 'p'
      if need > 0 then
        call('HSET', P .. 'm:' .. id, 'need', need, 'dp', policy)
        -- Also of one that fails at once: it may be tried again by hand, and then waits for the others.
        if due > now then call('HSET', P .. 'm:' .. id, 'due', num(due)) end
      end
      if doomed then
        st = 'f'
        count[cid] = count[cid] - 1
        fail_with(doomed, id, flags, now)
      elseif need > 0 then
        st = 'b'
        call('HSET', P .. 'm:' .. id, 'st', 'b')
        call('SADD', P .. 'ch', id)
        call('ZADD', P .. 'b', num(now), id)
      elseif due > now then
        st = 'd'
        delay(id, due)
      else
        pending = pending + 1
        last = { id = id, cid = cid, scopes = scopes[cid], score = score, flags = flags, record = record, at = #out + 2 }
        last.base, last.who, last.turn = base, who, turn
        local jobs = touched[cid] or {}
        touched[cid] = jobs
        jobs[#jobs + 1] = score
        jobs[#jobs + 1] = id
      end
      out[#out + 1] = id
      out[#out + 1] = st
      out[#out + 1] = 0
    end
    i = i + 13 + deps
  end
  local some_idle = idle()
  local assigned = pending == 1 and some_idle and assign(last, now)
  if assigned then
    out[last.at] = 'r'
    -- All have come as far as its turn.
    if last.who and ft[last.who] == last.turn then ft[last.who] = nil end
  end
  for who, tag in pairs(ft) do
    local base, customer = match(who, '^(%S+) (.*)$')
    call('ZADD', P .. 'ft:' .. base, num(tag), customer)
  end
  for cid, n in pairs(count) do if n > 0 then call('HINCRBY', P .. 'cn', cid, n) end end
  if not assigned and pending > 0 then
    call('INCRBY', P .. 'np', pending)
    for cid, jobs in pairs(touched) do put(cid, jobs, some_idle) end
  end
  return { 'OK', out }
end

-- Entries of the inbox are known by their digests: they may be anything, text or not.
local function is_entry(at, digest)
  local entry = call('LINDEX', P .. 'inbox', at)
  return entry and redis.sha1hex(entry) == digest
end

-- n, then what submit takes, made of the first n entries of the inbox; digests of the first and of the last of them
function F.ingest(a)
  local n, first, last = tonumber(a[1]), a[2], a[3]
  if not is_entry(0, first) or not is_entry(n - 1, last) then return { 'GONE' } end
  local rest = {}
  for i = 4, #a do rest[#rest + 1] = a[i] end
  local done = F.submit(rest)
  if done[1] == 'OK' then for _ = 1, n do call('LPOP', P .. 'inbox') end end
  return done
end

-- digest of the first entry, what is kept of it
function F.inbox_refuse(a)
  if not is_entry(0, a[1]) then return 0 end
  call('LPOP', P .. 'inbox')
  call('RPUSH', P .. 'refused', a[2])
  call('LTRIM', P .. 'refused', '-1000', '-1')
  return 1
end

-- class definition scopes epoch profiles...
function F.add_class(a)
  if (call('GET', P .. 'ep') or '0') ~= a[4] then return 'STALE' end
  local cid = a[1]
  call('HSET', P .. 'cls', cid, a[2])
  call('HSET', P .. 'cs', cid, a[3])
  if not call('HGET', P .. 'cn', cid) then
    call('HSET', P .. 'cn', cid, '0')
    call('ZADD', P .. 'cz', num(now_ms()), cid)
  end
  local changed = false
  for i = 5, #a do changed = join(cid, a[i]) or changed end
  if changed then find_lane(cid) end
  return 'OK'
end

-- incarnation worker channel profile shared full lease account ("" for none)
function F.register(a)
  local now = now_ms()
  local inc, worker, pid, account = a[1], a[2], a[4], a[8] ~= '' and a[8] or nil
  local former = call('HGET', P .. 'N', worker)
  if former and former ~= inc then return { 'FORMER', former } end
  local info = worker .. ' ' .. pid .. (account and ' ' .. account or '') .. ' ' .. a[3]
  local was = call('HGET', P .. 'I', inc)
  local personal = 'w:' .. worker
  call('HSET', P .. 'I', inc, info)
  if not was then
    call('HINCRBY', P .. 'pn', pid, '1')
    account_used(account, 1, now)
  end
  if was and was ~= info then
    local old = match(was, '^%S+ (%S+)')
    if old ~= pid then
      call('HINCRBY', P .. 'pn', pid, '1')
      if call('HINCRBY', P .. 'pn', old, '-1') <= 0 then call('ZADD', P .. 'pz', num(now), old) end
      call('ZREM', P .. 'z:' .. old, inc)
    end
    local before = account_of(was)
    if before ~= account then
      -- What it runs counts for the one that it uses from now on.
      local holds = call('SCARD', P .. 'i:' .. inc)
      account_running(before, -holds, now)
      if before then leave_account(before, inc, now) end
      account_running(account, holds, now)
      account_used(account, 1, now)
      account_used(before, -1, now)
    end
  end
  call('ZREM', P .. 'pz', pid)
  call('ZREM', P .. 'pz', personal)
  call('HSET', P .. 'N', worker, inc)
  call('ZADD', P .. 'W', num(now + tonumber(a[7])), inc)
  local bump = call('HGET', P .. 'workers', worker) ~= a[6]
  if bump then
    call('HSET', P .. 'workers', worker, a[6])
    -- What matched the worker before may not match it any more.
    call('SREM', P .. 'pd', personal)
  end
  if not call('HGET', P .. 'profiles', pid) then
    call('HSET', P .. 'profiles', pid, a[5])
    bump = true
  end
  if bump then call('INCR', P .. 'ep') end
  return { 'OK', call('SISMEMBER', P .. 'pd', pid), call('SISMEMBER', P .. 'pd', personal) }
end

-- profile add|del|done classes...
function F.subscribe(a)
  if a[2] == 'done' then return call('SADD', P .. 'pd', a[1]) end
  for i = 3, #a do subscribe(a[i], a[1], a[2] == 'add') end
  return #a - 2
end

-- The incarnation has ended and holds no job any more.
function F.forget(a)
  local inc = a[1]
  local left = call('SCARD', P .. 'i:' .. inc)
  if left > 0 then return left end
  local info = call('HGET', P .. 'I', inc)
  call('ZREM', P .. 'W', inc)
  call('HDEL', P .. 'I', inc)
  call('HDEL', P .. 'as', inc)
  if not info then return 0 end
  local now = now_ms()
  local worker, pid = match(info, '^(%S+) (%S+)')
  call('ZREM', P .. 'z:' .. pid, inc)
  call('ZREM', P .. 'z:w:' .. worker, inc)
  local account = account_of(info)
  if account then leave_account(account, inc, now) end
  account_used(account, -1, now)
  if call('HINCRBY', P .. 'pn', pid, '-1') <= 0 then
    call('HDEL', P .. 'pn', pid)
    call('ZADD', P .. 'pz', num(now), pid)
  end
  if call('HGET', P .. 'N', worker) == inc then
    call('HDEL', P .. 'N', worker)
    call('HDEL', P .. 'workers', worker)
    call('ZADD', P .. 'pz', num(now), 'w:' .. worker)
  end
  return 0
end

-- Takes up to n jobs from the heads of a lane that go before anything in another lane, into ids, of (their classes) and within
-- (the scopes of these). Answers with how many, or with a class that has to be looked at closer.
local function take_from(lane, score, n, ids, of, within)
  local lk = P .. 'l:' .. lane
  local many = math.min(call('ZCARD', lk), math.min(n, 64) + 1)
  if many == 0 then
    lane_fix(lane)
    return 0
  end
  local each = math.floor(64 / many)
  local cids, scores = {}, {}
  if each > 1 then
    local heads = call('ZRANGE', lk, '0', many - 1, 'WITHSCORES')
    for i = 1, many do cids[i], scores[i] = heads[2 * i - 1], tonumber(heads[2 * i]) end
  else
    -- Of each class one, with which its score is read: scores are slow to print and to read.
    cids = call('ZRANGE', lk, '0', many - 1)
  end
  -- Of another lane, which may have its head at the same place: customers share places.
  local following = call('ZRANGEBYSCORE', P .. 'H', num(score), '+inf', 'WITHSCORES', 'LIMIT', '0', '2')
  local limit = tonumber(following[following[1] == lane and 4 or 2] or math.huge)
  local within_of = call('HMGET', P .. 'cs', unpack(cids))
  local news, empty, taken = {}, {}, 0
  for i = 1, many do
    local cid = cids[i]
    if taken == n or (i > 1 and each > 1 and scores[i] > limit) then break end
    local its = within_of[i] or ''
    if find(its, 'affinity:', 1, true) then
      if i == 1 then return 0, cid end
      break
    end
    local mine, head, ck = 0, nil, P .. 'c:' .. cid
    local most = math.min(each, n - taken)
    local bound = each > 1 and math.min(limit, scores[i + 1] or (many > n and scores[i]) or math.huge)
    if not bound then
      local found = call('ZRANGE', ck, '0', '1', 'WITHSCORES')
      if found[1] then
        if i > 1 and tonumber(found[2]) > limit then break end
        mine, head = 1, found[4]
        local at = #ids + 1
        ids[at], of[at], within[at] = found[1], cid, its
      end
    elseif bound == math.huge then
      -- Nothing else waits: scores do not matter.
      local found = call('ZRANGE', ck, '0', TEXT[most])
      mine = math.min(#found, most)
      for k = 1, mine do
        local at = #ids + 1
        ids[at], of[at], within[at] = found[k], cid, its
      end
      head = found[mine + 1] and call('ZSCORE', ck, found[mine + 1])
    else
      local found = call('ZRANGE', ck, '0', TEXT[most], 'WITHSCORES')
      for k = 1, math.min(#found, 2 * most), 2 do
        if k > 1 and tonumber(found[k + 1]) > bound then break end
        mine = mine + 1
        local at = #ids + 1
        ids[at], of[at], within[at] = found[k], cid, its
      end
      head = found[2 * mine + 2]
    end
    if mine > 0 then
      taken = taken + mine
      call('ZREMRANGEBYRANK', ck, '0', TEXT[mine - 1])
    end
    if head then
      news[#news + 1] = head
      news[#news + 1] = cid
      limit = math.min(limit, tonumber(head))
    else
      empty[#empty + 1] = cid
    end
  end
  if #news > 0 then call('ZADD', lk, unpack(news)) end
  if #empty > 0 then call('ZREM', lk, unpack(empty)) end
  lane_fix(lane)
  return taken
end

-- The worker is idle no more. Answers with the id and fence of a job that it was assigned meanwhile and does not know of, if
-- there is one; knows: the fence of the last that it does.
local function leave_idle(inc, worker, pid, knows)
  call('ZREM', P .. 'z:w:' .. worker, inc)
  -- Whoever was told of a job, or got one, was taken out by that.
  if call('ZREM', P .. 'z:' .. pid, inc) == 1 then return nil end
  local id, fence = match(call('HGET', P .. 'as', inc) or '', '^(%S+) (%S+)$')
  if not id then return nil end
  call('HDEL', P .. 'as', inc)
  local run = fence ~= knows and call('HGET', P .. 'R', id)
  if run and match(run, '^%S+') == fence then return id, fence end
end

-- incarnation limit idle assigned (the fence of the last job that it was assigned), then the classes whose model it has loaded. Answers with the time, when something is due, what is to
-- be done (1 ask again, 2 wait: it is idle now, and is woken), the fence before the first job's, each job having the next, and per
-- job id, record (+ where the answer has no room for it), and what changed since ("" for nothing); then what else is to say: of its account held, until when ("" for nobody
-- knows) and why ("" for its limit), or trial; or assigned, of a job that it was assigned before
function F.claim(a)
  local now = now_ms()
  local inc, n = a[1], math.min(tonumber(a[2]), CLAIM)
  local info = call('HGET', P .. 'I', inc)
  if not info or not call('ZSCORE', P .. 'W', inc) then return { 'NOWORKER' } end
  promote(now, CLAIM_DUE)
  local worker, pid = match(info, '^(%S+) (%S+)')
  local personal = 'w:' .. worker
  if a[3] == '1' then
    local id, fence = leave_idle(inc, worker, pid, a[4])
    if id then
      local job = { id, call('GET', P .. 'j:' .. id) or '', '' }
      return { 'OK', num(now), next_due(), 1, num(tonumber(fence) - 1), job, { 'assigned' } }
    end
  end
  local account, room, trial = account_of(info), math.huge, nil
  if account then
    local til, why
    room, til, why, trial = account_room(account, now)
    if room < 1 then
      wait_for(account, inc, til, now)
      if a[3] ~= '1' then
        call('ZREM', P .. 'z:' .. pid, inc)
        call('ZREM', P .. 'z:' .. personal, inc)
      elseif idle() then
        -- It may have been woken for a job that others can take.
        wake((best(pid)), 1)
      end
      return { 'OK', num(now), next_due(), 0, '0', {}, { 'held', til and num(til) or '', why } }
    end
    call('ZREM', P .. 'hw:' .. account, inc)
    n = math.min(n, room)
  end
  local limited = call('HLEN', P .. 'lim') > 0
  local warm = {}
  for i = 5, #a do warm[a[i]] = true end
  local ids, of, within, turns, vain, again = {}, {}, {}, {}, 0, 0
  while n > 0 do
    local lane, score = best(pid)
    local other, other_score = best(personal)
    if other and (not lane or other_score < score) then lane, score = other, other_score end
    local cid, first, waits
    -- A class whose model is loaded may go first, within the slack.
    for i = 5, #a do
      local h = call('ZRANGE', P .. 'c:' .. a[i], '0', '0', 'WITHSCORES')
      local parked = h[1] and call('HGET', P .. 'pb', a[i])
      if h[1] and (not parked or sub(parked, 1, 9) == 'affinity:') then
        local s = tonumber(h[2])
        waits = true
        if not lane or (s <= score + SLACK and math.floor(s / LEVEL) <= math.floor(score / LEVEL)) then
          if not cid or s < first then cid, first = a[i], s end
        end
      end
    end
    if not lane and not cid then break end
    local taken = 0
    -- Of several taken at once, a later one might go after a job whose model is loaded.
    if not cid and not limited and not waits then
      taken, cid = take_from(lane, score, n, ids, of, within)
    elseif not cid then
      cid = call('ZRANGE', P .. 'l:' .. lane, '0', '0')[1]
    end
    if cid then
      -- One class with all there is to ask about it; one job, so that nothing goes before its turn.
      local scopes = call('HGET', P .. 'cs', cid) or ''
      local blocked = false
      if limited then
        for scope in string.gmatch(scopes, '%S+') do
          local room, til = room_of(scope, now)
          if room < 1 then
            park(cid, scope, til)
            blocked = true
            break
          end
        end
      end
      if not blocked and not warm[cid] then
        local model, patience = match(scopes, 'affinity:(%S+):(%d+)$')
        if model and call('ZRANGEBYSCORE', P .. 'wm:' .. model, num(now), '+inf', 'LIMIT', '0', '1')[1] then
          local head = call('ZRANGE', P .. 'c:' .. cid, '0', '0')[1]
          local _, _, _, submitted = header(head)
          local til = tonumber(submitted or '0', 36) + tonumber(patience)
          if til > now then
            park(cid, 'affinity:' .. model, til)
            for _, who in ipairs(call('ZRANGEBYSCORE', P .. 'wm:' .. model, num(now), '+inf', 'LIMIT', '0', '4')) do
              send(who, 'w ' .. who)
            end
            blocked = true
          end
        end
      end
      if not blocked then
        local id = call('ZRANGE', P .. 'c:' .. cid, '0', '0')[1]
        call('ZREM', P .. 'c:' .. cid, id)
        class_fix(cid)
        if limited then
          -- Counted at once: the next turn of this loop asks again.
          for scope in string.gmatch(scopes, '%S+') do spend(scope, 1, now) end
          running({ [scopes] = 1 }, now)
        end
        local at = #ids + 1
        ids[at], of[at], within[at] = id, cid, scopes
        taken = 1
      end
    end
    n = n - taken
    if taken > 0 then
      turns[#turns + 1] = #ids
    else
      -- A class was parked, or what named no job any more was mended.
      vain = vain + 1
      if vain >= 32 then
        again = 1
        break
      end
    end
  end
  local out, fence, on_trial = {}, 0, ''
  if #ids > 0 then
    local watched = call('EXISTS', P .. 'wt') == 1
    local keys, counts = {}, {}
    for i, id in ipairs(ids) do
      keys[i] = P .. 'j:' .. id
      local its = within[i]
      counts[its] = (counts[its] or 0) + 1
    end
    local raws = call('MGET', unpack(keys))
    local changed = call('EXISTS', P .. 'ch') == 1 and call('SMISMEMBER', P .. 'ch', unpack(ids))
    fence = fences(#ids, now)
    local R, held, count, size = {}, {}, counter(), 0
    local by = held_by(now, inc, worker)
    for i, id in ipairs(ids) do
      local raw = raws[i]
      local flags = match(raw or '', '^%S+ %S+ %S+ %S+ (%S+) ')
      local changes = ''
      if flags then
        if changed and changed[i] == 1 then
          changes = call('HGETALL', P .. 'm:' .. id)
          flags = flags .. 'h'
          call('SREM', P .. 'ch', id)
        end
        local h = #held + 1
        held[h] = id
        R[2 * h - 1] = id
        R[2 * h] = entry(count(fence + i), by, of[i], flags, within[i])
        if watched then call('PUBLISH', P .. 'e:' .. id, 'claimed') end
      end
      size = size + #(raw or '')
      out[3 * i - 2] = id
      out[3 * i - 1] = raw and i > 1 and size > ANSWER and '+' or raw or ''
      out[3 * i] = changes
    end
    call('DECRBY', P .. 'np', #ids)
    if #held > 0 then
      call('HSET', P .. 'R', unpack(R))
      call('SADD', P .. 'i:' .. inc, unpack(held))
    end
    if not limited then running(counts, now) end
    if account and #held > 0 then
      account_running(account, #held, now)
      if room < math.huge then spend('account:' .. account, #held, now) end
      room = room - #held
      if trial then
        local til, pauses, _, _, why = hold_of(account)
        set_hold(account, til, pauses, held[1], match(R[2], '^%S+'), why)
        on_trial = 'trial'
      end
    end
    came_to(raws, turns)
  end
  if n > 0 and again == 0 then
    call('ZADD', P .. 'z:' .. pid, num(now), inc)
    call('ZADD', P .. 'z:' .. personal, num(now), inc)
    call('SADD', P .. 'zp', pid, personal)
    again = 2
  elseif #ids > 0 and idle() then
    -- One wake-up leads to the next while there is work.
    wake((best(pid)), 1)
  end
  -- There may be room for one more of those who wait, or a time at which there is.
  if account and call('EXISTS', P .. 'hw:' .. account) == 1 then open_account(account, now, 1) end
  return { 'OK', num(now), next_due(), again, num(fence), out, { on_trial } }
end

-- incarnation assigned: it claims nothing for now, and is neither told of jobs nor assigned any. Answers with the id and fence of
-- one that it was assigned meanwhile.
function F.rest(a)
  local info = call('HGET', P .. 'I', a[1])
  if not info then return {} end
  local worker, pid = match(info, '^(%S+) (%S+)')
  local id, fence = leave_idle(a[1], worker, pid, a[2])
  return id and { id, fence } or {}
end

-- per job: id fence result
function F.complete(a)
  local now = now_ms()
  local ids, out = {}, {}
  for i = 1, #a, 3 do ids[#ids + 1] = a[i] end
  local runs = call('HMGET', P .. 'R', unpack(ids))
  local gone, done, fewer, within, by, claims, ended_with = {}, {}, {}, {}, {}, {}, {}
  local claim -- of the job before: most have it in common
  local ended_at, count = ' ' .. num(now) .. ' ', counter()
  local place = call('LLEN', P .. 'fc') + tonumber(call('GET', P .. 'fp') or 0)
  local others_wait = call('EXISTS', P .. 'ds') == 1
  local watched = call('EXISTS', P .. 'wt') == 1
  for n, id in ipairs(ids) do
    local fence, result = a[n * 3 - 1], a[n * 3]
    local run = runs[n]
    local cid, flags, at
    if run and not ended_with[id] and find(run, fence, 1, true) == 1 then
      local from = #fence + 1
      if not (claim and find(run, claim.who, from, true) == from) then
        local who, claimed, inc, worker = match(run, '^( (%S+) (%S+) (%S+) )', from)
        claim = claims[who or '']
        if who and not claim then
          by[inc] = by[inc] or {}
          claim = { who = who, jobs = by[inc], text = ' ' .. claimed .. ' ' .. worker .. ' ' }
          claims[who] = claim
        end
      end
      if claim then cid, flags, at = match(run, '^(%S+) (%S+) ?()', from + #claim.who) end
    end
    if cid then
      local scopes = sub(run, at)
      ended_with[id] = fence
      local k = #gone + 1
      gone[k] = id
      done[2 * k - 1] = id
      done[2 * k] = count(place + k) .. ended_at .. fence .. claim.text .. result
      claim.jobs[#claim.jobs + 1] = id
      if scopes == '' then scopes = scopes_of(run) end
      fewer[cid] = (fewer[cid] or 0) - 1
      within[scopes] = (within[scopes] or 0) - 1
      if sub(result, 1, 1) == '@' then call('SADD', P .. 'bl', id) end
      if flags ~= '-' and find(flags, 'h', 1, true) then
        event(id, now, 'completed', 'null', run)
      elseif watched then
        call('PUBLISH', P .. 'e:' .. id, 'completed')
      end
      if flags ~= '-' then
        ended(id, 'c', flags, now)
      elseif others_wait and call('EXISTS', P .. 'dp:' .. id) == 1 then
        tell_dependents(id, now)
      end
      out[n] = 'OK'
    elseif (ended_with[id] or match(call('HGET', P .. 'C', id) or '', '^%S+ %S+ (%S+)')) == fence then
      out[n] = 'OK'
    elseif call('EXISTS', P .. 'j:' .. id) == 1 then
      out[n] = 'STALE'
    else
      out[n] = 'UNKNOWN'
    end
  end
  if #gone > 0 then
    call('HSET', P .. 'C', unpack(done))
    call('RPUSH', P .. 'fc', unpack(gone))
    call('HDEL', P .. 'R', unpack(gone))
    if call('EXISTS', P .. 'r') == 1 then call('ZREM', P .. 'r', unpack(gone)) end
    for inc, jobs in pairs(by) do call('SREM', P .. 'i:' .. inc, unpack(jobs)) end
    live_all(fewer, now)
    running(within, now)
    for inc, jobs in pairs(by) do
      local account = account_of(call('HGET', P .. 'I', inc))
      if account then
        local til, _, id, fence, why = hold_of(account)
        if til and ended_with[id] == fence then
          -- It was tried for all. What was said meanwhile still counts.
          if til > now then set_hold(account, til, 0, '-', '0', why) else call('HDEL', P .. 'ah', account) end
        end
        account_running(account, -#jobs, now)
      end
    end
  end
  return out
end

-- id expected target class due kind data, then pairs for m. expected: a fence, or letters of states it may be in;
-- target: p d f x; class "": the present one. A value of "" removes the field, and "+1" as a value counts up.
function F.move(a)
  local now = now_ms()
  local id, expected, target = a[1], a[2], a[3]
  local st, run = state_of(id)
  if not st then return { 'UNKNOWN' } end
  if st == 'r' then
    if match(run, '^%S+') ~= expected then return { 'STATE', st } end
  elseif find(expected, '^%d') or not find(expected, st, 1, true) then
    return { 'STATE', st }
  end
  local score, base, _, _, flags = header(id)
  local old = class_of(id, base)
  local cid = a[4] ~= '' and a[4] or old
  if (target == 'p' or target == 'd') and not call('HGET', P .. 'cs', cid) then return { 'NOCLASS' } end
  local mk = P .. 'm:' .. id
  -- Out of where it is.
  local was_live = true
  if st == 'r' then
    local claimed, _, worker = match(run, '^%S+ (%S+) (%S+) (%S+)')
    leave_running(id, run, now)
    call('HSET', mk, 'cl', claimed, 'w', worker, 'n', expected)
  elseif st == 'd' then
    call('ZREM', P .. 'd', id)
  elseif st == 'p' then
    call('ZREM', P .. 'c:' .. old, id)
    class_fix(old)
    call('DECR', P .. 'np')
    local scope = call('HGET', P .. 'cs', old)
    for s in string.gmatch(scope or '', '%S+') do
      if call('ZCARD', P .. 'pk:' .. s) > 0 then unpark(s, now) end
    end
  elseif st == 'b' then
    call('ZREM', P .. 'b', id)
  else
    if st == 'c' then call('HDEL', P .. 'C', id) else call('ZREM', P .. 'f:' .. st, id) end
    call('ZREM', P .. 'o', id)
    was_live = false
  end
  comes_back(id, base, now)
  call('HDEL', mk, 'st')
  for i = 8, #a, 2 do
    if a[i + 1] == '' then
      call('HDEL', mk, a[i])
    elseif a[i + 1] == '+1' then
      call('HINCRBY', mk, a[i], '1')
    else
      call('HSET', mk, a[i], a[i + 1])
    end
  end
  -- A cancellation that was asked for while it ran takes the place of going back.
  local kind, data = a[6], a[7]
  if (target == 'p' or target == 'd') and call('HGET', mk, 'x') then target = 'x' end
  local is_live = target == 'p' or target == 'd'
  if was_live and (not is_live or cid ~= old) then live(old, -1, now) end
  if is_live and (not was_live or cid ~= old) then
    live(cid, 1, now)
    call('ZREM', P .. 'cz', cid)
  end
  event(id, now, kind, data, st == 'r' and run)
  if is_live then
    call('SADD', P .. 'ch', id)
    call('HDEL', mk, 'fin')
    if cid ~= base then call('HSET', mk, 'c', cid) else call('HDEL', mk, 'c') end
    if not was_live and find(flags, 'u', 1, true) then
      -- Its unique key may have been taken meanwhile; then it runs without.
      local key = call('HGET', P .. 'uk', id)
      if key and not call('HGET', P .. 'uq', key) then call('HSET', P .. 'uq', key, id) end
    end
    if not was_live and target == 'p' and call('HGET', mk, 'need') then
      -- It failed with one of the jobs that it waits for, or was cancelled; the others have not ended.
      target = 'b'
      call('HSET', mk, 'st', 'b')
      call('ZADD', P .. 'b', num(now), id)
    elseif target == 'd' then
      delay(id, tonumber(a[5]))
    else
      make_pending(id, cid, score)
    end
  else
    call('SREM', P .. 'ch', id)
    call('HSET', mk, 'st', target, 'fin', num(now))
    if target == 'x' and kind ~= 'cancelled' then event(id, now, 'cancelled', 'null') end
    ended(id, target, flags, now)
  end
  return { 'OK', target, num(now) }
end

-- Later, when nobody else has taken it, the job may go back to who failed it.
function F.avoid_until(a)
  local _, base = header(a[1])
  if not base then return 0 end
  call('PUBLISH', P .. 'due', a[2])
  -- Its class is in use until then.
  local new = call('ZADD', P .. 'av', a[2], a[1])
  if new == 1 then live(base, 1, now_ms()) end
  return new
end

-- id fence kind data, then pairs for m: what a running job reports
function F.report(a)
  local run = call('HGET', P .. 'R', a[1])
  if not run or match(run, '^%S+') ~= a[2] then
    return call('EXISTS', P .. 'j:' .. a[1]) == 1 and 'STALE' or 'UNKNOWN'
  end
  if #a > 4 then call('HSET', P .. 'm:' .. a[1], unpack(a, 5)) end
  if a[3] ~= '' then event(a[1], now_ms(), a[3], a[4], run) end
  return 'OK'
end

-- Asks the holder of a running job to stop; answers with the state.
function F.cancel(a)
  local id = a[1]
  local st, run = state_of(id)
  if st ~= 'r' then return st or 'UNKNOWN' end
  if call('HSET', P .. 'm:' .. id, 'x', '1') == 1 then event(id, now_ms(), 'cancelling', 'null', run) end
  send(match(run, '^%S+ %S+ (%S+)'), 'c ' .. id)
  return 'r'
end

-- A claim that the store has forgotten (a failover, a restart that lost its last second): its holder has it again, unless
-- the job went on without it. Claims grow over the queue's whole life, so what was claimed or ended since has a higher one.
local function adopt(inc, id, fence, now)
  local st = state_of(id)
  if st ~= 'p' and st ~= 'd' then return false end
  local last = call('HGET', P .. 'm:' .. id, 'n')
  if last and tonumber(last) >= tonumber(fence) then return false end
  local _, base, timeout, _, flags = header(id)
  local cid = class_of(id, base)
  if st == 'd' then
    call('ZREM', P .. 'd', id)
  else
    call('ZREM', P .. 'c:' .. cid, id)
    class_fix(cid)
    call('DECR', P .. 'np')
  end
  comes_back(id, base, now)
  if timeout == '-' then timeout = '3600000' end
  local info = call('HGET', P .. 'I', inc)
  local worker = match(info, '^%S+')
  if call('SREM', P .. 'ch', id) == 1 then flags = flags .. 'h' end
  local scopes = call('HGET', P .. 'cs', cid) or ''
  call('HSET', P .. 'R', id, entry(fence, held_by(now, inc, worker), cid, flags, scopes))
  call('SADD', P .. 'i:' .. inc, id)
  call('ZADD', P .. 'r', num(now + tonumber(timeout)), id)
  running({ [scopes] = 1 }, now)
  account_running(account_of(info), 1, now)
  return true
end

-- lease, then per incarnation: incarnation, n loaded models, models, n held, id fence ...
function F.heartbeat(a)
  local now = now_ms()
  local lease = tonumber(a[1])
  local i, answers = 2, {}
  while a[i] do
    local inc = a[i]
    local loaded = tonumber(a[i + 1])
    local there = call('ZSCORE', P .. 'W', inc)
    if there then
      call('ZADD', P .. 'W', num(now + lease), inc)
      for n = 1, loaded do
        local wm = P .. 'wm:' .. a[i + 1 + n]
        call('ZADD', wm, num(now + lease), inc)
        local gone = call('ZRANGEBYSCORE', wm, '-inf', num(now - 1), 'LIMIT', '0', BATCH)
        if #gone > 0 then call('ZREM', wm, unpack(gone)) end
      end
    end
    i = i + 2 + loaded
    local held = tonumber(a[i])
    local lost, cancelled, known, ids = {}, {}, {}, {}
    for n = 1, held do ids[n] = a[i + n * 2 - 1] end
    for from = 1, held, 500 do
      local to = math.min(from + 499, held)
      local runs = call('HMGET', P .. 'R', unpack(ids, from, to))
      local deadlines = call('ZMSCORE', P .. 'r', unpack(ids, from, to))
      for n = from, to do
        local id, fence, run = ids[n], a[i + n * 2], runs[n - from + 1]
        known[id] = true
        local holds, claimed = match(run or '', '^(%S+) (%S+)')
        if holds == fence then
          -- Whoever asked for its cancellation left an event.
          if has_events(run) and call('HGET', P .. 'm:' .. id, 'x') then cancelled[#cancelled + 1] = id end
          if not deadlines[n - from + 1] then
            local _, _, timeout = header(id)
            if timeout == '-' then timeout = '3600000' end
            call('ZADD', P .. 'r', num(tonumber(claimed) + tonumber(timeout or 0)), id)
          end
        elseif run or not there or not adopt(inc, id, fence, now) then
          lost[#lost + 1] = id
        end
      end
    end
    i = i + held * 2 + 1
    -- Claims whose answer never arrived.
    local extra = {}
    if there and call('SCARD', P .. 'i:' .. inc) > held - #lost then
      for _, id in ipairs(call('SRANDMEMBER', P .. 'i:' .. inc, '100')) do
        local run = not known[id] and call('HGET', P .. 'R', id)
        if run then
          local fence, claimed = match(run, '^(%S+) (%S+)')
          if now - tonumber(claimed) > lease / 2 then
            extra[#extra + 1] = id
            extra[#extra + 1] = fence
          end
        end
      end
    end
    answers[#answers + 1] = { there and 1 or 0, lost, cancelled, extra }
  end
  return { num(now), answers, F.todo() }
end

-- What there is to do for anybody: Incarnations whose lease has ended, attempts past their time, ...
function F.todo()
  local now = now_ms()
  promote(now, DUE)
  for _, id in ipairs(call('ZRANGEBYSCORE', P .. 'wt', '-inf', num(now), 'LIMIT', '0', BATCH)) do call('ZREM', P .. 'wt', id) end
  -- Workers that sleep although their lane has work: a wake-up went to one that died.
  local heads = call('ZRANGE', P .. 'H', '0', '15')
  if idle() then for _, lane in ipairs(heads) do wake(lane, 1) end end
  -- And those that wait for an account.
  for _, account in ipairs(call('SRANDMEMBER', P .. 'ha', '16')) do open_account(account, now, 1) end
  for _, account in ipairs(call('SRANDMEMBER', P .. 'aa', '2')) do forget_account(account, now) end
  local lease = call('ZRANGE', P .. 'W', '0', '0', 'WITHSCORES')
  return {
    num(now),
    next_due(),
    lease[2] or '',
    call('ZRANGEBYSCORE', P .. 'W', '-inf', num(now), 'LIMIT', '0', '16'),
    call('ZRANGEBYSCORE', P .. 'r', '-inf', num(now - GRACE), 'LIMIT', '0', BATCH),
    call('LLEN', P .. 'sl'),
    call('ZRANGEBYSCORE', P .. 'o', '-inf', num(now), 'LIMIT', '0', '1')[1] and 1 or 0,
    call('ZRANGE', P .. 'sc', '0', '0', 'WITHSCORES')[2] or '',
    call('LLEN', P .. 'inbox'),
    call('LLEN', P .. 'bg'),
    reads.stats(),
  }
end

-- id milliseconds: somebody watches the job's events for so long.
function F.watch(a)
  return call('ZADD', P .. 'wt', num(now_ms() + tonumber(a[2])), a[1])
end

-- Makes claimable what is due; answers with the time, and that of the next.
function F.promote()
  local now = now_ms()
  promote(now, DUE)
  return { num(now), next_due() }
end

-- Tells the dependents of the oldest finished job; answers with how many such jobs are left.
function F.settle()
  local now = now_ms()
  local id = call('LINDEX', P .. 'sl', '0')
  if not id then return 0 end
  local st = fixed_state(id)
  if not st or not find('cfx', st, 1, true) then
    -- Tried again before they were told: they wait for how that ends.
    call('LPOP', P .. 'sl')
    return call('LLEN', P .. 'sl')
  end
  for _, dep in ipairs(call('SRANDMEMBER', P .. 'dp:' .. id, BATCH)) do
    call('SREM', P .. 'dp:' .. id, dep)
    local mk = P .. 'm:' .. dep
    local m = call('HMGET', mk, 'st', 'dp', 'due', 'need')
    -- Counted also for one that is over: it may be tried again before all of them have ended.
    local need = m[4] and call('HINCRBY', mk, 'need', '-1') or 0
    if m[4] and need <= 0 then call('HDEL', mk, 'need') end
    if m[1] == 'b' then
      local score, base, _, _, flags = header(dep)
      if st ~= 'c' and m[2] ~= 'run' then
        call('ZREM', P .. 'b', dep)
        live(class_of(dep, base), -1, now)
        fail_with(id, dep, flags, now)
      elseif need <= 0 then
        call('ZREM', P .. 'b', dep)
        call('HDEL', mk, 'st')
        event(dep, now, 'unblocked', 'null')
        if m[3] and tonumber(m[3]) > now then
          delay(dep, tonumber(m[3]))
        else
          make_pending(dep, class_of(dep, base), score)
        end
      end
    end
  end
  if call('EXISTS', P .. 'dp:' .. id) == 0 then
    call('SREM', P .. 'ds', id)
    call('LPOP', P .. 'sl')
  end
  return call('LLEN', P .. 'sl')
end

-- Whoever waits for the job has to be told first.
local function waited_for(id) return call('EXISTS', P .. 'dp:' .. id) == 1 end

-- All that is kept of jobs that are over, but for their entries in fc.
local function drop(ids, st, now)
  if #ids == 0 then return end
  local moved = call('EXISTS', P .. 'av') == 1
  for _, id in ipairs(ids) do
    if moved then
      local _, base = header(id)
      comes_back(id, base, now)
    end
    call('DEL', P .. 'j:' .. id, P .. 'm:' .. id, P .. 'e:' .. id)
  end
  if st == 'c' then call('HDEL', P .. 'C', unpack(ids)) else call('ZREM', P .. 'f:' .. st, unpack(ids)) end
  if call('EXISTS', P .. 'ki') == 1 then
    for i, key in ipairs(call('HMGET', P .. 'ki', unpack(ids))) do
      if key then
        call('HDEL', P .. 'ki', ids[i])
        call('HDEL', P .. 'ik', key)
      end
    end
  end
  call('HDEL', P .. 'uk', unpack(ids))
  call('ZREM', P .. 'o', unpack(ids))
  if call('EXISTS', P .. 'bl') == 1 then
    local stamp = num(now)
    for _, id in ipairs(ids) do
      if call('SREM', P .. 'bl', id) == 1 then call('RPUSH', P .. 'bg', id .. ' ' .. stamp) end
    end
  end
end

-- The oldest completed jobs that are kept no longer; takes their entries out of fc, and those that mean nothing any more.
local function outlived(before, max)
  local excess = call('HLEN', P .. 'C') - max
  local ids = call('LRANGE', P .. 'fc', '0', BATCH - 1)
  if #ids == 0 then return {}, 0 end
  local left = tonumber(call('GET', P .. 'fp') or 0)
  local old, n = {}, 0
  for i, done in ipairs(call('HMGET', P .. 'C', unpack(ids))) do
    local place, finished = match(done or '', '^(%S+) (%S+)')
    if tonumber(place) == left + i then
      if (tonumber(finished) > before and #old >= excess) or waited_for(ids[i]) then break end
      old[#old + 1] = ids[i]
    end
    call('LPOP', P .. 'fc')
    n = n + 1
  end
  if n > 0 then call('INCRBY', P .. 'fp', n) end
  return old, n
end

local function without_waited_for(ids)
  if call('EXISTS', P .. 'ds') == 0 then return ids end
  local out = {}
  for _, id in ipairs(ids) do if not waited_for(id) then out[#out + 1] = id end end
  return out
end

-- keep_finished keep_failed max: drops what is kept no longer, in one bounded step; answers with how many.
function F.retain(a)
  local now = now_ms()
  local n = 0
  local completed, taken = outlived(now - tonumber(a[1]), tonumber(a[3]))
  drop(completed, 'c', now)
  n = n + taken
  for _, st in ipairs({ 'x', 'f' }) do
    local fk = P .. 'f:' .. st
    local before = now - tonumber(st == 'f' and a[2] or a[1])
    local gone = without_waited_for(call('ZRANGEBYSCORE', fk, '-inf', num(before), 'LIMIT', '0', BATCH))
    local excess = call('ZCARD', fk) - tonumber(a[3])
    if #gone == 0 and excess > 0 then gone = without_waited_for(call('ZRANGE', fk, '0', math.min(excess, BATCH) - 1)) end
    drop(gone, st, now)
    n = n + #gone
  end
  -- Classes and profiles that nobody has used for an hour, places of workflows after a week, and old tags.
  local hour = num(now - 3600000)
  for _, cid in ipairs(call('ZRANGEBYSCORE', P .. 'cz', '-inf', hour, 'LIMIT', '0', '4')) do
    call('ZREM', P .. 'cz', cid)
    n = n + 1
    if tonumber(call('HGET', P .. 'cn', cid) or 0) <= 0 then
      for _, pid in ipairs(call('SMEMBERS', P .. 's:' .. cid)) do call('SREM', P .. 'pc:' .. pid, cid) end
      call('DEL', P .. 's:' .. cid)
      find_lane(cid)
      for _, h in ipairs({ 'cls', 'cs', 'cn' }) do call('HDEL', P .. h, cid) end
    end
  end
  for _, pid in ipairs(call('ZRANGEBYSCORE', P .. 'pz', '-inf', hour, 'LIMIT', '0', '1')) do
    n = n + 1
    -- From the first step on it is not complete: whoever registers with it meanwhile subscribes to all again.
    call('SREM', P .. 'pd', pid)
    call('HDEL', P .. 'profiles', pid)
    local classes = call('SRANDMEMBER', P .. 'pc:' .. pid, MOVES)
    for _, cid in ipairs(classes) do subscribe(cid, pid, false) end
    if #classes < MOVES then
      call('ZREM', P .. 'pz', pid)
      call('DEL', P .. 'pl:' .. pid, P .. 'pc:' .. pid, P .. 'z:' .. pid)
      call('SREM', P .. 'zp', pid)
      call('INCR', P .. 'ep')
    end
  end
  for _, flow in ipairs(call('ZRANGEBYSCORE', P .. 'wfz', '-inf', num(now - 604800000), 'LIMIT', '0', BATCH)) do
    call('ZREM', P .. 'wfz', flow)
    call('HDEL', P .. 'wf', flow)
  end
  local vt = call('HGETALL', P .. 'vt')
  for i = 1, math.min(#vt, 20), 2 do
    local old = call('ZRANGEBYSCORE', P .. 'ft:' .. vt[i], '-inf', vt[i + 1], 'LIMIT', '0', BATCH)
    if #old > 0 then call('ZREM', P .. 'ft:' .. vt[i], unpack(old)) end
  end
  return n
end

-- n id: the first n of the list of garbage were deleted, of which this is the first
function F.collected(a)
  local first = call('LINDEX', P .. 'bg', '0')
  if not first or match(first, '^%S+') ~= a[2] then return 0 end
  for _ = 1, tonumber(a[1]) do call('LPOP', P .. 'bg') end
  return 1
end

-- scope "max rate burst paused" | ""
function F.limit(a)
  local key, account = limits_of(a[1]), match(a[1], '^account:(.*)$')
  if a[2] == '' then call('HDEL', key, a[1]) else call('HSET', key, a[1], a[2]) end
  unpark(a[1], now_ms())
  if account then
    call('SADD', P .. 'aa', account)
    forget_account(account, now_ms())
  end
  return call('ZCARD', account and P .. 'hw:' .. account or P .. 'pk:' .. a[1])
end

-- account, pause and longest pause in ms, whether one job is then tried for all (1), the job that ran into it and its claim, why.
-- Answers with the end of the hold, and whether that is news.
function F.hold(a)
  local now = now_ms()
  local account, pause, longest, tried = a[1], tonumber(a[2]), tonumber(a[3]), a[4] == '1'
  local til, pauses, id, fence, why = hold_of(account)
  local news = true
  if not til or (pauses == 0 and til <= now) then
    til, pauses, id, fence, why = now + pause, tried and 1 or 0, '-', '0', a[7]
  elseif id == a[5] and fence == a[6] then
    -- The one that was tried: longer each time, where it is not said how long.
    if tried then
      pauses = pauses + 1
      pause = math.min(longest, pause * 2 ^ math.min(pauses - 1, 40))
    end
    til, id, fence, why = math.max(til, now + pause), '-', '0', a[7]
  else
    -- Others ran into the same. They say no more than how long it is at least.
    news = false
    if til < now + pause then til, why = now + pause, a[7] end
    if tried and pauses == 0 then pauses = 1 end
  end
  set_hold(account, til, pauses, id, fence, why)
  -- Whoever had it may have another one by now.
  call('SADD', P .. 'aa', account)
  open_account(account, now, UNPARK)
  return { num(til), news and 1 or 0 }
end

-- account: whatever holds it is over.
function F.lift(a)
  local was = call('HDEL', P .. 'ah', a[1])
  open_account(a[1], now_ms(), UNPARK)
  forget_account(a[1], now_ms())
  return was
end

-- Hands out webhooks that are due, each for a minute.
function F.outbox(a)
  local now = now_ms()
  local due = call('ZRANGEBYSCORE', P .. 'o', '-inf', num(now), 'LIMIT', '0', '20')
  for _, id in ipairs(due) do call('ZADD', P .. 'o', num(now + 60000), id) end
  return due
end

-- id, "" when it was delivered or given up, else the pause in ms; tries so far
function F.delivered(a)
  if a[2] == '' then
    call('ZREM', P .. 'o', a[1])
  else
    call('ZADD', P .. 'o', num(now_ms() + tonumber(a[2])), a[1])
    call('HSET', P .. 'm:' .. a[1], 'wh', a[3])
  end
  return 1
end

-- name expected next definition: expected "" puts it, next "" removes it
function F.schedule(a)
  local current = call('ZSCORE', P .. 'sc', a[1])
  if a[2] ~= '' and (not current or num(tonumber(current)) ~= a[2]) then return 0 end
  if a[3] == '' then
    call('HDEL', P .. 'sj', a[1])
    return call('ZREM', P .. 'sc', a[1])
  end
  call('ZADD', P .. 'sc', a[3], a[1])
  if a[4] ~= '' then call('HSET', P .. 'sj', a[1], a[4]) end
  call('PUBLISH', P .. 'due', a[3])
  return 1
end

-- machine, for how many ms it counts as present without another word (0: it takes leave), message, summary
function F.announce(a)
  local now = now_ms()
  local id, til = a[1], now + tonumber(a[2])
  local gone = call('ZRANGEBYSCORE', P .. 'ms', '-inf', num(now - REMEMBERED), 'LIMIT', '0', BATCH)
  if #gone > 0 then
    call('ZREM', P .. 'ms', unpack(gone))
    call('HDEL', P .. 'mw', unpack(gone))
  end
  call('ZADD', P .. 'ms', num(til), id)
  call('HSET', P .. 'mw', id, num(now) .. ' ' .. num(til) .. ' ' .. a[4])
  if til > now then
    call('SET', P .. 'machine:' .. id, a[3], 'PX', a[2])
  else
    call('DEL', P .. 'machine:' .. id)
  end
  -- Last: a machine whose user may not publish there is listed all the same.
  call('PUBLISH', 'machine:status:' .. id, a[3])
  return 1
end

-- Reading ----------------------------------------------------------------------------------------------------------

-- When, and under which claim, a job was completed, and its result.
local function completion(id)
  return match(call('HGET', P .. 'C', id) or '', '^%S+ (%S+) (%S+) (%S+) (%S+) (.*)$')
end

-- Records of the first of these jobs, as many as one answer has room for.
function reads.records(a)
  local out, size = {}, 0
  for n, id in ipairs(a) do
    local raw = call('GET', P .. 'j:' .. id) or ''
    size = size + #raw
    if n > 1 and size > ANSWER then break end
    out[n] = raw
  end
  return out
end

-- All there is of the first of these jobs, as many as one answer has room for.
function reads.get(a)
  local out, size = {}, 0
  for n, id in ipairs(a) do
    local raw = call('GET', P .. 'j:' .. id)
    if raw then
      local run = call('HGET', P .. 'R', id) or ''
      local m = call('HGETALL', P .. 'm:' .. id)
      local fin, fence, claimed, worker, result = completion(id)
      if fin then
        for _, word in ipairs({ 'st', 'c', 'fin', fin, 'n', fence, 'cl', claimed, 'w', worker, 'res', result }) do
          m[#m + 1] = word
        end
      end
      size = size + #raw
      for _, word in ipairs(m) do size = size + #word end
      if n > 1 and size > ANSWER then break end
      out[n] = { raw, run, call('ZSCORE', P .. 'd', id) or '', m }
    else
      out[n] = {}
    end
  end
  return { num(now_ms()), out }
end

-- The jobs that run, holder by holder.
local function list_running(offset, count)
  local out = {}
  for _, inc in ipairs(call('ZRANGE', P .. 'W', '0', '999')) do
    local n = call('SCARD', P .. 'i:' .. inc)
    if offset >= n then
      offset = offset - n
    else
      local ids = call('SMEMBERS', P .. 'i:' .. inc)
      table.sort(ids)
      for i = offset + 1, math.min(n, offset + count - #out) do out[#out + 1] = ids[i] end
      offset = 0
    end
    if #out == count then break end
  end
  return out
end

-- Completed jobs, latest first; "" for an entry that means nothing any more.
local function list_completed(offset, count)
  local last = call('LLEN', P .. 'fc') - 1 - offset
  if last < 0 then return {} end
  local first = math.max(0, last - count + 1)
  local ids, out = call('LRANGE', P .. 'fc', first, last), {}
  local left = first + tonumber(call('GET', P .. 'fp') or 0)
  for i, done in ipairs(call('HMGET', P .. 'C', unpack(ids))) do
    out[#ids + 1 - i] = tonumber(match(done or '', '^%S+')) == left + i and ids[i] or ''
  end
  return out
end

-- letter (not p) offset count
function reads.list(a)
  local st, offset, count = a[1], tonumber(a[2]), tonumber(a[3])
  if st == 'r' then return list_running(offset, count) end
  if st == 'c' then return list_completed(offset, count) end
  if st == 'd' or st == 'b' then return call('ZRANGE', P .. st, offset, offset + count - 1) end
  return call('ZREVRANGE', P .. 'f:' .. st, offset, offset + count - 1)
end

-- cls (class -> definition), cn (class -> jobs that are not over), profiles or workers (-> capabilities); where to go on, ""
-- at first; count: a page, after where the next begins ("" after the last). What is there all the time is on a page at least once.
function reads.scan(a)
  local page = call('HSCAN', P .. a[1], a[2] == '' and '0' or a[2], 'COUNT', a[3])
  return { page[1] == '0' and '' or page[1], page[2] }
end

-- where to go on, "" at first; count: the time, where the next page begins, machines and their last words
function reads.machines(a)
  local page = reads.scan({ 'mw', a[1], a[2] })
  return { num(now_ms()), page[1], page[2] }
end

-- classes...: the score of the first waiting job of each, "" where none waits
function reads.heads(a)
  local out = {}
  for i = 1, #a do out[i] = call('ZRANGE', P .. 'c:' .. a[i], '0', '0', 'WITHSCORES')[2] or '' end
  return out
end

-- count score classes...: the first waiting jobs of each, up to that score, with their scores
function reads.pending(a)
  local out = {}
  for i = 3, #a do
    local found = call('ZRANGEBYSCORE', P .. 'c:' .. a[i], '-inf', a[2], 'WITHSCORES', 'LIMIT', '0', tonumber(a[1]))
    for _, word in ipairs(found) do out[#out + 1] = word end
  end
  return out
end

function reads.events(a)
  local id = a[1]
  local _, _, _, submitted = header(id)
  if not submitted then return {} end
  local m = call('HMGET', P .. 'm:' .. id, 'ev', 'ce')
  local trimmed = tonumber(m[1] or 0)
  -- The first event is the submission, which the record tells; the list has the others.
  local from = math.max(0, tonumber(a[2]) - 1 - trimmed)
  local list, size = call('LRANGE', P .. 'e:' .. id, from, from + 999), 0
  for n = 1, #list do
    size = size + #list[n]
    if n > 1 and size > ANSWER then list[n] = nil end
  end
  local length = call('LLEN', P .. 'e:' .. id)
  -- What was not written because the state tells it.
  local more = {}
  local run = call('HGET', P .. 'R', id)
  if run then
    local fence, at, _, worker = match(run, '^(%S+) (%S+) (%S+) (%S+)')
    if m[2] ~= fence then more = { claimed_event(at, worker, fence) } end
  elseif length == 0 then
    local fin, fence, claimed, worker = completion(id)
    if fin then more = { claimed_event(claimed, worker, fence), fin .. ' completed null' } end
  end
  if from + #list >= length then
    for i = math.max(1, from - length + 1), #more do list[#list + 1] = more[i] end
  end
  return { num(tonumber(submitted, 36)), num(trimmed), num(from), list }
end

function reads.stats()
  local oldest = ''
  for _, lane in ipairs(call('ZRANGE', P .. 'H', '0', '31')) do
    local cid = call('ZRANGE', P .. 'l:' .. lane, '0', '0')[1]
    local id = cid and call('ZRANGE', P .. 'c:' .. cid, '0', '0')[1]
    local _, _, _, at = header(id or '')
    if at and (oldest == '' or tonumber(at, 36) < oldest) then oldest = tonumber(at, 36) end
  end
  if oldest ~= '' then oldest = num(oldest) end
  return {
    call('ZCARD', P .. 'd'), call('GET', P .. 'np') or '0', call('HLEN', P .. 'R'), call('HLEN', P .. 'C'),
    call('ZCARD', P .. 'f:f'), call('ZCARD', P .. 'f:x'), call('ZCARD', P .. 'b'), oldest,
    call('ZCARD', P .. 'W'), call('LLEN', P .. 'inbox'), call('ZCARD', P .. 'o'), call('HLEN', P .. 'cls'),
  }
end

-- When the one of a class's n waiting jobs that waits longest was submitted: the first of a priority, of the eight highest.
local function oldest_of(cid, n)
  local least, from = math.huge, '-inf'
  for _ = 1, math.min(n, 8) do
    local t = call('ZRANGEBYSCORE', P .. 'c:' .. cid, from, '+inf', 'WITHSCORES', 'LIMIT', '0', '1')
    if not t[1] then break end
    local _, _, _, at = header(t[1])
    if at then least = math.min(least, tonumber(at, 36)) end
    from = num((math.floor(tonumber(t[2]) / LEVEL) + 1) * LEVEL)
  end
  return least < math.huge and num(least) or ''
end

-- classes...: of each its definition, jobs that wait, live jobs, profiles that match, parked by, the oldest
function reads.classes(a)
  if #a == 0 then return {} end
  local cls, cn, pb = call('HMGET', P .. 'cls', unpack(a)), call('HMGET', P .. 'cn', unpack(a)), call('HMGET', P .. 'pb', unpack(a))
  local out = {}
  for i, cid in ipairs(a) do
    local n = call('ZCARD', P .. 'c:' .. cid)
    if cls[i] then
      out[#out + 1] = { cid, cls[i], n, cn[i] or '0', call('SCARD', P .. 's:' .. cid), pb[i] or '', n > 0 and oldest_of(cid, n) or '' }
    end
  end
  return out
end

-- Of every class how many of its jobs are not over.

-- scopes...: how many jobs of each run
function reads.running(a)
  if #a == 0 then return {} end
  local out = {}
  for i, n in ipairs(call('HMGET', P .. 'run', unpack(a))) do out[i] = n or '0' end
  return out
end

-- model: workers that have it loaded, some of them
function reads.loaded(a)
  local out = {}
  for _, inc in ipairs(call('ZRANGEBYSCORE', P .. 'wm:' .. a[1], num(now_ms()), '+inf', 'LIMIT', '0', '16')) do
    local info = call('HGET', P .. 'I', inc)
    if info then out[#out + 1] = match(info, '^%S+') end
  end
  return out
end

-- Changes with profiles and workers.
function reads.epoch() return call('GET', P .. 'ep') or '0' end

function reads.held_by(a) return call('HGET', P .. 'pb', a[1]) end

function reads.held(a) return call('SRANDMEMBER', P .. 'i:' .. a[1], '100') end

-- Jobs that are gone, and since when, whose blobs are to be deleted.
function reads.garbage()
  local out = {}
  for _, entry in ipairs(call('LRANGE', P .. 'bg', '0', BATCH - 1)) do
    out[#out + 1], out[#out + 2] = match(entry, '^(%S+) (%S+)$')
  end
  return out
end

-- The first entries of the inbox, each followed by its digest; of one that is larger than any job nothing but that.
function reads.inbox()
  local out, bytes = {}, 0
  for at = 0, 99 do
    local entry = call('LINDEX', P .. 'inbox', at)
    if not entry then break end
    out[#out + 1] = #entry <= MAX_ENTRY and entry or ''
    out[#out + 1] = redis.sha1hex(entry)
    bytes = bytes + #entry
    if bytes > MAX_ENTRY then break end
  end
  return out
end

function reads.limits()
  local limits = call('HGETALL', P .. 'lim')
  for _, word in ipairs(call('HGETALL', P .. 'al')) do limits[#limits + 1] = word end
  return { limits, call('HGETALL', P .. 'run') }
end

-- Of every account that is known: its hold and its limit ("" for none), jobs that run, workers that wait for it
function reads.accounts()
  local out = {}
  for _, account in ipairs(call('SMEMBERS', P .. 'aa')) do
    local scope = 'account:' .. account
    out[#out + 1] = {
      account, call('HGET', P .. 'ah', account) or '', call('HGET', P .. 'al', scope) or '',
      call('HGET', P .. 'run', scope) or '0', call('ZCARD', P .. 'hw:' .. account),
    }
  end
  return { num(now_ms()), out }
end

function reads.schedules()
  local out = {}
  for _, name in ipairs(call('ZRANGE', P .. 'sc', '0', '999')) do
    out[#out + 1] = { name, num(tonumber(call('ZSCORE', P .. 'sc', name))), call('HGET', P .. 'sj', name) or '' }
  end
  return out
end

-- Audit ------------------------------------------------------------------------------------------------------------

-- repair, then ids: every job is in exactly one place.
function F.audit(a)
  local repair, problems = a[1] == '1', {}
  local now = now_ms()
  for i = 2, #a do
    local id = a[i]
    local score, base = header(id)
    if score then
      local mk = P .. 'm:' .. id
      local cid = class_of(id, base)
      local places = {}
      if call('HGET', P .. 'R', id) then places[#places + 1] = 'running' end
      if call('ZSCORE', P .. 'd', id) then places[#places + 1] = 'delayed' end
      if call('ZSCORE', P .. 'c:' .. cid, id) then places[#places + 1] = 'pending' end
      if call('ZSCORE', P .. 'b', id) then places[#places + 1] = 'blocked' end
      if call('HEXISTS', P .. 'C', id) == 1 then places[#places + 1] = 'c' end
      for _, st in ipairs({ 'f', 'x' }) do
        if call('ZSCORE', P .. 'f:' .. st, id) then places[#places + 1] = st end
      end
      if #places ~= 1 then
        problems[#problems + 1] = 'job ' .. id .. ' is in ' .. #places .. ' places: ' .. table.concat(places, ', ')
        if repair then
          for _, key in ipairs({ 'd', 'b', 'f:f', 'f:x', 'r', 'c:' .. cid }) do call('ZREM', P .. key, id) end
          local st = fixed_state(id)
          local run = call('HGET', P .. 'R', id)
          if run then leave_running(id, run, now) end
          if st == 'f' or st == 'x' then
            call('ZADD', P .. 'f:' .. st, call('HGET', mk, 'fin') or num(now), id)
          elseif st ~= 'c' then
            call('HDEL', mk, 'st')
            call('SADD', P .. 'ch', id)
            put(cid, { score, id }, idle())
          end
        end
      end
      local done = call('HGET', P .. 'C', id)
      if done then
        local at = tonumber(match(done, '^%S+')) - tonumber(call('GET', P .. 'fp') or 0) - 1
        if at < 0 or call('LINDEX', P .. 'fc', num(at)) ~= id then
          problems[#problems + 1] = 'job ' .. id .. ' is completed, and would be kept for ever'
          if repair then
            local place = call('RPUSH', P .. 'fc', id) + tonumber(call('GET', P .. 'fp') or 0)
            call('HSET', P .. 'C', id, (string.gsub(done, '^%S+', num(place))))
          end
        end
      end
      if waited_for(id) and call('SISMEMBER', P .. 'ds', id) == 0 then
        problems[#problems + 1] = 'job ' .. id .. ' is waited for, and those who wait would not be told'
        if repair then call('SADD', P .. 'ds', id) end
      end
      local run = call('HGET', P .. 'R', id)
      if not run and call('ZSCORE', P .. 'r', id) then
        problems[#problems + 1] = 'job ' .. id .. ' has a deadline, and does not run'
        if repair then call('ZREM', P .. 'r', id) end
      end
      if run and not has_events(run) and call('EXISTS', P .. 'e:' .. id) == 1 then
        problems[#problems + 1] = 'job ' .. id .. ' runs, and its end would be no event'
        run = with_events(run)
        if repair then call('HSET', P .. 'R', id, run) end
      end
      if run then
        local inc = match(run, '^%S+ %S+ (%S+)')
        if call('SISMEMBER', P .. 'i:' .. inc, id) == 0 or not call('ZSCORE', P .. 'W', inc) then
          problems[#problems + 1] = 'job ' .. id .. ' runs on ' .. inc .. ', which does not know of it'
          if repair then
            leave_running(id, run, now)
            call('SADD', P .. 'ch', id)
            put(cid, { score, id }, idle())
          end
        end
      elseif not find('cfx', fixed_state(id) or 'w', 1, true) and call('EXISTS', mk) > call('SISMEMBER', P .. 'ch', id) then
        problems[#problems + 1] = 'job ' .. id .. ' waits, and what changed of it would not be seen'
        if repair then call('SADD', P .. 'ch', id) end
      end
      local over = places[1] and find('cfx', places[1], 1, true)
      if not over and not call('HGET', P .. 'cls', cid) then problems[#problems + 1] = 'class ' .. cid .. ' of job ' .. id .. ' is not defined' end
    end
  end
  return problems
end

-- repair, then classes: the head of each is where it is looked for.
function F.audit_classes(a)
  local repair, problems = a[1] == '1', {}
  for i = 2, #a do
    local cid = a[i]
    local t = call('ZRANGE', P .. 'c:' .. cid, '0', '0', 'WITHSCORES')
    local lane, scope = call('HGET', P .. 'lane', cid), call('HGET', P .. 'pb', cid)
    local seen
    if scope then
      seen = call('ZSCORE', P .. 'pk:' .. scope, cid)
    elseif lane then
      seen = call('ZSCORE', P .. 'l:' .. lane, cid)
      local head = call('ZRANGE', P .. 'l:' .. lane, '0', '0', 'WITHSCORES')[2]
      if (head or false) ~= call('ZSCORE', P .. 'H', lane) then
        problems[#problems + 1] = 'lane ' .. lane .. ' is not where its head says'
        if repair then lane_fix(lane) end
      end
    else
      seen = t[2] or false
    end
    if (t[2] or false) ~= seen then
      problems[#problems + 1] = 'class ' .. cid .. ' is not where its head says'
      if repair then class_fix(cid) end
    end
    local jobs = tonumber(call('HGET', P .. 'cn', cid) or 0)
    if jobs < call('ZCARD', P .. 'c:' .. cid) then
      problems[#problems + 1] = 'class ' .. cid .. ' counts ' .. jobs .. ' jobs and has more'
    end
    local sum = call('SCARD', P .. 's:' .. cid)
    if (sum > 0) ~= (lane and true or false) then problems[#problems + 1] = 'class ' .. cid .. ' has the wrong lane' end
  end
  return problems
end

-- repair: the counter of pending jobs is right.
function F.audit_pending(a)
  local repair = a[1] == '1'
  local total = 0
  for _, cid in ipairs(call('HKEYS', P .. 'cls')) do total = total + call('ZCARD', P .. 'c:' .. cid) end
  local counted = tonumber(call('GET', P .. 'np') or 0)
  if total == counted then return {} end
  if repair then call('SET', P .. 'np', total) end
  return { 'the counter of pending jobs says ' .. counted .. ', there are ' .. total }
end

-- repair: limits and holds can be read. One that cannot stops the claims that ask for it.
function F.audit_limits(a)
  local repair, problems = a[1] == '1', {}
  local readable = function(word) return word == '-' or tonumber(word) end
  for _, key in ipairs({ 'lim', 'al' }) do
    local all = call('HGETALL', P .. key)
    for i = 1, #all, 2 do
      local scope, lim = all[i], all[i + 1]
      local max, rate, burst, paused = match(lim, '^(%S+) (%S+) (%S+) (%S+)$')
      if not (paused and readable(max) and readable(rate) and (rate == '-' or tonumber(burst))) then
        problems[#problems + 1] = 'the limit of ' .. scope .. ' cannot be read, and is none after a repair: ' .. lim
        if repair then
          call('HDEL', P .. key, scope)
          unpark(scope, now_ms())
        end
      end
    end
  end
  local all = call('HGETALL', P .. 'ah')
  for i = 1, #all, 2 do
    local til, pauses, fence = match(all[i + 1], '^(%S+) (%S+) %S+ (%S+) ')
    if not (tonumber(til) and tonumber(pauses) and tonumber(fence)) then
      problems[#problems + 1] = 'the hold of account ' .. all[i] .. ' cannot be read, and is none after a repair: ' .. all[i + 1]
      if repair then
        call('HDEL', P .. 'ah', all[i])
        open_account(all[i], now_ms(), UNPARK)
      end
    end
  end
  return problems
end

-- repair: the counts of jobs that run in each scope are right: one too high keeps others from running for ever.
function F.audit_running(a)
  local repair, problems, runs, counts = a[1] == '1', {}, {}, {}
  local all = call('HGETALL', P .. 'run')
  for i = 1, #all, 2 do
    if sub(all[i], 1, 8) ~= 'account:' then runs[all[i]], counts[all[i]] = 0, tonumber(all[i + 1]) end
  end
  all = call('HGETALL', P .. 'R')
  for i = 2, #all, 2 do
    for scope in string.gmatch(scopes_of(all[i]), '%S+') do
      if sub(scope, 1, 9) ~= 'affinity:' then runs[scope] = (runs[scope] or 0) + 1 end
    end
  end
  for scope, n in pairs(runs) do
    local counted = counts[scope] or 0
    if counted ~= n then
      problems[#problems + 1] = scope .. ' counts ' .. counted .. ' running jobs and has ' .. n
      if repair then running({ [scope] = n - counted }, now_ms()) end
    end
  end
  return problems
end

-- repair: the counts of workers that have each account, and of jobs that run with it, are right; nothing is kept of who is gone.
function F.audit_accounts(a)
  local repair, problems, runs, has, gone = a[1] == '1', {}, {}, {}, {}
  for _, inc in ipairs(call('HKEYS', P .. 'as')) do gone[inc] = true end
  for _, account in ipairs(call('SMEMBERS', P .. 'aa')) do runs[account] = 0 end
  for _, account in ipairs(call('HKEYS', P .. 'an')) do runs[account] = 0 end
  local all = call('HGETALL', P .. 'I')
  for i = 1, #all, 2 do
    local account = account_of(all[i + 1])
    gone[all[i]] = nil
    if account then
      runs[account] = (runs[account] or 0) + call('SCARD', P .. 'i:' .. all[i])
      has[account] = (has[account] or 0) + 1
    end
  end
  for account, n in pairs(runs) do
    local scope = 'account:' .. account
    local counted = tonumber(call('HGET', P .. 'run', scope) or 0)
    if counted ~= n then
      problems[#problems + 1] = 'account ' .. account .. ' counts ' .. counted .. ' running jobs and has ' .. n
      if repair then account_running(account, n - counted, now_ms()) end
    end
    local used, have = tonumber(call('HGET', P .. 'an', account) or 0), has[account] or 0
    if used ~= have then
      problems[#problems + 1] = 'account ' .. account .. ' counts ' .. used .. ' workers and has ' .. have
      if repair then account_used(account, have - used, now_ms()) end
    end
    if call('EXISTS', P .. 'hw:' .. account) > call('SISMEMBER', P .. 'ha', account) then
      problems[#problems + 1] = 'account ' .. account .. ' is waited for, and those who wait might not be told'
      if repair then call('SADD', P .. 'ha', account) end
    end
  end
  for inc in pairs(gone) do
    problems[#problems + 1] = inc .. ' was assigned a job and is gone'
    if repair then call('HDEL', P .. 'as', inc) end
  end
  return problems
end

-- Drops a job that is over; WAITED: those who wait for it have to be told first.
function F.drop(a)
  local id = a[1]
  local st = state_of(id)
  if not st then return 'UNKNOWN' end
  if not find('cfx', st, 1, true) then return st end
  if waited_for(id) then return 'WAITED' end
  drop({ id }, st, now_ms())
  return 'OK'
end
