"""The file of the SQLite store: its tables, its versions, and how it is opened or refused.

    channels   a row for each channel of which anything is kept
    events     a row for each event, in the order of ids; by channel through an index
    entries    what the ledger says of an event that asks for receipts: its columns as they were not long ago
    receipts   the log: every change of a state, in order, many to a row; what is newer than the columns of its event is
               entered again at start
    members    who is registered where, in which slot, and up to where the device was written to
    wishes     which patterns a device wants
    keys       Idempotency-Keys
    documents  what else is to be kept, by kind and name
    meta       single values: `born`, `newest`, `told` (ids), `floor` (the log from here on may not be in `entries` yet)

This file knows the tables and nothing of what they mean to the server.
"""

import fcntl
import os
import sqlite3
from pathlib import Path
from urllib.parse import quote

from pere.errors import ConfigError, StoreInUse

APPLICATION = 0x50455245  # "PERE": SQLite's application_id says whose file it is
VERSION = 5
LOCKED = "-lock"  # the end of the name of the file that keeps a second process out
ROOM_BYTES = 64 * 1024  # less is as good as none: the index of the write-ahead log alone takes 32 KiB
PAGE_BYTES = 8192  # measured: 10 % less to write per commit of many receipts than with 4096, and the same for one

TABLES = """
create table meta (name text primary key, value integer not null) without rowid;
create table channels (
    id integer primary key,
    name text not null unique,
    first integer not null,     -- ordinal of the oldest event that is kept, or of the first to come
    gone integer not null,      -- the newest id that is no longer kept
    sent integer not null       -- up to this ordinal all members with an open feed have been written to
);
create table events (
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
    data blob not null,
    recalled integer not null default 0,
    callback text not null default '',  -- the webhook that is told what becomes of it
    traceparent text not null default ''
);
create unique index events_by_channel on events (channel, ordinal);
create index events_named on events (channel, ordinal) where recipients is not null;
create table entries (
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
create index entries_due on entries (expires, owed) where owed > 0;
create index entries_open on entries (channel, event) where owed > 0;
create index entries_oldest on entries (event) where owed > 0;
create table receipts (
    number integer primary key, -- of the first record
    channel integer not null,
    records blob not null,
    sayings blob                -- JSON list
);
create index receipts_by_channel on receipts (channel, number);
create table members (
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
create index members_by_seen on members (seen) where gone is null;
create table wishes (device text, pattern text, primary key (device, pattern)) without rowid;
create table keys (
    channel text, key text, event integer not null, audience integer not null, at real not null, primary key (channel, key)
) without rowid;
create index keys_by_time on keys (at);
create table documents (kind text, name text, document blob not null, primary key (kind, name)) without rowid;
"""

# What leads from each version to the next. A file is led through all of them in one transaction, so who is killed on the way
# finds it as it was.
MIGRATIONS = {
    1: "create index members_by_seen on members (seen) where gone is null;\n"
       "create index events_named on events (channel, ordinal) where recipients is not null;\n"
       "alter table events add column recalled integer not null default 0",
    2: "create table documents (kind text, name text, document blob not null, primary key (kind, name)) without rowid",
    3: "alter table events add column callback text not null default ''",
    4: "alter table events add column traceparent text not null default ''",
}


def connect(path: str, *, read_only: bool = False, sync: str = "full") -> sqlite3.Connection:
    """A connection that commits each statement by itself unless told otherwise. It may go from thread to thread, but serve one at a time."""
    mode = "ro" if read_only else "rwc"
    connection = sqlite3.connect(f"file:{quote(path)}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False, timeout=5)
    connection.execute("pragma temp_store = memory")
    if not read_only:
        connection.execute(f"pragma page_size = {PAGE_BYTES}")
        connection.execute("pragma journal_mode = wal")
        # In WAL mode, full is one fsync of the log for each commit; normal leaves it to the next checkpoint: a power cut may take the
        # last moments, the end of the process takes nothing.
        connection.execute(f"pragma synchronous = {'full' if sync == 'full' else 'normal'}")
        connection.execute("pragma wal_autocheckpoint = 0")  # the writer does that between two commits, when it has time
    return connection


class Lock:
    """Keeps a second process from the file. SQLite's own exclusive mode would keep our own readers out too."""

    def __init__(self, path: str):
        self._path = path + LOCKED
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(f"{path} cannot be used: {error.strerror}: {self._path}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(self._file, 32, 0).decode(errors="replace").strip()
            os.close(self._file)
            raise StoreInUse(f"{path} is in use by another process{f' (pid {owner})' if owner else ''}; one file serves one PERE") from None
        try:
            told = f"{os.getpid()}\n".encode()
            os.pwrite(self._file, told, 0)
            if os.fstat(self._file).st_size != len(told):
                os.ftruncate(self._file, len(told))  # which takes a millisecond, and others may wait
        except OSError as error:
            os.close(self._file)
            raise ConfigError(f"{path} cannot be used: {error.strerror}: {self._path}") from None

    def lost(self) -> str | None:
        """The name of the lock, if it is no more ours: another process has the file now. Where it was only deleted it is made anew."""
        try:
            found, ours = os.stat(self._path), os.fstat(self._file)
            return None if (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino) else self._path
        except FileNotFoundError:
            pass
        except OSError:
            return self._path
        try:
            anew = Lock(self._path.removesuffix(LOCKED))
        except ConfigError:
            return self._path
        os.close(self._file)
        self._file = anew._file
        return None

    def release(self) -> None:
        """Another process may have the file."""
        # The file stays: were it deleted, two others could each lock one of that name.
        os.close(self._file)


def identities(path: str) -> dict[str, tuple[int, int] | None]:
    """Which files the database and its log are, by their names; None where there is none. As long as somebody has them open, no other is the same."""
    found: dict[str, tuple[int, int] | None] = {}
    for name in (path, path + "-wal"):
        try:
            there = os.stat(name)
            found[name] = there.st_dev, there.st_ino
        except OSError:
            found[name] = None
    return found


def check(path: str) -> int:
    """The version of a file, 0 if there is none yet. Raises ConfigError where it is not ours, or not to be read: it is left as it is."""
    if os.path.isdir(path):
        raise ConfigError(f"{path} is a folder, and not a file")
    if not os.path.exists(path) or not os.path.getsize(path):
        folder = Path(path).absolute().parent
        if not folder.is_dir():
            raise ConfigError(f"{path} cannot be made: there is no folder {folder}")
        return 0
    try:
        try:
            application, version, tables = _look(path, "ro")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_READONLY:
                raise
            # Who wrote last was killed before the file had its log: what is half done must be taken back to read any of it.
            application, version, tables = _look(path, "rw")
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise ConfigError(f"{path} cannot be read as a database of PERE, and is left as it is: {error}") from None
        raise ConfigError(f"{path} cannot be opened: {_why(path, error)}") from None
    if not tables and not version and not application:
        return 0
    if application != APPLICATION:
        raise ConfigError(f"{path} is a database of some other program, and is left as it is")
    if version > VERSION:
        raise ConfigError(f"{path} was written by a newer PERE (version {version} of the file, this one knows {VERSION})")
    return version


def _look(path: str, mode: str) -> tuple[int, int, int]:
    """Whose file it is, its version, and how many tables and indexes are in it."""
    connection = sqlite3.connect(f"file:{quote(path)}?mode={mode}", uri=True)
    try:
        application, version, tables = (
            connection.execute(sql).fetchone()[0]
            for sql in ("pragma application_id", "pragma user_version", "select count(*) from sqlite_master"))
        return application, version, tables
    finally:
        connection.close()


def prepare(path: str, sync: str) -> sqlite3.Connection:
    """Open the file to write, made or brought to this version as need be. Raises ConfigError where that cannot be."""
    version = check(path)
    try:
        connection = connect(path, sync=sync)
        # A file that may only be read is opened all the same, and the first push would be the first to notice.
        connection.execute("begin immediate")
        connection.execute(f"pragma user_version = {version}")
        connection.execute("rollback")
        if version < VERSION:
            migrate(connection, version)
        return connection
    except sqlite3.Error as error:
        raise ConfigError(f"{path} cannot be opened: {_why(path, error)}") from None


def _why(path: str, error: sqlite3.Error) -> str:
    """Where there is no room for the files beside the database, SQLite says no more than "disk I/O error"."""
    disk = os.statvfs(Path(path).absolute().parent)
    return f"{error}; the disk is full" if disk.f_bavail * disk.f_frsize < ROOM_BYTES else str(error)


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """From one version (0: nothing yet) to this one, all or nothing."""
    connection.execute("begin immediate")
    try:
        for script in [TABLES] if not version else [MIGRATIONS[step] for step in range(version, VERSION)]:
            for statement in script.split(";\n"):
                connection.execute(statement)
        connection.execute(f"pragma application_id = {APPLICATION}")
        connection.execute(f"pragma user_version = {VERSION}")
        connection.execute("commit")
    except BaseException:
        if connection.in_transaction:  # SQLite itself rolls back when the disk is full
            connection.execute("rollback")
        raise
