"""`pere store`: real files, made by a real store or a real server, looked at by a process of its own."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from signal import SIGTERM

import made as a
import orjson
import pytest
from click.testing import CliRunner
from made import NOW
from processes import ENVIRONMENT, PERE, SECONDS, Process, Served, pere

from pere.cli import main
from pere.space import space
from pere.config import Config
from pere.errors import ConfigError
from pere.event import format_id
from pere.receipt import DELIVERED, NONE, PROCESSED, WORDS
from pere.storage import schema
from pere.storage.archive import Archive
from pere.storage.compacting import check_room
from pere.storage.sqlite import SqliteStore

VERBS = ["stats", "check", "compact", "export"]


class Life:
    """A store on a file, and what publishers and devices say to it; `now` is its clock."""

    def __init__(self, path: Path, **settings):
        self.path, self.now = str(path), NOW
        self.store = SqliteStore(Config(**settings), lambda: self.now, self.path)
        self.store.deliver = lambda event: None

    async def push(self, channel="c", data=b"1", level=PROCESSED, **said) -> int:
        answers = []
        self.store.append(a.draft(channel, data, level=level, **said), answers.append)
        await self.store.settle()
        return answers[0].id

    async def say(self, device, id, state="processed", status=None, channel="c") -> None:
        word = orjson.dumps(status) if status is not None else None
        self.store.record(channel, device, id, WORDS[state], word, lambda *stands: None, lambda refusal: None)
        await self.store.settle()

    async def sweep(self, later: float) -> None:
        self.now += later
        self.store.sweep(self.now, lambda channel: False)
        await self.store.settle()


async def lived(path: Path) -> list[int]:
    """The file of a store to which all has happened that can: receipts of every kind, `to`, an expiry, a device that left, pruning."""
    life = Life(path, retention_events=6, backlog_events=3)
    for name in ("till-1", "till-2", "till-3"):
        life.store.register("c", name)
    life.store.register("orders.eu", "till-1")
    life.store.want("till-9", "orders.*")
    await life.push("c", b'"to go"')
    await life.push("orders.us", b'"to go as well"')
    ids = [
        await life.push("c", b'{"n":\n1}'),
        await life.push("c", "grüß".encode(), is_json=False, level=DELIVERED, type="note"),
        await life.push("c", b"3", to=("till-3", "till-1")),
        await life.push("c", b"4", ttl=5),
        await life.push("orders.eu", b'"mail"', level=NONE),
    ]
    life.now += 1.5
    await life.say("till-1", ids[0], "delivered")
    await life.say("till-1", ids[0], "processed", {"printed": True})
    await life.say("till-2", ids[0], "failed", "no paper")
    await life.say("till-3", ids[2])
    await life.sweep(60)
    life.store.remove("till-2")
    await life.sweep(2)
    ids.append(await life.push("orders.eu", b"6"))
    await life.say("till-1", ids[5], channel="orders.eu")
    await life.sweep(2)
    await life.store.close()
    return ids


def exported(*arguments: str) -> list[dict]:
    done = pere("store", "export", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def checked(path: Path) -> tuple[int, list[str]]:
    done = pere("store", "check", str(path))
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def write(path: Path, sql: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as file, file:
        file.execute(sql, values)


def spoil(path: Path, table: str) -> None:
    """Overwrite the last page of a table that has rows."""
    with closing(sqlite3.connect(path)) as file:
        page, size = file.execute("select max(pageno), pgsize from dbstat where name = ? and pagetype = 'leaf'", (table,)).fetchone()
    with open(path, "r+b") as raw:
        raw.seek((page - 1) * size)
        raw.write(b"\x5a" * size)


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_given_with_examples(verb):
    said = CliRunner().invoke(main, ["store", verb, "--help"], prog_name="pere")
    assert said.exit_code == 0
    # In the usage, and then in the examples.
    assert said.stdout.count(f"pere store {verb}") >= 2


def test_it_loads_neither_a_server_nor_a_client():
    script = ("import sys\nfrom pere.cli import main\nmain(sys.argv[1:], standalone_mode=False)\n"
              "sys.exit(str({'tornado', 'uvloop', 'aiohttp', 'pere.server', 'pere.client'} & set(sys.modules) or ''))")
    done = subprocess.run([sys.executable, "-c", script, "store", "stats", "--help"], env=ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.stderr.strip() == ""


# Files that are none


@pytest.fixture
def refused(tmp_path):
    """`path = refused("newer")`: a file that no command takes."""

    def refused(kind: str) -> Path:
        path = tmp_path / f"{kind}.db"
        if kind == "folder":
            path.mkdir()
        elif kind == "empty":
            path.touch()
        elif kind == "text":
            path.write_text("this is no database, and long enough to look at\n" * 100)
        elif kind == "foreign":
            write(path, "create table mails (id integer)")
        elif kind in ("newer", "torn"):
            schema.prepare(str(path), "full").close()
            if kind == "newer":
                write(path, f"pragma user_version = {schema.VERSION + 1}")
            else:
                with open(path, "r+b") as file:
                    file.seek(100)
                    file.write(b"\x5a" * 4000)  # behind SQLite's header begins the table of tables
        return path

    return refused


@pytest.mark.parametrize("kind, sentence", [
    ("missing", "there is no file {}"), ("folder", "there is no file {}"), ("empty", "{} is empty"),
    ("text", "{} cannot be read as a database of PERE"), ("torn", "{} cannot be read as a database of PERE"),
    ("foreign", "{} is a database of some other program"), ("newer", "{} was written by a newer PERE"),
])
@pytest.mark.parametrize("verb", VERBS)
def test_a_file_that_cannot_be_is_one_line_and_exit_2_and_is_left_as_it_is(refused, verb, kind, sentence):
    path = refused(kind)
    before = path.read_bytes() if path.is_file() else None
    said = CliRunner().invoke(main, ["store", verb, str(path)], prog_name="pere")
    assert (said.exit_code, said.stdout) == (2, "")
    assert said.stderr.startswith("pere: " + sentence.format(path))
    assert said.stderr.count("\n") == 1
    assert (path.read_bytes() if path.is_file() else None) == before


# stats


async def test_stats_tell_what_is_in_a_file(tmp_path):
    ids = await lived(tmp_path / "pere.db")
    done = pere("store", "stats", str(tmp_path / "pere.db"), "--json")
    found = json.loads(done.stdout)
    assert {name: found[name] for name in ("events", "channels", "devices", "registrations", "version")} == {
        "events": 6, "channels": 3, "devices": 3, "registrations": 5, "version": schema.VERSION}
    assert found["oldest"] == {"id": format_id(ids[0]), "time": "2014-12-01T14:28:30.993Z"}
    assert found["newest"]["id"] == format_id(ids[5])
    assert found["file_bytes"] == os.path.getsize(tmp_path / "pere.db") == found["pages"] * found["page_bytes"]


async def test_stats_tell_the_bytes_of_each_table(tmp_path):
    await lived(tmp_path / "pere.db")
    found = json.loads(pere("store", "stats", str(tmp_path / "pere.db"), "--json").stdout)
    assert {"events", "entries", "receipts", "members"} <= set(found["tables"])
    # The table of tables has a page, too.
    assert sum(found["tables"].values()) + found["page_bytes"] + found["free_pages"] * found["page_bytes"] == found["file_bytes"]


async def test_stats_are_a_table_for_people(tmp_path):
    ids = await lived(tmp_path / "pere.db")
    shown = pere("store", "stats", str(tmp_path / "pere.db")).stdout
    assert re.search(r"^events +6 *$", shown, re.MULTILINE)
    assert re.search(rf"^newest event .*Z  {format_id(ids[5])} *$", shown, re.MULTILINE)


async def test_what_is_outstanding_is_told_even_where_only_the_log_knows(tmp_path):
    life = Life(tmp_path / "pere.db")
    for name in ("d1", "d2", "d3"):
        life.store.register("c", name)
    first, second = await life.push(ttl=5), await life.push(ttl=500)
    with Archive(life.path) as archive:
        assert archive.stats()["outstanding"] == 6
        await life.say("d1", first)
        await life.say("d1", second, "delivered")
        await life.say("d2", second)
        assert archive.stats()["outstanding"] == 4
        life.store.remove("d3")
        await life.store.settle()
        assert archive.stats()["outstanding"] == life.store.ledger.outstanding == 2
        await life.sweep(60)
        assert archive.stats()["outstanding"] == life.store.ledger.outstanding == 1
        await life.sweep(2)
        await life.sweep(2)
        assert archive.stats()["outstanding"] == 1
    await life.store.close()


def test_a_file_is_looked_at_while_a_server_uses_it(tmp_path):
    path = str(tmp_path / "pere.db")
    with Served("--store", f"sqlite:{path}") as served:
        pushed = json.loads(pere("push", "c", '{"n": 1}', "--url", served.url, "--json").stdout)
        assert json.loads(pere("store", "stats", path, "--json").stdout)["events"] == 1
        assert [event["id"] for event in exported(path)] == [pushed["id"]]
        assert checked(path) == (0, [f"{path} is sound"])


def test_a_server_under_load_does_not_notice_who_looks_at_its_file(tmp_path):
    path = str(tmp_path / "pere.db")
    with Served("--store", f"sqlite:{path}") as served:
        with Process("push", "c", "1", "--every", "0", "--count", "400", "--url", served.url) as publisher:
            publisher.until("pushed to c")
            for _ in range(2000):
                with Archive(path) as archive:
                    archive.count()
            assert publisher.end() == 0
        assert served.end(SIGTERM) == 0
    assert (len(exported(path, "--events")), checked(Path(path))[0]) == (400, 0)


# check


async def test_a_file_with_a_past_is_sound(tmp_path):
    await lived(tmp_path / "pere.db")
    assert checked(tmp_path / "pere.db") == (0, [f"{tmp_path}/pere.db is sound"])


async def test_a_file_is_sound_while_its_columns_are_behind_the_log(tmp_path):
    life = Life(tmp_path / "pere.db")
    life.store.register("c", "d")
    await life.say("d", await life.push())
    assert checked(life.path)[0] == 0
    await life.store.close()


@pytest.mark.parametrize("sql, sentence", [
    ("delete from events where id = {0}", "entries: that of {0} has no event"),
    ("delete from events where id = {1}", "events: {2} has ordinal 4 on channel 'c', where 3 was to come"),
    ("delete from entries where event = {0}", "events: {0} asks for receipts, but has no entry"),
    ("delete from channels where name = 'c'", "events: {0} is on channel number 1, which is not there"),
    ("update channels set first = 1 where name = 'c'", "events: {0} has ordinal 2 on channel 'c', where 1 was to come"),
    ("update events set ordinal = 99 - ordinal where channel = 1", "events: {0} has ordinal 97 on channel 'c', where 2 was to come"),
    ("update channels set gone = 1 << 62 where name = 'c'", "events: {0} is kept, though on channel 'c' all up to"),
    ("update entries set owed = 3 where event = {0}", "entries: that of {0} owes 3 receipts, and its columns"),
    ("update entries set need = 9 where event = {0}", "entries: that of {0} needs 9 receipts of 3 devices"),
    ("update entries set columns = x'00' where event = {0}", "entries: that of {0} cannot be unpacked: "),
    ("update entries set sayings = '[]' where event = {0}", "entries: that of {0} refers to more sayings than the 0 that are there"),
    ("update entries set channel = 2 where event = {0}", "entries: that of {0} is of channel number 2, its event of 1"),
    ("delete from members where slot = 0 and channel = 1", "members: of the 3 slots of channel 'c' only 2 are there"),
    ("delete from members where channel = 1", "entries: that of {0} has 3 slots for 0 devices"),
    ("update members set channel = 77 where channel = 1", "members: 2 devices are registered on channel number 77, which is not there"),
    ("update receipts set channel = 2 where channel = 1", "receipts: row 1 is of channel number 2, and its event {0} of 1"),
    ("update receipts set records = substr(records, 2)", "receipts: row 1 has 22 bytes, which are not records of 23"),
    ("update receipts set sayings = 'none'", "receipts: row 1 cannot be unpacked: "),
    ("update receipts set sayings = null", "receipts: row 2 has a record with state 4 and saying 1 of 0"),
    ("update receipts set records = zeroblob(46) where number = 1", "receipts: row 2 overlaps the one before it, which goes on to 2"),
])
async def test_what_does_not_agree_is_told_with_exit_1(tmp_path, sql, sentence):
    path = tmp_path / "pere.db"
    ids = await lived(path)
    write(path, sql.format(*ids))
    code, faults = checked(path)
    assert code == 1
    assert any(fault.startswith(sentence.format(*map(format_id, ids))) for fault in faults), faults
    assert faults[-1].startswith(f"{path} is not sound: ")


@pytest.mark.parametrize("table", ["events", "entries", "receipts", "members", "channels", "meta", "events_by_channel"])
async def test_a_page_that_is_spoiled_is_told_with_exit_1(tmp_path, table):
    await lived(tmp_path / "pere.db")
    spoil(tmp_path / "pere.db", table)
    code, faults = checked(tmp_path / "pere.db")
    assert (code, faults[0][:7]) == (1, "pages: ")
    assert f"{len(faults) - 1} fault" in faults[-1]


async def test_of_very_many_faults_some_are_shown_and_the_rest_is_counted(tmp_path):
    life = Life(tmp_path / "pere.db")
    for _ in range(150):
        await life.push()
    await life.store.close()
    write(tmp_path / "pere.db", "delete from entries")
    code, faults = checked(tmp_path / "pere.db")
    assert (code, len(faults)) == (1, 102)
    assert faults[-2:] == ["events: and 50 more", f"{tmp_path}/pere.db is not sound: 150 faults found"]


async def test_a_check_changes_nothing(tmp_path):
    path = tmp_path / "pere.db"
    await lived(path)
    before = path.read_bytes()
    checked(path)
    assert path.read_bytes() == before


# compact


async def test_what_is_free_is_given_back_and_all_else_stays(tmp_path):
    path = tmp_path / "pere.db"
    life = Life(path)
    life.store.register("c", "d")
    for _ in range(100):
        await life.say("d", await life.push("c", b'"%s"' % (b"x" * 20_000)))
    await life.store.close()
    life = Life(path, retention_events=10)
    for _ in range(5):
        await life.push()
    await life.store.close()
    size, before = path.stat().st_size, exported(str(path))
    done = pere("store", "compact", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{path}: {space(size)} before, {space(path.stat().st_size)} now\n"
    assert path.stat().st_size < size / 2
    assert (exported(str(path)), checked(path)[0]) == (before, 0)
    again = Life(path)
    assert again.store.find("c", await again.push())
    await again.store.close()


def test_a_file_that_a_server_uses_is_not_compacted(tmp_path):
    path = tmp_path / "pere.db"
    with Served("--store", f"sqlite:{path}"):
        done = pere("store", "compact", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"pere: {path} is in use by another process \(pid \d+\).*\n", done.stderr)


async def test_a_file_that_is_being_read_is_not_compacted(tmp_path):
    path = tmp_path / "pere.db"
    await lived(path)
    before = path.read_bytes()
    with Archive(str(path)) as archive:
        archive.count()
        done = pere("store", "compact", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"pere: {path} is being read by another process: compact it when that is done\n"
    assert path.read_bytes() == before


def test_without_room_for_the_copy_nothing_is_begun(tmp_path):
    with pytest.raises(ConfigError, match=r"is left as it is: compacting it needs [\d,]+ bytes in .+, and [\d,]+ are free"):
        check_room(str(tmp_path / "pere.db"), 1 << 60)
    check_room(str(tmp_path / "pere.db"), 1 << 10)


# export


async def test_events_and_receipts_come_one_to_a_line(tmp_path):
    ids = await lived(tmp_path / "pere.db")
    texts = [format_id(id) for id in ids]
    lines = exported(str(tmp_path / "pere.db"))
    events, receipts = lines[:6], lines[6:]
    assert [event["id"] for event in events] == texts
    assert events[0] == {"kind": "event", "id": texts[0], "channel": "c", "type": "message", "time": "2014-12-01T14:28:30.993Z", "data": {"n": 1}}
    assert (events[1]["type"], events[1]["data"]) == ("note", "grüß")
    said = [(receipt["event_id"], receipt["device"], receipt["state"], receipt["status"]) for receipt in receipts]
    assert said == [
        (texts[0], "till-1", "delivered", None), (texts[0], "till-1", "processed", {"printed": True}),
        (texts[0], "till-2", "failed", "no paper"), (texts[2], "till-3", "processed", None), (texts[5], "till-1", "processed", None)]
    assert receipts[0] == {"kind": "receipt", "event_id": texts[0], "channel": "c", "device": "till-1", "state": "delivered", "status": None,
                           "at": "2014-12-01T14:28:32.493Z", "latency": 1.5}


async def test_a_payload_is_exported_as_it_was_pushed(tmp_path):
    life = Life(tmp_path / "pere.db")
    await life.push("c", b'{"n": 12345678901234567890123.10}')
    await life.store.close()
    assert '"data":{"n": 12345678901234567890123.10}' in pere("store", "export", life.path).stdout


@pytest.mark.parametrize("arguments, events, receipts", [
    (["--events"], [0, 1, 2, 3, 4, 5], []),
    (["--receipts"], [], [0, 0, 0, 2, 5]),
    (["--events", "--receipts"], [0, 1, 2, 3, 4, 5], [0, 0, 0, 2, 5]),
    (["--channel", "c"], [0, 1, 2, 3], [0, 0, 0, 2]),
    (["--channel", "orders.*"], [4, 5], [5]),
    (["--channel", "**"], [0, 1, 2, 3, 4, 5], [0, 0, 0, 2, 5]),
    (["--channel", "orders.eu", "--channel", "c", "--events"], [0, 1, 2, 3, 4, 5], []),
    (["--channel", "nobody"], [], []),
    (["--after", "{1}"], [2, 3, 4, 5], [2, 5]),
    (["--after", "{1}", "--channel", "c"], [2, 3], [2]),
    (["--after", "{5}"], [], []),
])
async def test_a_part_can_be_chosen(tmp_path, arguments, events, receipts):
    ids = [format_id(id) for id in await lived(tmp_path / "pere.db")]
    lines = exported(str(tmp_path / "pere.db"), *(argument.format(*ids) for argument in arguments))
    assert [line["id"] for line in lines if line["kind"] == "event"] == [ids[place] for place in events]
    assert [line["event_id"] for line in lines if line["kind"] == "receipt"] == [ids[place] for place in receipts]


@pytest.mark.parametrize("arguments, sentence", [
    (["--after", "yesterday"], "an event id is <unix ms>-<seq>, not 'yesterday'"),
    (["--channel", "a b"], "a channel is 1 to 128 of"),
    (["--channel", "**.a"], "** stands only at the end of a pattern"),
])
def test_what_cannot_be_chosen_is_wrong_usage(tmp_path, arguments, sentence):
    done = pere("store", "export", str(tmp_path / "pere.db"), *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in " ".join(done.stderr.split())


async def test_many_more_than_are_read_at_once_come_once_each_and_in_order(tmp_path):
    life = Life(tmp_path / "pere.db")
    for name in ("d1", "d2"):
        life.store.register("c", name)
    ids = [await life.push("cd"[number % 2]) for number in range(450)]
    for id in ids[::2]:
        await life.say("d1", id)
    await life.store.close()
    texts = [format_id(id) for id in ids]
    lines = exported(life.path)
    assert [line["id"] for line in lines[:450]] == texts
    assert [line["event_id"] for line in lines[450:]] == texts[::2]
    assert [line["id"] for line in exported(life.path, "--channel", "d")] == texts[1::2]


async def test_an_export_that_is_read_slowly_does_not_hold_the_write_ahead_log(tmp_path):
    life = Life(tmp_path / "pere.db")
    for _ in range(150):
        await life.push()
    with Archive(life.path) as archive, closing(schema.connect(life.path)) as writer:
        events = archive.events()
        next(events)
        await life.push()
        is_busy = writer.execute("pragma wal_checkpoint(truncate)").fetchone()[0]
        assert not is_busy
        assert len(list(events)) == 149  # what came after it began is for the next one
    await life.store.close()


async def test_a_large_file_is_never_in_memory_as_a_whole(tmp_path):
    peaks = []
    for name, count in (("small", 1), ("large", 1000)):
        life = Life(tmp_path / name)
        payload = b'"%s"' % (b"x" * 60_000)
        for _ in range(count):
            life.store.append(a.draft("c", payload, level=NONE), lambda accepted: None)
        await life.store.close()
        script = ("import resource, sys\nfrom pere.cli import main\nmain(sys.argv[1:], standalone_mode=False)\n"
                  "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)")
        done = subprocess.run([sys.executable, "-c", script, "store", "export", life.path], env=ENVIRONMENT, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, text=True, timeout=SECONDS, check=True)
        peaks.append(int(done.stderr) * (1 if sys.platform == "darwin" else 1024))
    assert peaks[1] - peaks[0] < 30_000_000


async def test_a_reader_that_leaves_ends_an_export_quietly(tmp_path):
    life = Life(tmp_path / "pere.db")
    for _ in range(100):
        life.store.append(a.draft("c", b'"%s"' % (b"x" * 10_000), level=NONE), lambda accepted: None)
    await life.store.close()
    done = subprocess.run(["sh", "-c", '"$@" | head -n 1', "sh", *PERE, "store", "export", life.path], env=ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


async def test_a_file_of_that_name_appears_when_it_is_whole(tmp_path):
    await lived(tmp_path / "pere.db")
    output = tmp_path / "all.ndjson"
    done = pere("store", "export", str(tmp_path / "pere.db"), "--output", str(output))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [json.loads(line) for line in output.read_text().splitlines()] == exported(str(tmp_path / "pere.db"))


async def test_an_export_that_fails_leaves_nothing_half(tmp_path):
    life = Life(tmp_path / "pere.db")
    for _ in range(500):
        await life.push("c", b'"%s"' % (b"x" * 1000))
    await life.store.close()
    spoil(tmp_path / "pere.db", "events")
    output = tmp_path / "out" / "all.ndjson"
    output.parent.mkdir()
    output.write_text("that of yesterday")
    done = pere("store", "export", life.path, "--output", str(output))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"pere: {life.path} cannot be used: .+; `pere store check` looks at all of it\n", done.stderr)
    assert (list(output.parent.iterdir()), output.read_text()) == ([output], "that of yesterday")


async def test_a_file_that_cannot_be_written_is_one_line_and_exit_2(tmp_path):
    await lived(tmp_path / "pere.db")
    done = pere("store", "export", str(tmp_path / "pere.db"), "--output", str(tmp_path / "nowhere" / "all"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"pere: {tmp_path}/nowhere/all cannot be written: No such file or directory\n"


async def test_an_export_does_not_overwrite_what_it_reads(tmp_path):
    path = str(tmp_path / "pere.db")
    await lived(tmp_path / "pere.db")
    done = pere("store", "export", path, "--output", path)
    assert (done.returncode, "--output is the file that is to be read" in done.stderr) == (2, True)
    assert checked(tmp_path / "pere.db")[0] == 0


@pytest.mark.parametrize("size, shown", [(0, "0 bytes"), (999, "999 bytes"), (8192, "8.19 KB"), (3_500_000, "3.5 MB"), (16e9, "16 GB"), (999_600, "1 MB"), (999.7e12, "1,000 TB"), (1 << 50, "1,126 TB")])
def test_a_size_is_shown_with_three_digits(size, shown):
    assert space(size) == shown
