"""A primary that dies: three real Sentinels make its replica the primary, and the nodes find it by themselves."""

import asyncio
import signal
import socket
import subprocess
import time
from pathlib import Path

import made as a
from processes import SECONDS, free_port
from redises import RedisServer, needed

from pere.config import Config
from pere.errors import Refusal
from pere.storage import Accepted, sharedlog
from pere.storage.redis import RedisStore

CONFIG = """port {port}
bind 127.0.0.1
dir {folder}
sentinel monitor mymaster 127.0.0.1 {primary} 2
sentinel down-after-milliseconds mymaster 60000
sentinel failover-timeout mymaster 3000
"""


def sentinel(folder: Path, primary: int) -> tuple["subprocess.Popen[bytes]", int]:
    port = free_port()
    folder.mkdir()
    config = folder / "sentinel.conf"
    config.write_text(CONFIG.format(port=port, folder=folder, primary=primary))
    with open(folder / "log", "wb") as out:
        return subprocess.Popen([needed(), str(config), "--sentinel"], stdout=out, stderr=out), port


async def push(store: RedisStore) -> Accepted | Refusal:
    told: asyncio.Future[Accepted | Refusal] = asyncio.get_running_loop().create_future()
    try:
        store.append(a.draft(), told.set_result)
    except Refusal as refusal:
        return refusal
    return await told


async def test_nodes_go_on_with_the_replica_that_has_become_the_primary(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(sharedlog, "WAIT", 2_500)  # a machine may be slow
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with RedisServer(tmp_path / "one", repl_diskless_sync_delay="0") as primary, RedisServer(tmp_path / "two", replicaof=f"127.0.0.1 {primary.port}", repl_diskless_sync_delay="0") as replica:
        stores: list[RedisStore] = []
        sentinels = [sentinel(tmp_path / f"s{number}", primary.port) for number in range(3)]
        try:
            while primary.ask("WAIT", "1", "100") != b":1" or any(b"num-other-sentinels\r\n$1\r\n2" not in whole(port) for _, port in sentinels):
                await asyncio.sleep(0.1)
            hosts = ",".join(f"127.0.0.1:{port}" for _, port in sentinels)
            # Two deployments in one Redis, of which only the second waits for the replica.
            urls = [f"redis+sentinel://{hosts}/mymaster/0?prefix={name}" for name in ("hasty", "patient")]
            stores += [RedisStore(Config(redis_wait=count, store=url), time.time, url) for count, url in enumerate(urls)]
            hasty = stores[0]
            for store in stores:
                await store.begin()
                store.register("c", "d1")
            before = [[await push(store) for _ in range(5)] for store in stores]
            assert all(isinstance(each, Accepted) and each.audience == 1 for answers in before for each in answers)
            while (primary.ask("WAIT", "1", "1000")) != b":1":
                await asyncio.sleep(0.05)
            # The replica is cut off; then the primary dies.
            replica.signal(signal.SIGSTOP)
            assert primary.ask("CLIENT", "KILL", "TYPE", "replica") == b":1"
            monkeypatch.setattr(sharedlog, "WAIT", 100)
            lost, refused = [await push(store) for store in stores]
            monkeypatch.setattr(sharedlog, "WAIT", 2_500)
            assert isinstance(lost, Accepted) and isinstance(refused, Refusal)
            impatient(sentinels, 500)
            primary.kill()
            replica.signal(signal.SIGCONT)
            after = []
            for store in stores:
                if store is not hasty:
                    # Who waits for a replica takes nothing as long as there is none.
                    assert isinstance(await push(store), Refusal)
                    primary.start()
                    assert primary.ask("REPLICAOF", "127.0.0.1", str(replica.port)) == b"+OK"
                while isinstance(answer := await push(store), Refusal):
                    await asyncio.sleep(0.05)
                after.append(answer)
                impatient(sentinels, 60_000)
            while b"role:master" not in info(replica):
                await asyncio.sleep(0.05)
            for store, url, answered, answer in zip(stores, urls, before, after, strict=True):
                assert answer.id > answered[-1].id and answer.audience == 1
                other = RedisStore(Config(), time.time, url)
                await other.begin()
                found = [event.id for event in other.shelf("c").backlog]
                # One that was refused may be there or not, and one that was answered was lost where nobody waited for the replica.
                assert [id for id in found if id not in (lost.id, *(set(found) - {each.id for each in (*answered, answer)}))] == [each.id for each in (*answered, answer)]
                if store is hasty:
                    assert lost.id not in found
                await other.close()
        finally:
            for store in stores:
                await store.close()
            for process, _ in sentinels:
                process.kill()
                process.wait(SECONDS)
    caplog.clear()


def impatient(sentinels: list[tuple["subprocess.Popen[bytes]", int]], milliseconds: int) -> None:
    """After so much silence the primary counts as dead: only while it is, for a busy machine may keep everybody silent for a moment."""
    for _, port in sentinels:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as there:
            there.sendall(b"SENTINEL SET mymaster down-after-milliseconds %d\r\n" % milliseconds)
            assert there.makefile("rb").readline() == b"+OK\r\n"


def info(server: RedisServer) -> bytes:
    return whole(server.port, b"INFO replication")


def whole(port: int, command: bytes = b"SENTINEL masters") -> bytes:
    """All of an answer that is there at once."""
    answer = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.3) as there:
            there.sendall(command + b"\r\n")
            while piece := there.recv(65_536):
                answer += piece
    except OSError:
        pass  # nothing more comes
    return answer
