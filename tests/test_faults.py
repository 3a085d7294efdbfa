"""The disk fails, the file is not what it should be, somebody deletes what is in use: real servers on real file systems.

What was answered 201 or 200 is kept, what was answered 503 never was, and a server that could not go on goes on by itself
once it can.
"""

import asyncio
import os
import resource
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import wire
from processes import SECONDS, Process, Served

from pere.config import KIB, MIB
from pere.storage import schema

PAGE = 4096
REFUSED = (503, "store_failed")


def mount(*words: str) -> None:
    try:
        subprocess.run(["mount", *words], check=True, capture_output=True, text=True, timeout=SECONDS)
    except FileNotFoundError:
        pytest.skip("this machine has no command mount")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"nothing may be mounted here: {error.stderr.splitlines()[0]}")


class Disk:
    """A file system of its own, in memory and small."""

    def __init__(self, folder: Path, size: str):
        self.folder = folder
        self._ballast = folder / "ballast"
        folder.mkdir()
        mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))

    def fill(self, *, but: int = 0) -> None:
        """Leave no room, or room for so many pages of 4 KiB."""
        with open(self._ballast, "wb", buffering=0) as file:
            for piece in (MIB, PAGE):
                with suppress(OSError):
                    while file.write(bytes(piece)) == piece:
                        pass
            file.truncate(file.seek(0, os.SEEK_END) // PAGE * PAGE - but * PAGE)

    def clear(self) -> None:
        self._ballast.unlink()

    def again(self, how: str) -> None:
        mount("-o", f"remount,{how}", str(self.folder))

    @contextmanager
    def read_only(self, path: Path) -> Iterator[None]:
        """One file of it."""
        mount("--bind", str(path), str(path))
        try:
            mount("-o", "remount,bind,ro", str(path))
            yield
        finally:
            subprocess.run(["umount", "--lazy", str(path)], timeout=SECONDS, check=True)

    def gone(self) -> None:
        # Whoever still has a file of it open keeps that; the name is free at once.
        subprocess.run(["umount", "--lazy", str(self.folder)], timeout=SECONDS, check=True)


@pytest.fixture
def mounted(tmp_path) -> Iterator[Callable[..., Disk]]:
    """`disk = mounted("4m")`: a disk of this size, which is gone at the end."""
    disks: list[Disk] = []

    def mounted(size: str = "4m") -> Disk:
        disks.append(Disk(tmp_path / f"disk-{len(disks)}", size))
        return disks[-1]

    yield mounted
    for disk in disks:
        disk.gone()


class Place:
    """Where the file of a store is, and how it can be made to take no more, and to take more again."""

    def __init__(self, path: Path, disk: Disk | None):
        self.path = path
        self._disk = disk

    @property
    def store(self) -> tuple[str, str]:
        return "--store", f"sqlite:{self.path}"

    @property
    def pid(self) -> int:
        return int(Path(f"{self.path}-lock").read_text())

    def full(self) -> None:
        if self._disk is not None:
            self._disk.fill()
        else:
            # Everything is appended to the write-ahead log, so that is what may grow no more.
            size = Path(f"{self.path}-wal").stat().st_size
            resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def roomy(self) -> None:
        if self._disk is not None:
            self._disk.clear()
        else:
            with suppress(ProcessLookupError):  # the limit has ended with the process
                resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.fixture
def narrow(tmp_path) -> Place:
    """A file that cannot grow, where it does not matter why."""
    if not hasattr(resource, "prlimit"):
        pytest.skip("this system cannot limit what another process writes")
    return Place(tmp_path / "pere.db", None)


@pytest.fixture(params=["disk", "file"])
def place(request) -> Place:
    """A disk that can be full, and a file that cannot grow."""
    if request.param == "file":
        return request.getfixturevalue("narrow")
    disk = request.getfixturevalue("mounted")("48m")
    return Place(disk.folder / "pere.db", disk)


async def say(port: int, data: str, **query: Any) -> wire.Answer:
    """Push a text to the channel `c`, whatever the answer."""
    return await wire.request(port, "POST", "/push/c", data, Content_Type="text/plain", **query)


async def receipt(port: int, device: str, id: str, state: str = "processed") -> wire.Answer:
    return await wire.request(port, "POST", "/feedback/c", {"state": state}, Device=device, Last_Event_ID=id)


async def kept(port: int, channel: str = "c") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    while True:
        answer = await wire.request(port, "GET", f"/events/{channel}?limit=1000&after={found[-1][0] if found else ''}")
        assert answer.status == 200, answer
        found += [(event["id"], event["data"]) for event in answer.json["events"]]
        if not answer.json["more"]:
            return found


async def counts(port: int, id: str) -> dict[str, int]:
    answer = await wire.request(port, "GET", f"/events/c/{id}")
    assert answer.status == 200, answer
    return {state: count for state, count in answer.json["counts"].items() if count}


async def readiness(port: int, status: int) -> wire.Answer:
    """Wait, without asking for anything else, until /readyz says this."""
    while (answer := await wire.request(port, "GET", "/readyz")).status != status:
        await asyncio.sleep(0.02)
    return answer


# No room


async def test_without_room_what_would_have_to_be_kept_is_refused_and_may_be_tried_again(place):
    with Served(*place.store) as served:
        port = served.port
        async with wire.listening(port, "c", device="d"):
            id = (await wire.push(port, "c", "before")).json["id"]
            place.full()
            for _ in range(3):
                for answer in (await say(port, "after"), await receipt(port, "d", id), await wire.request(port, "DELETE", f"/events/c/{id}")):
                    assert answer.error == REFUSED
                    assert int(answer.headers["retry-after"]) > 0
            # What changes nothing needs no room.
            assert (await wire.request(port, "GET", f"/events/c/{id}")).json["outstanding"] == 1
            place.roomy()
            assert (await receipt(port, "d", id)).json == {"state": "processed", "duplicate": False}
            place.full()
            assert (await receipt(port, "d", id)).json == {"state": "processed", "duplicate": True}
            place.roomy()
            assert await kept(port) == [(id, "before")]


async def test_without_room_each_item_of_a_batch_says_so(narrow):
    with Served(*narrow.store) as served:
        port = served.port
        async with wire.listening(port, "c", device="d"):
            first, second = [(await wire.push(port, "c", text)).json["id"] for text in ("first", "second")]
            assert (await receipt(port, "d", first)).status == 200
            narrow.full()
            pushed = await wire.request(port, "POST", "/push", [{"channel": "c", "data": 1}, {"channel": "a b", "data": 2}, {"channel": "new", "data": 3}])
            assert [(told["status"], told["error"]) for told in pushed.json["results"]] == [REFUSED, (400, "bad_channel"), REFUSED]
            told = await wire.request(port, "POST", "/feedback", {"receipts": [{"event_id": first}, {"event_id": second}]}, Device="d")
            one, other = told.json["results"]
            assert one == {"event_id": first, "state": "processed", "duplicate": True}
            assert (other["event_id"], other["status"], other["error"]) == (second, *REFUSED)
            up_to = await wire.request(port, "POST", "/feedback", {"up_to": second, "channel": "c"}, Device="d")
            assert [(told["event_id"], told["status"], told["error"]) for told in up_to.json["results"]] == [(second, *REFUSED)]
            narrow.roomy()
            assert (await receipt(port, "d", second, "failed")).json == {"state": "failed", "duplicate": False}
            assert [data for _, data in await kept(port)] == ["first", "second"]
            assert (await wire.request(port, "GET", "/events/new")).json["events"] == []


async def test_without_room_the_recall_of_an_event_that_asked_for_no_receipts_is_refused_too(narrow):
    with Served(*narrow.store) as served:
        port = served.port
        id = (await wire.push(port, "c", "before", receipt="none")).json["id"]
        narrow.full()
        answer = await wire.request(port, "DELETE", f"/events/c/{id}")
        assert answer.error == REFUSED
        narrow.roomy()
        await wire.push(port, "c", "after")
        assert (await wire.request(port, "GET", f"/events/c/{id}")).json["recalled"] is False
        assert (await wire.request(port, "DELETE", f"/events/c/{id}")).status == 200
        assert (await wire.request(port, "GET", f"/events/c/{id}")).json["recalled"] is True


async def test_without_room_the_server_is_alive_says_that_it_is_not_ready_and_why_and_tells_what_it_has(narrow):
    with Served(*narrow.store) as served:
        port = served.port
        async with wire.listening(port, "c", device="d"):
            id = (await wire.push(port, "c", "before")).json["id"]
            narrow.full()
            assert (await say(port, "after")).status == 503
            answer = await wire.request(port, "GET", "/readyz")
            assert answer.error == (503, "not_ready")
            assert "disk" in answer.json["message"] and "retry-after" in answer.headers
            for target in ("/healthz", "/events/c", f"/events/c/{id}", f"/events/c/{id}/devices", "/admin/events/c", "/admin/devices/c", "/metrics", "/"):
                assert (await wire.request(port, "GET", target)).status == 200, target
            assert b"\npere_ready 0.0\n" in (await wire.request(port, "GET", "/metrics")).body
            assert await kept(port) == [(id, "before")]
            async with wire.listening(port, "c", from_="all") as passer_by, wire.listening(port, "c", device="d") as second:
                assert await passer_by.events(1) == await second.events(1) == ["before"]
            # The sweep that looks whether there is room again is no cure.
            await asyncio.sleep(1.2)
            assert (await wire.request(port, "GET", "/readyz")).status == 503
        assert "Traceback" not in served.err
        assert len([line for line in served.err.splitlines() if "store is in trouble" in line]) == 1


async def test_feeds_live_through_it_and_go_on_when_the_server_has_recovered_by_itself(place):
    with Served(*place.store, "--heartbeat", "0.2") as served:
        port = served.port
        async with wire.listening(port, "c", device="d") as feed, wire.listening(port, "c") as anonymous:
            first = (await wire.push(port, "c", "first")).json["id"]
            place.full()
            assert (await say(port, "refused")).status == 503
            for _ in range(3):
                await feed.comment()
                await anonymous.comment()
            assert (await wire.request(port, "GET", "/admin/connections")).json["total number"] == 2
            place.roomy()
            # Nobody pushes to a server that is not ready, so it must find out by itself.
            assert (await readiness(port, 200)).json == {"status": "ready"}
            second = (await wire.push(port, "c", "second")).json["id"]
            assert await feed.events(2) == await anonymous.events(2) == ["first", "second"]
            for id in (first, second):
                assert (await receipt(port, "d", id)).json == {"state": "processed", "duplicate": False}
            assert feed.controls == anonymous.controls == []


async def test_without_room_a_device_that_was_never_seen_is_sent_away_and_one_that_is_known_is_not(narrow):
    with Served(*narrow.store) as served:
        port = served.port
        async with wire.listening(port, "c", device="known"):
            pass
        narrow.full()
        async with wire.listening(port, "c", device="known"):
            stranger = await wire.Feed.open(port)
            await stranger.start("/feed/c", {"Device": "stranger"})
            told = await stranger.control("pere.bye")
            assert told["reason"] == "unkept" and told["retry"] > 0
            stranger.close()
        narrow.roomy()
        async with wire.listening(port, "c", device="stranger") as stranger:
            await wire.push(port, "c", "hello")
            assert await stranger.events(1) == ["hello"]


async def test_without_room_no_device_is_forgotten_and_with_room_one_is_for_good(narrow):
    with Served(*narrow.store) as served:
        port = served.port
        async with wire.listening(port, "c", device="d"), wire.listening(port, "c", device="e"):
            id = (await wire.push(port, "c", "owed")).json["id"]
            narrow.full()
            assert (await say(port, "after")).status == 503
            assert (await wire.request(port, "DELETE", "/admin/devices/d")).error == REFUSED
        served.kill()
    with Served(*narrow.store) as served:
        port = served.port
        assert sum((await counts(port, id)).values()) == 2
        assert (await wire.request(port, "DELETE", "/admin/devices/d")).status == 204
        served.kill()
    with Served(*narrow.store) as served:
        assert (await wire.request(served.port, "DELETE", "/admin/devices/d")).error == (404, "unknown_device")
        assert (await counts(served.port, id))["cancelled"] == 1


async def test_what_was_refused_was_never_kept_and_what_was_answered_always_is(place):
    """Pushes and receipts go on all the time while there is room, is none, and is some again; then the server is killed."""
    pushed: dict[str, str] = {}
    receipted: set[str] = set()
    read: list[tuple[str, str]] = []
    refused = {"push": 0, "receipt": 0}

    async def publish(name: str) -> None:
        turn = 0
        while not is_over:
            turn += 1
            answer = await say(port, f"{name}{turn}", Idempotency_Key=f"{name}{turn}")
            if answer.status == 201:
                pushed[answer.json["id"]] = f"{name}{turn}"
            else:
                assert answer.error == REFUSED
                refused["push"] += 1
            await asyncio.sleep(0.005)

    async def answer_for() -> None:
        while True:
            message = await feed.event()
            read.append((message.id, message.data))

    async def insist() -> None:
        """Receipts for what was read, the latest first: those wait while there is no room, and are refused."""
        while not is_over:
            for id, _ in [each for each in read if each[0] not in receipted][-1:]:
                answer = await receipt(port, "d", id)
                if answer.status == 200:
                    receipted.add(id)
                else:
                    assert answer.error == REFUSED
                    refused["receipt"] += 1
            await asyncio.sleep(0.002)

    with Served(*place.store) as served:
        port, is_over = served.port, False
        async with wire.listening(port, "c", device="d") as feed:
            reader = asyncio.ensure_future(answer_for())
            tasks = [*(asyncio.ensure_future(publish(name)) for name in "xyz"), asyncio.ensure_future(insist())]
            try:
                for turn in count(1):  # a machine may be as slow as it likes
                    while len(pushed) < 10 * turn or len(receipted) < 4 * turn:
                        await asyncio.sleep(0.002)
                    place.full()
                    await readiness(port, 503)
                    while refused["push"] < 4 * turn:
                        await asyncio.sleep(0.002)
                    place.roomy()
                    await readiness(port, 200)
                    if turn > 2 and refused["receipt"] > 2:
                        break
                is_over = True
                await asyncio.gather(*tasks)
                while len(read) < len(pushed):
                    await asyncio.sleep(0.01)
                assert read == await kept(port) == sorted(pushed.items())
                place.full()
                assert [(await say(port, f"last{n}")).status for n in range(3)] == [503] * 3
            finally:
                for task in (*tasks, reader):
                    task.cancel()
                await asyncio.gather(*tasks, reader, return_exceptions=True)
        served.kill()
    assert min(refused.values()) > 2 and min(len(pushed), len(receipted)) > 10
    place.roomy()
    with Served(*place.store) as served:
        assert await kept(served.port) == sorted(pushed.items())
        done = {id for id in pushed if await counts(served.port, id) == {"processed": 1}}
        assert done == receipted


async def test_a_key_whose_push_was_refused_is_free(narrow):
    with Served(*narrow.store) as served:
        port = served.port
        await wire.push(port, "c", "before")
        narrow.full()
        answers = await asyncio.gather(*(say(port, "once", Idempotency_Key="k") for _ in range(4)))
        assert [answer.error for answer in answers] == [REFUSED] * 4
        narrow.roomy()
        answers = await asyncio.gather(*(say(port, "once", Idempotency_Key="k") for _ in range(4)))
        assert {answer.status for answer in answers} == {201}
        assert len({answer.json["id"] for answer in answers}) == 1
        assert [data for _, data in await kept(port)] == ["before", "once"]


async def test_what_expires_without_room_has_expired_when_there_is_some(mounted):
    disk = mounted()
    place = Place(disk.folder / "pere.db", disk)
    with Served(*place.store) as served:
        port = served.port
        async with wire.listening(port, "c", device="d"):
            while True:
                id = (await wire.push(port, "c", "short", ttl=0)).json["id"]
                place.full()
                assert (await say(port, "after")).status == 503
                if await counts(port, id) != {"expired": 1}:
                    break
                place.roomy()  # a sweep came before it was full
                await readiness(port, 200)
            await asyncio.sleep(1.2)  # a sweep would have ended it
            assert await counts(port, id) == {"sent": 1}
            place.roomy()
            while await counts(port, id) != {"expired": 1}:
                await asyncio.sleep(0.02)
            served.kill()
    with Served(*place.store) as served:
        assert await counts(served.port, id) == {"expired": 1}


async def test_a_server_that_is_told_to_end_without_room_ends_and_loses_nothing(place):
    with Served(*place.store) as served:
        port = served.port
        async with wire.listening(port, "c", device="d"):
            ids = [(await wire.push(port, "c", f"{n}")).json["id"] for n in range(5)]
            assert (await receipt(port, "d", ids[0])).status == 200
            place.full()
            assert (await say(port, "after")).status == 503
        assert served.end(signal.SIGTERM) == 0
        assert "Traceback" not in served.err
    place.roomy()
    with Served(*place.store) as served:
        assert [id for id, _ in await kept(served.port)] == ids
        assert await counts(served.port, ids[0]) == {"processed": 1}


async def test_an_event_that_finds_no_room_does_not_keep_a_smaller_one_from_being_kept(mounted):
    disk = mounted()
    with Served("--store", f"sqlite:{disk.folder / 'pere.db'}") as served:
        port = served.port
        await wire.push(port, "c", "before")
        disk.fill(but=300 * KIB // PAGE)
        while True:
            answer = await wire.request(port, "POST", "/push", [{"channel": "c", "data": "x" * 60 * KIB} for _ in range(10)])
            assert {told["status"] for told in answer.json["results"]} == {503}
            if (await wire.request(port, "GET", "/readyz")).status == 503:
                break  # else a sweep came between the two, for which there was room
        assert (await say(port, "small")).status == 201
        assert (await wire.request(port, "GET", "/readyz")).status == 200
        assert [data for _, data in await kept(port)] == ["before", "small"]


async def test_a_write_ahead_log_that_cannot_be_moved_into_a_full_file_loses_nothing(mounted):
    disk = mounted("22m")
    path = disk.folder / "pere.db"
    ids: list[str] = []
    with Served("--store", f"sqlite:{path}") as served:
        port, is_full = served.port, False
        while not is_full:
            answer = await wire.request(port, "POST", "/push", [{"channel": "c", "data": "x" * 60 * KIB} for _ in range(15)])
            told = [result.get("id") for result in answer.json["results"]]
            ids += filter(None, told)
            is_full = None in told
        assert "could not be moved" in served.err
        disk.again("size=80m")
        await readiness(port, 200)
        for _ in range(2):
            ids.append((await wire.push(port, "c", "after")).json["id"])
        served.kill()
    with Served("--store", f"sqlite:{path}") as served:
        assert [id for id, _ in await kept(served.port)] == ids


# A start without room, or where nothing may be written


def refusal(store: Path) -> str:
    """The one line with which a server declines a file."""
    with Process("serve", "--port", "0", "--store", f"sqlite:{store}") as process:
        process.until("listening|pere: |Traceback")
        assert "listening" not in process.err, "it was taken"
        assert process.end() == 2, process.err
        assert process.err.startswith(f"pere: {store} ") and process.err.count("\n") == 1, process.err
        assert process.out == ""
        return process.err.strip()


async def seeded(path: Path) -> list[tuple[str, Any]]:
    """A file of a server that was killed, and what is in it."""
    with Served("--store", f"sqlite:{path}") as served:
        async with wire.listening(served.port, "c", device="d"):
            for n in range(3):
                await wire.push(served.port, "c", f"{n}")
            before = await kept(served.port)
        served.kill()
    return before


@pytest.mark.parametrize("pages", [0, 4, 12])
def test_a_new_file_on_a_disk_without_room_for_it_is_declined_in_one_line(mounted, pages):
    disk = mounted()
    disk.fill(but=pages)
    said = refusal(disk.folder / "pere.db")
    assert "full" in said or "No space left" in said


async def test_a_killed_server_that_comes_back_to_a_full_disk_says_so_and_has_all_when_there_is_room(mounted):
    disk = mounted()
    path = disk.folder / "pere.db"
    before = await seeded(path)
    disk.fill()
    with Process("serve", "--port", "0", "--store", f"sqlite:{path}") as process:
        # It may decline, or serve what it has and say that it is not ready: but it may not keep silent.
        found = process.until(r"http://127\.0\.0\.1:(\d+)|pere: .*\n")
        if found[1]:
            assert await kept(int(found[1])) == before
            assert (await say(int(found[1]), "refused")).error == REFUSED
            await readiness(int(found[1]), 503)
            disk.clear()
            await readiness(int(found[1]), 200)
            process.kill()
        else:
            assert process.end() == 2 and process.err.count("\n") == 1
            assert "left as it is" not in found[0] and "full" in found[0], "what is full is the disk, and the file is in order"
            disk.clear()
    with Served("--store", f"sqlite:{path}") as served:
        assert await kept(served.port) == before


async def test_a_file_system_that_is_read_only_is_declined_and_all_is_there_once_it_is_not(mounted):
    disk = mounted()
    path = disk.folder / "pere.db"
    before = await seeded(path)
    disk.again("ro")
    assert "Read-only file system" in refusal(path)
    assert "Read-only file system" in refusal(disk.folder / "new.db")
    disk.again("rw")
    with Served("--store", f"sqlite:{path}") as served:
        assert await kept(served.port) == before
        assert (await say(served.port, "after")).status == 201


async def test_a_file_that_may_only_be_read_is_not_served_as_if_it_could_be_written(mounted):
    disk = mounted()
    path = disk.folder / "pere.db"
    before = await seeded(path)
    # Permissions do not bind everybody; this does. What lies beside the file may be written.
    with disk.read_only(path):
        assert "readonly" in refusal(path)
    with Served("--store", f"sqlite:{path}") as served:
        assert await kept(served.port) == before


# Files that are not what they should be


def connected(path: Path, script: str) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(script)
    connection.close()


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> bytes:
    """The file of a server that has ended well."""
    path = tmp_path_factory.mktemp("sound") / "pere.db"

    async def fill(port: int) -> None:
        feed = await wire.listen(port, "c", device="d")
        answer = await wire.request(port, "POST", "/push", [{"channel": "c", "data": "x" * 1000} for _ in range(100)])
        assert (await receipt(port, "d", answer.json["results"][0]["id"])).status == 200
        feed.close()

    with Served("--store", f"sqlite:{path}") as served:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(fill(served.port))
        loop.close()
        assert served.end(signal.SIGTERM) == 0
    return path.read_bytes()


def other_than(sound: bytes, path: Path, script: str) -> None:
    path.write_bytes(sound)
    connected(path, script)


NOT_OURS = {
    "a text": (lambda path, sound: path.write_text("this is no database, and long enough to look at\n" * 100), "cannot be read as a database of PERE"),
    "a few bytes": (lambda path, sound: path.write_bytes(sound[:50]), "cannot be read as a database of PERE"),
    "zeros": (lambda path, sound: path.write_bytes(bytes(len(sound))), "cannot be read as a database of PERE"),
    "the first half of a file": (lambda path, sound: path.write_bytes(sound[: len(sound) // 2]), "cannot be read"),
    "a file whose table of tables is torn": (lambda path, sound: path.write_bytes(sound[:100] + b"\x5a" * 4000 + sound[4100:]), "cannot be read"),
    "a database of some other program": (lambda path, sound: connected(path, "create table mails (id integer)"), "some other program"),
    "an empty database of some other program": (
        lambda path, sound: connected(path, "pragma application_id = 77; create table x (y); drop table x"), "some other program"),
    "a file of a newer version": (lambda path, sound: other_than(sound, path, f"pragma user_version = {schema.VERSION + 1}"), "newer PERE"),
    "a file that lacks a table": (lambda path, sound: other_than(sound, path, "drop table members"), "cannot be read"),
    "a file that lacks a channel": (lambda path, sound: other_than(sound, path, "delete from channels"), "cannot be read"),
    "a file with a log that is none": (
        lambda path, sound: other_than(sound, path, "update receipts set records = x'0102030405'; update meta set value = 0 where name = 'floor'; "
                                       "update entries set logged = 0"), "cannot be read"),
    "a file with columns that are none": (
        lambda path, sound: other_than(sound, path, "update entries set columns = x'0102030405', logged = 0; update meta set value = 0 where name = 'floor'"),
        "cannot be read"),
    "a folder": (lambda path, sound: path.mkdir(), "folder"),
}


@pytest.mark.parametrize("kind", NOT_OURS)
def test_what_is_no_file_of_ours_is_declined_in_one_line_and_left_as_it_is(tmp_path, sound, kind):
    path = tmp_path / "pere.db"
    make, sentence = NOT_OURS[kind]
    make(path, sound)
    before = path.read_bytes() if path.is_file() else None
    assert sentence in refusal(path)
    assert (path.read_bytes() if path.is_file() else None) == before
    if "some other program" in sentence or before is not None and before[:4] != b"SQLi":
        assert [each.name for each in tmp_path.iterdir()] == ["pere.db"]  # not even a lock


# One file, one server


async def test_a_second_server_is_told_who_has_the_file_and_the_first_goes_on(tmp_path):
    path = tmp_path / "pere.db"
    place = Place(path, None)
    with Served(*place.store) as first:
        async with wire.listening(first.port, "c", device="d") as feed:
            pid = place.pid
            for _ in range(2):
                assert f"is in use by another process (pid {pid})" in refusal(path)
            assert place.pid == pid
            id = (await wire.push(first.port, "c", "hello")).json["id"]
            assert await feed.events(1) == ["hello"]
            assert (await receipt(first.port, "d", id)).status == 200
        first.kill()
    # Nobody has to clear anything away after a crash.
    with Served(*place.store) as second:
        assert place.pid != pid
        assert await kept(second.port) == [(id, "hello")]
        assert await counts(second.port, id) == {"processed": 1}


# Somebody deletes what is in use


@pytest.mark.parametrize("ending, how", [
    ("-shm", signal.SIGKILL), ("-wal", signal.SIGKILL), ("-wal", signal.SIGTERM), ("-lock", signal.SIGKILL), ("", signal.SIGTERM)])
async def test_what_was_answered_is_not_lost_with_a_file_that_somebody_deletes(tmp_path, ending, how):
    """With the database itself all that is in it is lost, of course: but then nothing more is said to be kept."""
    path = tmp_path / "pere.db"
    with Served("--store", f"sqlite:{path}") as served:
        port = served.port
        async with wire.listening(port, "c", device="d") as feed:
            told = [(await wire.push(port, "c", f"{n}")).json["id"] for n in range(3)]
            os.unlink(f"{path}{ending}")
            if not ending:
                told = []
            for n in range(3):
                answer = await say(port, f"later{n}")
                assert answer.status == 201 or answer.error == REFUSED
                if answer.status == 201:
                    told.append(answer.json["id"])
                else:
                    await readiness(port, 503)
            await feed.events(3)
            assert (await wire.request(port, "GET", "/healthz")).status == 200
        served.end(how)
        assert "Traceback" not in served.err
    with Served("--store", f"sqlite:{path}") as served:
        assert [id for id, _ in await kept(served.port)] == told


async def test_a_file_that_is_moved_away_is_missed_although_nobody_pushes(tmp_path):
    path = tmp_path / "pere.db"
    with Served("--store", f"sqlite:{path}") as served:
        await wire.push(served.port, "c", "before")
        path.rename(tmp_path / "elsewhere")
        told = await readiness(served.port, 503)
        assert "pere.db" in told.json["message"]
        # It was no good idea: moved back, it is the same file.
        (tmp_path / "elsewhere").rename(path)
        await readiness(served.port, 200)
        assert (await say(served.port, "after")).status == 201
        served.kill()
    with Served("--store", f"sqlite:{path}") as served:
        assert [data for _, data in await kept(served.port)] == ["before", "after"]


async def test_a_lock_that_somebody_deletes_lets_no_second_server_in_or_stops_the_first(tmp_path):
    path = tmp_path / "pere.db"
    with Served("--store", f"sqlite:{path}") as first:
        told = [(await wire.push(first.port, "c", f"{n}")).json["id"] for n in range(2)]
        os.unlink(f"{path}-lock")
        with Process("serve", "--port", "0", "--store", f"sqlite:{path}") as second:
            found = second.until(r"http://127\.0\.0\.1:(\d+)|pere: .*\n")
            for n in range(3):
                for port in (first.port, int(found[1])) if found[1] else (first.port,):
                    answer = await say(port, f"{port}-{n}")
                    if answer.status == 201:
                        told.append(answer.json["id"])
                    else:
                        assert answer.error == REFUSED
            second.kill()
        first.kill()
    with Served("--store", f"sqlite:{path}") as served:
        assert [id for id, _ in await kept(served.port)] == sorted(told)


# Killed while it starts


async def test_who_is_killed_at_any_moment_of_a_start_with_much_to_enter_again_finds_it_all_at_the_next(tmp_path):
    path = tmp_path / "pere.db"
    devices = [f"d{n}" for n in range(150)]
    with Served("--store", f"sqlite:{path}") as served:
        port = served.port
        ids = [told["id"] for told in (await wire.request(
            port, "POST", "/push", [{"channel": "c", "data": n, "to": devices} for n in range(50)])).json["results"]]
        for device in devices:
            told = await wire.request(port, "POST", "/feedback", {"receipts": [{"event_id": id} for id in ids]}, Device=device)
            assert all(result["state"] == "processed" for result in told.json["results"])
        served.kill()
    began = time.monotonic()
    with Served("--store", f"sqlite:{path}") as served:
        took = time.monotonic() - began
        served.kill()
    for turn in range(5):
        with Process("serve", "--port", "0", "--store", f"sqlite:{path}") as process:
            await asyncio.sleep(took * (0.5 + 0.1 * turn))
            process.kill()
            assert "Traceback" not in process.err
    with Served("--store", f"sqlite:{path}") as served:
        assert [await counts(served.port, id) for id in ids] == [{"processed": 150}] * 50


async def test_a_feed_goes_on_where_one_process_takes_over_from_another_on_a_full_disk(mounted, tmp_path):
    disk = mounted("48m")
    flags = "serve", "--port", "0", "--store", f"sqlite:{disk.folder / 'pere.db'}", "--handover", str(tmp_path / "h")
    with Process(*flags) as first:
        port = int(first.until(r"listening url=http://127\.0\.0\.1:(\d+)")[1])
        feed = await wire.listen(port, "c", device="d")
        disk.fill()
        while (answer := await say(port, "x" * 60_000)).status == 201:
            await feed.event()
        assert answer.error == REFUSED
        with Process(*flags) as second:
            second.until("taken over")
            assert first.end() == 0
            assert (await say(port, "x" * 60_000)).error == REFUSED
            disk.clear()
            while (await say(port, "at last")).status != 201:
                await asyncio.sleep(0.05)
            assert await feed.events(1) == ["at last"] and not feed.controls
            feed.close()
