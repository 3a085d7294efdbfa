"""A copy of a store's file, made while a server uses it, and brought back.

SQLite copies page by page out of one state of the file (https://sqlite.org/backup.html): a read transaction holds that state, so the copy
is of one moment however long it takes, and however much is written meanwhile. The server waits for nothing; only its write-ahead log can
grow until the copy is made. What keeps a second server out is a lock on a file beside it (`schema.Lock`), and does not keep out who reads.

A copy has its name only once it is whole, on the disk, and found to be what it was copied from.
"""

import os
import secrets
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

from pere.errors import ConfigError
from pere.storage import schema
from pere.storage.archive import ready

PAGES = 500  # copied between two looks at who watches; 4 MB
COUNTED = ("events", "entries", "receipts", "members", "wishes", "keys", "documents", "channels")
BESIDE = ("", "-wal", "-shm")  # a file, and what SQLite keeps beside it

# Told how many pages of how many are copied.
Watched = Callable[[int, int], None]


def backup(path: str, target: str, is_forced: bool, watched: Watched) -> dict[str, int]:
    """Copy the file of a store, whether or not a server uses it; how many rows of each table are in the copy. Raises ConfigError."""
    ready(path)
    check_target(target, is_forced, path)
    with whole(path, target, watched) as (part, counts):
        os.replace(part, target)
        settle(os.path.dirname(os.path.abspath(target)))
    return counts


def restore(copy: str, path: str, is_forced: bool, watched: Watched) -> tuple[dict[str, int], str | None]:
    """Put a copy where a server will look for its file; what is in it, and where that is which was there before. Raises ConfigError
    where a server uses it, or where something is there and it is not forced."""
    if not os.path.isfile(copy):
        raise ConfigError(f"there is no file {copy}")
    if not schema.check(copy):
        raise ConfigError(f"{copy} is empty")
    check_target(path, is_forced, copy)
    lock = schema.Lock(path)
    try:
        with whole(copy, path, watched) as (part, counts):
            before = put_aside(path)
            os.replace(part, path)
            settle(os.path.dirname(os.path.abspath(path)))
    finally:
        lock.release()
    return counts, before


def check_target(target: str, is_forced: bool, source: str | None = None) -> None:
    """Raises ConfigError where a copy (of a file `source`, if it is one) may not be put."""
    folder = os.path.dirname(os.path.abspath(target))
    if not os.path.isdir(folder):
        raise ConfigError(f"{target} cannot be made: there is no folder {folder}")
    if os.path.isdir(target):
        raise ConfigError(f"{target} is a folder, and not a file")
    if source is not None and os.path.exists(target) and os.path.samefile(source, target):
        raise ConfigError(f"{target} is the file that is to be copied")
    if os.path.exists(target) and os.path.getsize(target) and not is_forced:
        raise ConfigError(f"{target} is there already, and is left as it is; --force replaces it")


@contextmanager
def whole(source: str, target: str, watched: Watched) -> Iterator[tuple[str, dict[str, int]]]:
    """A copy beside the target, on the disk and found to be sound, and how many rows it has; if nobody takes it, it is removed."""
    free, size = shutil.disk_usage(os.path.dirname(os.path.abspath(target))).free, os.path.getsize(source)
    if free < size:
        raise ConfigError(f"{target} needs {size:,} bytes, and {free:,} are free")
    part = f"{target}.{secrets.token_hex(4)}.part"
    try:
        with closing(schema.connect(source, read_only=True)) as file, closing(sqlite3.connect(part, isolation_level=None)) as copy:
            copy.execute("pragma synchronous = off")  # it is brought to the disk as a whole, in the end
            file.execute("begin")
            counts = _counts(file)  # with the first look the state is held that is copied
            file.backup(copy, pages=PAGES, progress=lambda status, left, total: watched(total - left, total))
            file.execute("rollback")
            # Leaving the write-ahead log, it is one file, that can be carried anywhere.
            copy.execute("pragma journal_mode = delete")
            _check(copy, counts, source)
        settle(part)
        yield part, counts
    except sqlite3.Error as error:
        raise ConfigError(f"{source} cannot be copied to {target}: {error}") from None
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error.strerror}") from None
    finally:
        for name in (part, part + "-journal"):
            with suppress(FileNotFoundError):
                os.unlink(name)


def _counts(file: sqlite3.Connection) -> dict[str, int]:
    there = {name for name, in file.execute("select name from sqlite_master where type = 'table'")}
    return {table: file.execute(f"select count(*) from {table}").fetchone()[0] for table in COUNTED if table in there}  # nosec B608 # our own words


def _check(copy: sqlite3.Connection, counts: dict[str, int], source: str) -> None:
    found = [word for word, in copy.execute("pragma integrity_check(3)")]
    if found != ["ok"]:
        raise ConfigError(f"{source} is not sound, and its copy is thrown away ({'; '.join(found)}); `pere store check` looks at all of it")
    if (there := _counts(copy)) != counts:
        raise ConfigError(f"the copy has {there}, and {source} has {counts}: it is thrown away")


def put_aside(path: str) -> str | None:
    """Move away what is there, under a name that nobody has: who does this by mistake loses nothing. None if nothing was."""
    if not any(os.path.exists(path + end) for end in BESIDE):
        return None
    before = f"{path}.{secrets.token_hex(4)}.old"
    # Its log first: a log that is left beside another file would be taken for that one's.
    for end in reversed(BESIDE):
        with suppress(FileNotFoundError):
            os.rename(path + end, before + end)
    return before


def settle(path: str) -> None:
    """A file, or the names in a folder, to the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
