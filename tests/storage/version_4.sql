-- A file of version 4, as PERE wrote it.
pragma application_id = 1346720325;
pragma user_version = 4;
BEGIN TRANSACTION;
CREATE TABLE channels (
    id integer primary key,
    name text not null unique,
    first integer not null,     -- ordinal of the oldest event that is kept, or of the first to come
    gone integer not null,      -- the newest id that is no longer kept
    sent integer not null       -- up to this ordinal all members with an open feed have been written to
);
INSERT INTO "channels" VALUES(1,'orders',1,0,2);
CREATE TABLE documents (kind text, name text, document blob not null, primary key (kind, name)) without rowid;
INSERT INTO "documents" VALUES('webhook','wh_0123456789abcdef',X'7B7D');
CREATE TABLE entries (
    event integer primary key,
    channel integer not null,
    expires real not null,
    owed integer not null,
    need integer not null,
    version integer not null,
    logged integer not null,    -- the log up to this number is in the columns
    columns blob not null,      -- zlib: states, then latencies if there are any, then 16-bit numbers of sayings if there are any
    sayings blob                -- JSON list
);
INSERT INTO "entries" VALUES(1486297876128595968,1,1417447710.993,1,3,2,2,X'780163666165484E666064606260600000073C00D6',X'5B227072696E746564222C7B227061706572223A307D5D');
INSERT INTO "entries" VALUES(1486297876128595969,1,1417447710.993,2,2,0,0,X'7801636060000000030001',NULL);
CREATE TABLE events (
    id integer primary key,
    channel integer not null,
    ordinal integer not null,
    time real not null,
    ttl integer not null,
    level integer not null,
    is_json integer not null,
    type text not null,
    publisher text not null,
    recipients text,            -- JSON list of devices; null is all
    data blob not null
, recalled integer not null default 0, callback text not null default '');
INSERT INTO "events" VALUES(1486297876128595968,1,1,1417444110.993,3600,4,1,'','',NULL,X'7B226E223A317D',0,'');
INSERT INTO "events" VALUES(1486297876128595969,1,2,1417444110.993,3600,4,1,'','','["d1","d9"]',X'7B226E223A327D',0,'');
CREATE TABLE keys (
    channel text, key text, event integer not null, audience integer not null, at real not null, primary key (channel, key)
) without rowid;
INSERT INTO "keys" VALUES('orders','k1',1486297876128595968,3,1417444110.993);
CREATE TABLE members (
    channel integer not null,
    slot integer not null,
    device text not null,
    position integer,           -- null: it has an open feed, see channels.sent
    settled integer not null,
    since real not null,
    seen real not null,
    answered real not null,
    last_id integer not null,
    gone integer,               -- it left when this was the newest ordinal
    primary key (channel, slot)
) without rowid;
INSERT INTO "members" VALUES(1,0,'d1',0,0,0.0,1417444110.993,1417444111.993,1486297876128595968,NULL);
INSERT INTO "members" VALUES(1,1,'d2',0,0,0.0,1417444110.993,1417444111.993,1486297876128595968,NULL);
INSERT INTO "members" VALUES(1,2,'d3',0,0,0.0,1417444110.993,0.0,0,NULL);
CREATE TABLE meta (name text primary key, value integer not null) without rowid;
INSERT INTO "meta" VALUES('born',1486297876128595967);
INSERT INTO "meta" VALUES('floor',3);
CREATE TABLE receipts (
    number integer primary key, -- of the first record
    channel integer not null,
    records blob not null,
    sayings blob                -- JSON list
);
INSERT INTO "receipts" VALUES(1,1,X'000010290B64A01400000000040100508DFFC31E1FD541',X'5B227072696E746564225D');
INSERT INTO "receipts" VALUES(2,1,X'000010290B64A01401000000050100508DFFC31E1FD541',X'5B7B227061706572223A307D5D');
CREATE TABLE wishes (device text, pattern text, primary key (device, pattern)) without rowid;
INSERT INTO "wishes" VALUES('d3','alarms.*');
CREATE UNIQUE INDEX events_by_channel on events (channel, ordinal);
CREATE INDEX entries_due on entries (expires, owed) where owed > 0;
CREATE INDEX entries_open on entries (channel, event) where owed > 0;
CREATE INDEX entries_oldest on entries (event) where owed > 0;
CREATE INDEX receipts_by_channel on receipts (channel, number);
CREATE INDEX keys_by_time on keys (at);
CREATE INDEX members_by_seen on members (seen) where gone is null;
CREATE INDEX events_named on events (channel, ordinal) where recipients is not null;
COMMIT;
