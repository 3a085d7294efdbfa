"""What Redis does by itself, in one piece: the keys, and the scripts that are all that ever writes to them.

Every key begins with the prefix of the deployment (`pere:` unless `?prefix=` says otherwise) and has a time to live, which the keeper renews,
so what nobody uses goes away. Redis Cluster, which would spread the keys, is not served.

| key | what |
|---|---|
| `head` | hash: `n`, how many entries the log has had; `ms` and `seq`, the newest event id; `last`, the header of the newest entry; `born`; `deployment`, drawn by lot; `version`; `limits`, in which all nodes must agree; `stand`, how everything stands, as the keeper has it (JSON); and by node `b:NODE`, its newest batch, and `t:NODE`, how far it had taken the log when it was last heard |
| `log` | stream: entry `n-0` is the nth batch, `h` its header and `b` what it says (MessagePack); trimmed a minute behind what is kept |
| `log:@`, `log:CHANNEL`, `log:` | channels of publish and subscribe: every entry as it is appended, on those for which it is of interest: that of all nodes, those of the channels it is about, or else the last, to which nobody listens who does not listen to all. If it is only one, with what the entry says |
| `nodes` | sorted set: the nodes, by the second in which each was last heard (Redis' clock) |
| `keeper` | string: the node that keeps what the log said, and sends webhooks; it expires if it is not renewed |
| `loading` | string: there while a node is reading what is kept, which must stand still |
| `kept` | hash: `n`, up to which entry of the log everything below was kept, and by then `number`, that of the newest record of a receipt, and `newest`, the newest id |
| `events`, `columns`, `channels`, `members`, `keys`, `wishes`, `documents` | hashes: what was kept (`keeping.py`) |
| `records` | stream: entry `NUMBER-0` is a piece of the log of receipts that ends with this number |
"""

KINDS = ("events", "columns", "channels", "members", "keys", "wishes", "documents")
KEYS = ("head", "log", "nodes", "keeper", "loading", "kept", "records", *KINDS)

# keys: head. arguments: milliseconds since 1970, a deployment drawn by lot, version.
OPEN = """
if redis.call('HSETNX', KEYS[1], 'deployment', ARGV[2]) == 1 then
    -- Full to the last of the millisecond before, so that the first id is of this one.
    redis.call('HSET', KEYS[1], 'n', 0, 'ms', ARGV[1] - 1, 'seq', 1048575, 'born', ARGV[1], 'version', ARGV[3])
end
return redis.call('HMGET', KEYS[1], 'deployment', 'born', 'n', 'version', 'limits')
"""

# keys: head, log. arguments: deployment, node, the number of its batch, milliseconds since 1970, how many ids it needs, what it says, time to live (ms), how far this node has taken the log, how many
# entries behind that may come along; then whom to wake. Answers with the header, with what stands between if that is no more, behind the entry that was taken last, and with the header of the entry before.
# Ids grow whatever the clocks of the nodes do, and whichever node asks. Batches of a node are taken in order or not at all: one that was given up, but waited in the socket of a Redis that
# stood still, must not come after the next.
APPEND = """
local head = redis.call('HMGET', KEYS[1], 'deployment', 'n', 'ms', 'seq', 'b:' .. ARGV[2], 'last')
if head[1] ~= ARGV[1] then return redis.error_reply('LOST this is not the log that it was') end
if head[5] and tonumber(head[5]) >= tonumber(ARGV[3]) then return redis.error_reply('STALE a later batch of this node was there before') end
local n, ms, seq, count, first = head[2] + 1, tonumber(head[3]), tonumber(head[4]), tonumber(ARGV[5]), 0
if count > 0 then
    if tonumber(ARGV[4]) > ms then ms, seq = tonumber(ARGV[4]), -1 end
    if seq + count > 1048575 then ms, seq = ms + 1, -1 end
    first, seq = seq + 1, seq + count
end
local header = string.format('%.0f %.0f %.0f %.0f %s %s', n, ms, first, count, ARGV[2], ARGV[3])
local taken, missing = tonumber(ARGV[8]), {}
if taken < n - 1 and n - taken <= tonumber(ARGV[9]) + 1 then missing = redis.call('XRANGE', KEYS[2], string.format('%.0f-0', taken), '+') end
redis.call('HSET', KEYS[1], 'n', n, 'ms', ms, 'seq', seq, 'b:' .. ARGV[2], ARGV[3], 'last', header)
redis.call('XADD', KEYS[2], string.format('%.0f-0', n), 'h', header, 'b', ARGV[6])
redis.call('PEXPIRE', KEYS[1], ARGV[7])
redis.call('PEXPIRE', KEYS[2], ARGV[7])
local message = header
if #ARGV == 10 then message = header .. '\\n' .. ARGV[6] end
for place = 10, #ARGV do redis.call('PUBLISH', KEYS[2] .. ':' .. ARGV[place], message) end
return {header, missing, head[6]}
"""

# keys: head, nodes, keeper, kept, and then all that exist. arguments: node, for how long the keeper is (ms), after how many seconds of silence a
# node is gone, time to live (ms), how far this node has taken the log, how everything stands ('' if it does not know). Answers with the deployment, how far the log is, how far it was kept,
# whether this node is the keeper, who is gone, how many there are, and how everything stands, as the keeper told.
BEAT = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[2], now, ARGV[1])
local keeper = redis.call('GET', KEYS[3])
local is_keeper = 0
if not keeper or keeper == ARGV[1] then
    redis.call('SET', KEYS[3], ARGV[1], 'PX', ARGV[2])
    is_keeper = 1
    for key = 5, #KEYS do redis.call('PEXPIRE', KEYS[key], ARGV[4]) end
end
local head = redis.call('HMGET', KEYS[1], 'deployment', 'n')
if head[1] then redis.call('HSET', KEYS[1], 't:' .. ARGV[1], ARGV[5]) end
if head[1] and is_keeper == 1 and ARGV[6] ~= '' then redis.call('HSET', KEYS[1], 'stand', ARGV[6]) end
return {head[1], head[2], redis.call('HGET', KEYS[4], 'n'), is_keeper, redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[3]), redis.call('ZCARD', KEYS[2]),
    redis.call('HGET', KEYS[1], 'stand')}
"""

# keys: head, nodes, keeper. arguments: node, the node that is gone (maybe the same), after how many seconds of silence a node is. One that was taken for dead and has been heard
# since is not forgotten: else nobody would miss it when it dies, and its devices would be there for ever.
FORGET = """
local heard = redis.call('ZSCORE', KEYS[2], ARGV[2])
if ARGV[1] ~= ARGV[2] and heard and tonumber(heard) > tonumber(redis.call('TIME')[1]) - ARGV[3] then return end
redis.call('ZREM', KEYS[2], ARGV[2])
redis.call('HDEL', KEYS[1], 'b:' .. ARGV[2], 't:' .. ARGV[2])
if redis.call('GET', KEYS[3]) == ARGV[2] then redis.call('DEL', KEYS[3]) end
"""

# keys: head, log, keeper, loading, kept, records, and the kinds. arguments: deployment, node, the entry up to which was kept before, n, number, newest, the oldest entry of the
# log that is wanted, the records since, the oldest record that is wanted, time to live (ms); then what changed, in pieces (MessagePack): HSET or HDEL, a kind (its place, from
# 1), and fields with their values, or fields. With a command for each field all nodes waited more than twice as long, 22 ms for 5,650 fields and not 9 (measured). It goes on from what was kept before, with
# entries that the log has, or does nothing; answers with whether it was done, and what is kept now.
KEEP = """
local function kept() return redis.call('HMGET', KEYS[5], 'n', 'number', 'newest') end
if redis.call('HGET', KEYS[1], 'deployment') ~= ARGV[1] or redis.call('GET', KEYS[3]) ~= ARGV[2] or redis.call('EXISTS', KEYS[4]) == 1
    or (kept()[1] or '0') ~= ARGV[3] or tonumber(redis.call('HGET', KEYS[1], 'n')) < tonumber(ARGV[4]) then return {0, unpack(kept(), 1, 3)} end
for place = 11, #ARGV do
    local piece = cmsgpack.unpack(ARGV[place])
    redis.call(piece[1], KEYS[6 + piece[2]], unpack(piece, 3))
end
redis.call('HSET', KEYS[5], 'n', ARGV[4], 'number', ARGV[5], 'newest', ARGV[6])
if ARGV[8] ~= '' then redis.call('XADD', KEYS[6], ARGV[5] .. '-0', 'b', ARGV[8]) end
redis.call('XTRIM', KEYS[6], 'MINID', ARGV[9] .. '-0')
redis.call('XTRIM', KEYS[2], 'MINID', ARGV[7] .. '-0')
for _, key in ipairs(KEYS) do
    if key ~= KEYS[3] and key ~= KEYS[4] then redis.call('PEXPIRE', key, ARGV[10]) end
end
return {1, unpack(kept(), 1, 3)}
"""
