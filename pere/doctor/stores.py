"""The store: a file that can be written to and grow, or a Redis that keeps what it is told."""

import asyncio
import fcntl
import os
import resource
import secrets
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import median
from typing import Any

from pere.config import SHARED, Config
from pere.doctor import Finding, Findings, advice, counted, ok, wrong
from pere.errors import ConfigError, installing
from pere.event import given_at
from pere.space import space
from pere.storage import schema
from pere.storage.archive import size

LONG_LOG = 256 * 1024 * 1024  # bytes of a write-ahead log: it is moved into the file at 16 MB, unless somebody reads on and on
SLOW_DISK = 0.05  # seconds
AHEAD = 60.0  # seconds by which the newest event may be ahead of the clock
FAR = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "9p", "ceph", "glusterfs")  # other machines' disks
PINGS = 20
SLOW_REDIS = 0.005  # seconds
ASTRAY = 1.0  # seconds between the clocks of Redis and of a node


def store(config: Config) -> Findings:
    kind, _, path = config.store.partition(":")
    if config.store == "memory:":
        yield advice("store", "memory: keeps nothing over the end of the process", "--store sqlite:pere.db, where it is to be kept")
    elif kind == "sqlite" and path:
        yield from _file(config, path)
    elif config.store.startswith(SHARED):
        yield from _redis(config)
    else:
        yield wrong("store", "--store names no store", "--store memory:, sqlite:PATH or redis://HOST:PORT/DB")


# A file


def _file(config: Config, path: str) -> Findings:
    try:
        version = schema.check(path)
    except ConfigError as error:
        yield wrong("store", str(error), "name another file (--store sqlite:PATH), bring back a backup (`pere store restore`), or install the newer PERE that wrote it")
        return
    folder = os.path.dirname(os.path.abspath(path))
    if version and version < schema.VERSION:
        yield advice("store", f"{path} is of version {version}: the next start makes it version {schema.VERSION}, and an older PERE will not read it then",
                     f"keep a copy: pere store backup {path} {path}.{version}, once it has been started, or copy the file while no server runs")
    yield _lock(path)
    yield _disk(path, folder)
    yield from _room(config, path, folder)
    kind = _kind_of_disk(folder)
    if kind in FAR:
        yield wrong("store", f"{path} is on another machine's disk ({kind}), where SQLite's write-ahead log does not work (https://sqlite.org/wal.html)",
                    "put it on a disk of this machine; for several machines use --store redis://")
    if version:
        yield from _inside(path)


def _lock(path: str) -> Finding:
    """Whether a server has the file. It is asked for as one who would only read, and for no longer than it takes to ask."""
    try:
        lock = os.open(path + schema.LOCKED, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ok("store", f"no server uses {path}")
    except OSError as error:
        return wrong("store", f"{path}{schema.LOCKED} cannot be opened: {error.strerror}", "give the file, and those beside it, to the user of the server (chown)")
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        owner = os.pread(lock, 32, 0).decode(errors="replace").strip()
        return wrong("store", f"{path} is in use by another process{f' (pid {owner})' if owner else ''}; one file serves one PERE",
                     "end that, or name another file. If it is the server that you mean, visit it: pere doctor --url http://127.0.0.1:4567")
    finally:
        os.close(lock)
    return ok("store", f"no server uses {path}")


def _disk(path: str, folder: str) -> Finding:
    """Whether a file can be written there, and how long that takes: a small one, which is taken away again."""
    probe = os.path.join(folder, f".pere-doctor-{secrets.token_hex(4)}")
    try:
        with open(probe, "xb") as file:
            started = time.perf_counter()
            file.write(os.urandom(schema.ROOM_BYTES))
            file.flush()
            os.fsync(file.fileno())
            took = time.perf_counter() - started
    except OSError as error:
        return wrong("store", f"nothing can be written in {folder}: {error.strerror}",
                     "make room, name a folder on another disk, or give the folder to the user of the server (chown); `ulimit -f` limits the size of files")
    finally:
        Path(probe).unlink(missing_ok=True)
    if os.path.exists(path) and not os.access(path, os.W_OK):
        return wrong("store", f"{path} may only be read by this user", "give it, and the files beside it, to the user of the server (chown)")
    if took > SLOW_DISK:
        return advice("store", f"the disk takes {1000 * took:.0f} ms for a small commit, and everybody who pushes or answers waits for that", "use a faster disk, or --sync normal, which may lose the last moments in a power cut")
    return ok("store", f"{folder} can be written to; a small commit takes {1000 * took:.1f} ms")


def _room(config: Config, path: str, folder: str) -> Findings:
    free, has = shutil.disk_usage(folder).free, size(path)
    most, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    wanted = config.retention_bytes - has
    if free < schema.ROOM_BYTES:
        yield wrong("store", f"the disk of {folder} is full", "make room, or name a folder on another disk")
    elif free < wanted:
        yield advice("store", f"the file may grow by {space(wanted)} to --retention-bytes, and {space(free)} are free", f"make room, or --retention-bytes {int(0.8 * (free + has))}")
    else:
        yield ok("store", f"{space(free)} are free, which is enough for --retention-bytes")
    if most != resource.RLIM_INFINITY and most < config.retention_bytes:
        yield advice("store", f"no file of this user may be larger than {space(most)} (ulimit -f), and --retention-bytes is {space(config.retention_bytes)}", "ulimit -f unlimited, or `LimitFSIZE=infinity` in the unit")


def _inside(path: str) -> Findings:
    log = os.path.getsize(path + "-wal") if os.path.exists(path + "-wal") else 0
    if log > LONG_LOG:
        yield advice("store", f"the write-ahead log has {space(log)}: somebody reads the file without end, or the last server was killed", "end what reads it; the next server moves the log into the file")
    try:
        file = schema.connect(path, read_only=True)
        try:
            newest = file.execute("select max(id) from events").fetchone()[0]
        finally:
            file.close()
    except sqlite3.Error as error:
        yield wrong("store", f"{path} cannot be read: {error}", "`pere store check` looks at all of it; a backup comes back by `pere store restore`")
        return
    yield from _newest(given_at(newest or 0))


def _newest(accepted: float) -> Findings:
    """What is to be said of the moment at which the newest event was accepted; 0 if there is none."""
    ahead = accepted - time.time()
    if ahead > AHEAD:
        yield advice("clock", f"the newest event is {ahead:,.0f} s ahead of this clock, so the clock was ahead then or is behind now", "set it right (NTP). Ids go on growing whatever it says; times, ttl and tokens go by it")


def _kind_of_disk(folder: str) -> str:
    """The type of the file system, by the longest mount point above; "" where nobody tells."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return ""
    above = [(len(point), kind) for point, kind in mounts if os.path.commonpath([folder, point]) == point]
    return max(above, default=(0, ""))[1]


# Redis


def _redis(config: Config) -> Findings:
    try:
        from pere.storage import sharedlog
    except ImportError as error:
        yield wrong("store", f"--store {config.store.partition(':')[0]}: needs redis-py ({error})", installing("redis"))
        return
    try:
        client, prefix = sharedlog.connect(config.store, sharedlog.TIMEOUT)
    except ConfigError as error:
        yield wrong("store", str(error), "--store redis://HOST:PORT/DB")
        return

    async def look() -> list[Finding]:
        try:
            return [finding async for finding in _answers(config, client, prefix, sharedlog.SILENCE)]
        except sharedlog.Errors as error:
            return [wrong("store", f"Redis does not answer: {str(error) or type(error).__name__}", "start it, and check host, port, user and password in --store: redis-cli -u URL ping")]
        finally:
            await client.aclose()

    yield from asyncio.run(look())


async def _answers(config: Config, client: Any, prefix: str, silence: int) -> AsyncIterator[Finding]:
    """`silence` is after how many seconds of it a node counts as gone."""
    took = []
    for _ in range(PINGS):
        started = time.perf_counter()
        await client.ping()
        took.append(time.perf_counter() - started)
    said = await _told(client)
    before, (seconds, micros), after = time.time(), await client.time(), time.time()
    if said is None:
        yield advice("store", "this user may not ask Redis how it is, so whether it keeps what it is told is not known", "look with one who may: +info +config|get")
    for finding in judged(config, said, await _configured(client, "appendfsync"), median(took), seconds + micros / 1e6 - (before + after) / 2):
        yield finding
    for finding in _newest(int(await client.hget(f"{prefix}:head", "ms") or 0) / 1000):
        yield finding
    nodes = await client.zcount(f"{prefix}:nodes", seconds - silence, "+inf")
    yield ok("store", f"{counted(nodes, 'node')} there" if nodes else f"nobody uses {prefix}: there")


async def _told(client: Any) -> dict[str, Any] | None:
    """What Redis says of itself; None where this user may not ask."""
    from redis.exceptions import ResponseError

    try:
        found: dict[str, Any] = {}
        for part in ("server", "persistence", "memory", "replication"):
            found |= await client.info(part)
    except ResponseError:
        return None
    return found


async def _configured(client: Any, name: str) -> str | None:
    """None where it is not told: who offers Redis as a service often forbids to ask."""
    from redis.exceptions import ResponseError

    try:
        found: str | None = (await client.config_get(name)).get(name)
    except ResponseError:
        return None
    return found


def judged(config: Config, said: dict[str, Any] | None, appendfsync: str | None, latency: float, ahead: float) -> Findings:
    """What Redis says of itself (INFO; None if nothing), how long it takes to answer, and by how much its clock is ahead of ours."""
    if latency > SLOW_REDIS:
        yield advice("store", f"Redis takes {1000 * latency:.1f} ms to answer, and so does each push and receipt", "put it in the same network as the nodes; `redis-cli --intrinsic-latency 10` tells whether it is its machine")
    if abs(ahead) > ASTRAY:
        yield wrong("clock", f"the clock of Redis is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this one", "set both right (NTP)")
    if said is None:
        yield ok("store", f"Redis answers in {1000 * latency:.1f} ms")
        return
    version = str(said.get("redis_version", "?"))
    if int(version.partition(".")[0] if version[:1].isdigit() else 0) < 7:
        yield wrong("store", f"Redis is {version}, and 7 or later is wanted (or Valkey)", "install a newer one")
    else:
        yield ok("store", f"Redis {said.get('valkey_version', version)} answers in {1000 * latency:.1f} ms")
    if said.get("role") != "master":
        yield wrong("store", "this Redis is a replica, which takes nothing in", "name the primary, or ask Sentinel: redis+sentinel://HOST:26379/SERVICE/DB")
    policy = said.get("maxmemory_policy")
    if policy not in (None, "noeviction"):
        yield wrong("store", f"maxmemory-policy is {policy}: what is needed may be thrown away", "redis-cli CONFIG SET maxmemory-policy noeviction (and in redis.conf)")
    if not said.get("aof_enabled"):
        yield advice("store", "appendonly is off: if Redis dies, all is lost since its last snapshot, though it was answered", "redis-cli CONFIG SET appendonly yes (and in redis.conf)")
    elif appendfsync not in (None, "always"):
        yield advice("store", f"appendfsync is {appendfsync}: if Redis or its machine dies, the last seconds may be lost, though they were answered", "redis-cli CONFIG SET appendfsync always, where that must not be")
    else:
        yield ok("store", "Redis appends to its file")
    replicas, wait = int(said.get("connected_slaves", 0)), config.redis_wait
    if replicas < wait:
        yield wrong("store", f"--redis-wait is {wait}, and {counted(replicas, 'replica')} connected: nothing would be answered", f"connect {wait - replicas} more, or --redis-wait {replicas}")
