"""`pere store backup` and `restore`: real files of real servers that are killed, and what is there afterwards."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import threading
import time
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest
from processes import ENVIRONMENT, PERE, SECONDS, Process, Served, pere

from pere.errors import ConfigError
from pere.event import parse_id
from pere.storage import schema
from pere.storage.backup import backup, restore


def asked(url: str, target: str, body: object = None, **headers: str) -> dict:
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url + target, data, {"Content-Type": "application/json"} | headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read())


class Life(threading.Thread):
    """A publisher and a device that never rest: what was answered is in `events` and `receipts`."""

    def __init__(self, url: str):
        super().__init__(daemon=True)
        self.url = url
        self.events: list[str] = []
        self.receipts: list[str] = []
        self.is_over = False

    def run(self) -> None:
        while not self.is_over:
            event = asked(self.url, "/push/orders?to=till", {"n": len(self.events)})["id"]
            self.events.append(event)
            asked(self.url, "/feedback/orders", {"event_id": event, "status": f"printed {len(self.receipts)}"}, Device="till")
            self.receipts.append(event)

    def until(self, count: int) -> None:
        while len(self.receipts) < count:
            assert self.is_alive()
            time.sleep(0.005)

    def end(self) -> None:
        self.is_over = True
        self.join(SECONDS)
        assert not self.is_alive()


@pytest.fixture
def made(tmp_path) -> Path:
    """A file of a server that has ended, with an event that was answered."""
    path = tmp_path / "pere.db"
    with Served("--store", f"sqlite:{path}") as served:
        life = Life(served.url)
        life.start()
        life.until(3)
        life.end()
        assert served.end(signal.SIGTERM) == 0
    return path


def beside(path: Path) -> list[str]:
    """What is in its folder, but for locks, and what SQLite has beside a file that is read."""
    return sorted(name for name in os.listdir(path.parent) if not name.endswith(("-lock", "-shm", "-wal")))


def test_what_was_answered_before_a_backup_is_there_when_it_comes_back(tmp_path):
    path, copy, anew = (str(tmp_path / name) for name in ("pere.db", "copy.db", "anew.db"))
    with Served("--store", f"sqlite:{path}") as served:
        with Process("listen", "news", "--device", "kiosk", "--receipt", "none", "--url", served.url) as kiosk:
            kiosk.until("pere.hello")
        webhook = asked(served.url, "/webhooks", {"url": "https://example.com/hook"})["id"]
        life = Life(served.url)
        life.start()
        life.until(20)
        events, receipts = list(life.events), list(life.receipts)
        done = pere("store", "backup", path, copy)
        assert (done.returncode, done.stderr) == (0, "")
        assert re.fullmatch(rf"{copy}: \d+ events, 1 registrations, \d+ records of webhooks and revoked tokens\n", done.stdout)
        life.until(len(life.receipts) + 5)  # it went on meanwhile, and goes on
        life.end()
        later = life.events[-1]
        served.kill()
    assert [name for name in os.listdir(tmp_path) if name.startswith("copy")] == ["copy.db"]  # one file, that can be carried away
    assert pere("store", "check", copy).stdout == f"{copy} is sound\n"
    assert pere("store", "restore", copy, anew).returncode == 0
    with Served("--store", f"sqlite:{anew}") as served:
        kept = {event["id"] for event in asked(served.url, "/events/orders?limit=1000")["events"]}
        assert kept >= set(events) and later not in kept
        for id in receipts:
            assert asked(served.url, f"/events/orders/{id}")["counts"]["processed"] == 1
        assert asked(served.url, f"/events/orders/{events[3]}/devices")["devices"][0]["status"] == "printed 3"
        assert asked(served.url, "/admin/devices/news").keys() == {"kiosk"}
        assert asked(served.url, f"/webhooks/{webhook}")["url"] == "https://example.com/hook"
        # Ids go on above those that were lost, so nobody takes a new event for one that it has.
        assert parse_id(asked(served.url, "/push/orders", 1)["id"]) > parse_id(later)


def test_a_copy_is_of_one_moment_however_much_is_written_meanwhile(tmp_path):
    path, copy = str(tmp_path / "pere.db"), str(tmp_path / "copy.db")
    writer = schema.prepare(path, "normal")

    def write(name: str) -> None:
        writer.execute("begin")
        for number in range(600):
            writer.execute("insert into documents values (?, ?, ?)", (name, str(number), os.urandom(8000)))
        writer.execute("commit")

    write("before")
    moments = []

    def watched(done: int, total: int) -> None:
        moments.append(done)
        write(f"while {len(moments)}")

    assert backup(path, copy, False, watched)["documents"] == 600
    assert len(moments) > 1
    writer.close()
    with closing(sqlite3.connect(copy)) as file:
        assert file.execute("select kind, count(*) from documents group by 1").fetchall() == [("before", 600)]


def test_what_is_there_is_left_unless_it_is_forced(made):
    copy = made.with_name("copy.db")
    copy.write_text("that of yesterday")
    done = pere("store", "backup", str(made), str(copy))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"pere: {copy} is there already, and is left as it is; --force replaces it\n"
    assert copy.read_text() == "that of yesterday"
    assert pere("store", "backup", str(made), str(copy), "--force").returncode == 0
    assert pere("store", "check", str(copy)).returncode == 0


@pytest.mark.parametrize("source, target, sentence", [
    ("none.db", "copy.db", "there is no file"), ("pere.db", "none/copy.db", "there is no folder"), ("pere.db", "pere.db", "is the file that is to be copied"), ("pere.db", ".", "is a folder"),
])
@pytest.mark.parametrize("verb", ["backup", "restore"])
def test_what_cannot_be_copied_is_one_line_and_exit_2(made, monkeypatch, verb, source, target, sentence):
    monkeypatch.chdir(made.parent)
    done = pere("store", verb, source, target, "--force")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"pere: .*{sentence}.*\n", done.stderr)
    assert beside(made) == ["pere.db"]


def test_a_file_that_is_not_sound_makes_no_copy(made):
    with closing(sqlite3.connect(made)) as file:
        page, size = file.execute("select max(pageno), pgsize from dbstat where name = 'events_by_channel'").fetchone()
    with open(made, "r+b") as raw:
        raw.seek((page - 1) * size)
        raw.write(b"\x5a" * size)
    done = pere("store", "backup", str(made), str(made.with_name("copy.db")))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("pere: ") and done.stderr.count("\n") == 1
    assert beside(made) == ["pere.db"]


def test_whoever_is_interrupted_leaves_nothing_behind(made):
    def watched(done: int, total: int) -> None:
        raise KeyboardInterrupt

    copy = made.with_name("copy.db")
    copy.write_text("that of yesterday")
    with pytest.raises(KeyboardInterrupt):
        backup(str(made), str(copy), True, watched)
    with pytest.raises(KeyboardInterrupt):
        restore(str(made), str(copy), True, watched)
    assert (beside(made), copy.read_text()) == (["copy.db", "pere.db"], "that of yesterday")


def test_a_disk_that_is_full_makes_no_copy(made):
    done = subprocess.run(["bash", "-c", 'ulimit -f 64; exec "$@"', "-", *PERE, "store", "backup", str(made), str(made.with_name("copy.db"))],
                          env=ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"pere: {made} cannot be copied to .+: (disk I/O error|database or disk is full)\n", done.stderr)
    assert beside(made) == ["pere.db"]


def test_nothing_is_brought_back_under_the_feet_of_a_server(made):
    copy = made.with_name("copy.db")
    assert pere("store", "backup", str(made), str(copy)).returncode == 0
    with Served("--store", f"sqlite:{made}") as served:
        done = pere("store", "restore", str(copy), str(made), "--force")
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{made} is in use by another process (pid {served.pid})" in done.stderr
        assert asked(served.url, "/push/orders", 1)["channel"] == "orders"


def test_what_was_there_is_moved_away_with_its_log_and_not_lost(made):
    copy = made.with_name("copy.db")
    assert pere("store", "backup", str(made), str(copy)).returncode == 0
    with Served("--store", f"sqlite:{made}") as served:
        later = asked(served.url, "/push/orders", "later")["id"]
        served.kill()  # what it wrote last is only in its log
    assert made.with_name("pere.db-wal").stat().st_size
    done = pere("store", "restore", str(copy), str(made))
    assert (done.returncode, "is there already" in done.stderr) == (2, True)
    done = pere("store", "restore", str(copy), str(made), "--force")
    before = re.fullmatch(r".+; what was there is (.+)\n", done.stdout)[1]

    def kept(path: str) -> set[str]:
        with Served("--store", f"sqlite:{path}") as served:
            return {event["id"] for event in asked(served.url, "/events/orders?limit=1000")["events"]}

    assert later not in kept(str(made))
    assert later in kept(before)


def test_a_copy_of_an_older_version_comes_back_and_one_of_a_newer_does_not(tmp_path):
    old, path = tmp_path / "old.db", tmp_path / "pere.db"
    with closing(sqlite3.connect(old)) as file:
        file.executescript((Path(__file__).parent / "storage" / "version_1.sql").read_text())
    restore(str(old), str(path), False, lambda done, total: None)
    with Served("--store", f"sqlite:{path}", "--retention-age", "999999999") as served:
        assert asked(served.url, "/events/orders")["events"]
    with closing(sqlite3.connect(old)) as file:
        file.execute(f"pragma user_version = {schema.VERSION + 1}")
    with pytest.raises(ConfigError, match="newer PERE"):
        restore(str(old), str(path), True, lambda done, total: None)
