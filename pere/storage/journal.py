"""The one thread that writes to the file: a batch of rows at a time, each in one transaction.

Group commit: while one batch is on its way to the disk the next one is gathered, so one fsync serves all who wait. A thread that
steps through rows one by one would fight the loop for the GIL at each of them, so rows go many to a statement.
This file knows rows and statements, and not what they mean.
"""

import asyncio
import logging
import os
import sqlite3
import sys
import threading
import time
import zlib
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from pere.storage.schema import Lock, identities

log = logging.getLogger("pere.store")

WAL_PAGES = 2_000  # 16 MB: then it is moved into the file
SIZES = (64, 16, 4, 1)  # rows in one statement; so few different ones stay compiled


class Batch:
    """What is to be written together: rows to put, by table, and work to be done first. `packed` names a column of a table
    that is compressed by the thread, as it does not need the GIL for that."""

    __slots__ = ("rows", "statements", "work")

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[Any, ...]]] = {}
        self.statements: list[tuple[str, tuple[Any, ...]]] = []
        self.work: list[Callable[[sqlite3.Connection], Any]] = []

    def put(self, table: str, row: tuple[Any, ...]) -> None:
        """A row that takes the place of one with the same key."""
        rows = self.rows.get(table)
        if rows is None:
            rows = self.rows[table] = []
        rows.append(row)

    def __bool__(self) -> bool:
        return bool(self.rows or self.statements or self.work)


PACKED = {"entries": 7}

# Told on the loop: what `work` returned, or why nothing was written, and how many seconds it took.
Written = Callable[[list[Any], Exception | None, float], None]


class Journal:
    """Writes batches in the order in which they come; it must be the last of this process to close the file. `delay` (s) is waited before each commit: for the test that must see losses."""

    def __init__(self, path: str, lock: Lock | None, connection: sqlite3.Connection, reopen: Callable[[], sqlite3.Connection], delay: float = 0.0):
        self.lock = lock  # None as long as another process has the file: then nothing may be written
        self._path = path
        self._files = identities(path)
        self._connection = connection
        self._reopen = reopen
        self._delay = delay
        self._index: int | None = None
        self._began = 0.0  # what it is at; 0 is that it waits for something to do
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[tuple[Batch, Written] | None] = SimpleQueue()
        self._ended = asyncio.Event()
        self._is_left = False
        self._thread = threading.Thread(target=self._run, name="pere-journal", daemon=True)
        self._thread.start()

    @property
    def writing(self) -> float:
        """For how many seconds it has been at one batch. Any thread may ask."""
        began = self._began
        return time.monotonic() - began if began else 0.0

    def write(self, batch: Batch, then: Written) -> None:
        """Write a batch after those before it; `then` is told on the loop what came of it."""
        self._queue.put((batch, then))

    def missing(self) -> str | None:
        """The file that somebody has deleted, moved away or replaced while we have it open, if there is one. Nothing fails for that:
        we would go on, and at our end all would be gone. May be asked while nothing is being written."""
        there = identities(self._path)
        return next((name for name, ours in self._files.items() if there[name] != ours), None) or (self.lock.lost() if self.lock is not None else None)

    def decline(self, missing: str) -> None:
        """Raises OSError: nothing may be written while this file is missing."""
        raise OSError(f"{missing} was deleted, moved away or replaced while it was in use; put it back, or start again")

    async def leave(self) -> None:
        """Write what is in the queue, and end; another process waits for the file, and does what there is to tidy up."""
        self._is_left = True
        await self._end()

    async def close(self) -> None:
        """Write what is in the queue, and end."""
        await self._end()
        if self._index is not None:
            os.close(self._index)

    async def _end(self) -> None:
        if not self._ended.is_set():
            self._queue.put(None)
            await self._ended.wait()

    def _run(self) -> None:
        while True:
            self._began = 0.0
            job = self._queue.get()
            self._began = time.monotonic()
            if job is None:
                break
            if self._delay:
                time.sleep(self._delay)
            batch, then = job
            done: list[Any] = []
            failure: Exception | None = None
            started = time.perf_counter()
            try:
                done = self._commit(batch)
            except Exception as error:  # whatever it is: were this thread to end, all would wait for ever
                failure = error
                self._recover()
            took = time.perf_counter() - started
            try:
                self._loop.call_soon_threadsafe(then, done, failure, took)
            except RuntimeError:
                return  # the loop has ended, and with it all who could be told
            if failure is None:
                self._checkpoint()
        if self._is_left:
            self._loop.call_soon_threadsafe(self._ended.set)  # nothing is written any more, and whoever waits for that need not wait for the rest
        try:
            if not self._is_left:
                self._connection.execute("pragma wal_checkpoint(truncate)")
            self._connection.close()
        except sqlite3.Error as error:
            log.warning("the file could not be tidied up", extra={"facts": {"error": str(error)}})
        if not self._is_left:
            self._loop.call_soon_threadsafe(self._ended.set)

    def _commit(self, batch: Batch) -> list[Any]:
        connection = self._connection
        if not batch.work and not batch.statements and len(batch.rows) == 1:
            (table, rows), = batch.rows.items()
            if len(rows) == 1:
                # One statement is a transaction by itself.
                connection.execute(_insert(table, len(rows[0]), 1), _pack(table, rows)[0])
                return []
        connection.execute("begin immediate")
        for sql, values in batch.statements:
            connection.execute(sql, values)
        for table, rows in batch.rows.items():
            rows = _pack(table, rows)
            width, start = len(rows[0]), 0
            for size in SIZES:
                while len(rows) - start >= size:
                    connection.execute(_insert(table, width, size), [value for row in rows[start : start + size] for value in row])
                    start += size
        done = [work(connection) for work in batch.work]
        connection.execute("commit")
        return done

    def _recover(self) -> None:
        """After a failure: nothing of the batch may stay. A connection that met an I/O error may be of no more use, so it gets anew."""
        if self.missing() is not None:
            # It must not be opened again, for that would be another file. What was answered goes from the log, which we still have,
            # into the file, which may still be there.
            try:
                if self._connection.in_transaction:
                    self._connection.execute("rollback")
                self._connection.execute("pragma wal_checkpoint(passive)").fetchone()
            except sqlite3.Error as error:
                log.warning("the write-ahead log could not be moved into the file", extra={"facts": {"error": str(error)}})
            return
        try:
            if self._connection.in_transaction:
                self._connection.execute("rollback")
            self._connection.execute("select 1 from meta limit 1").fetchone()
        except sqlite3.Error:
            try:
                self._connection.close()
                self._connection = self._reopen()
            except sqlite3.Error as error:
                log.debug("the file cannot be opened again", extra={"facts": {"error": str(error)}})

    def _checkpoint(self) -> None:
        """Move the write-ahead log into the file once it is long, and begin it anew. Those who wait for the next commit wait for this."""
        try:
            # https://sqlite.org/walformat.html, 2.1: mxFrame of the index tells how many pages are in the log; no pragma does.
            # It stays open to the end: closing it would take all of SQLite's own locks on it with it (POSIX, fcntl).
            if self._index is None:
                self._index = os.open(self._path + "-shm", os.O_RDONLY | os.O_CLOEXEC)
            pages = int.from_bytes(os.pread(self._index, 4, 16), sys.byteorder)
        except OSError:
            return
        if pages < WAL_PAGES:
            return
        try:
            self._connection.execute("pragma wal_checkpoint(passive)").fetchone()
        except sqlite3.Error as error:
            # What is committed stays in the log, which only gets longer. The next commit will say so if nothing works any more.
            log.warning("the write-ahead log could not be moved into the file", extra={"facts": {"error": str(error)}})


def _insert(table: str, width: int, count: int) -> str:
    row = f"({', '.join('?' * width)})"
    return f"insert or replace into {table} values {', '.join([row] * count)}"


def _pack(table: str, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    place = PACKED.get(table)
    if place is None:
        return rows
    return [(*row[:place], zlib.compress(row[place], 1), *row[place + 1 :]) for row in rows]
