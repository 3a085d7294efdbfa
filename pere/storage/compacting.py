"""The file of a store made smaller, while no server has it."""

import os
import shutil
import sqlite3
from collections import Counter

from pere.errors import ConfigError
from pere.storage import schema
from pere.storage.archive import ready, size

ROOM = 1.01  # of the copy: a page in a journal has 8 bytes beside it


def compact(path: str) -> tuple[int, int]:
    """Write the file anew, without what is free in it; the bytes that it took, and takes. All or nothing. Raises ConfigError where
    somebody uses it, or where there is no room for the copy."""
    ready(path)
    lock = schema.Lock(path)
    try:
        connection = schema.connect(path)
        try:
            connection.set_progress_handler(lambda: 0, 100_000)
            try:
                # Leaving the write-ahead log takes the file for ourselves. A reader would keep the old pages in it, and the file as long as it was.
                connection.execute("pragma journal_mode = delete")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                    raise
                raise ConfigError(f"{path} is being read by another process: compact it when that is done") from None
            before = size(path)
            check_room(path, before)
            # In memory, as other temporary tables are, it would be the whole file.
            connection.execute("pragma temp_store = file")
            connection.execute("vacuum")
        finally:
            connection.close()
        return before, size(path)
    finally:
        lock.release()


def check_room(path: str, copy: int) -> None:
    """VACUUM writes its copy among the temporary files, and beside the file a journal of what it overwrites: "as much as twice the size"
    in all (https://sqlite.org/lang_vacuum.html). Raises ConfigError where there is not so much room."""
    folders = (os.path.dirname(os.path.abspath(path)), _temporary())
    needed = Counter(os.stat(folder).st_dev for folder in folders)
    for folder in folders:
        need, free = int(ROOM * copy) * needed[os.stat(folder).st_dev], shutil.disk_usage(folder).free
        if need > free:
            raise ConfigError(f"{path} is left as it is: compacting it needs {need:,} bytes in {folder}, and {free:,} are free")


def _temporary() -> str:
    """Where SQLite puts temporary files (https://sqlite.org/tempfiles.html, 5)."""
    folders = (os.environ.get("SQLITE_TMPDIR"), os.environ.get("TMPDIR"), "/var/tmp", "/usr/tmp", "/tmp")  # nosec B108 # where SQLite makes them, not we
    return next((folder for folder in folders if folder and os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)), ".")
