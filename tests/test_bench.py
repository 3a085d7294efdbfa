"""The load of `pere bench`, for a moment each, against a real server; that it counts right, and says what went wrong. No speed is asserted."""

import ast
import asyncio
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from signal import SIGINT, SIGKILL
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen

import jwt
import pytest
from processes import ENVIRONMENT, SECONDS, Process, Served, pere

from bench import experiments, goals, pictures, rounds, tables
from bench.compare import change
from bench.load import receipts, soak
from bench.peers import centrifugo, mercure
from pere.load import estimate, fleet
from pere.load.histogram import Histogram
from pere.load.lines import Feed
from pere.load.scenarios import SCENARIOS
from pere.load.target import Target

ROOT = Path(__file__).parent.parent
SECRET = "a secret of more than thirty-two bytes"

# What makes each story short.
SHORT = {
    "fanout": "--feeds 20 --events 5",
    "burst": "--feeds 20 --events 20",
    "mission": "--feeds 20 --events 3 --lines 4",
    "receipts": "--feeds 10 --events 7 --lines 4",
    "push": "--events 50 --channels 3 --lines 4",
    "reconnect": "--feeds 20",
    "slow": "--feeds 20 --events 8 --every 0.005 --stuck 10 --turns 2",
    "spread": "--feeds 20 --channels 10",
    "patterns": "--feeds 10 --channels 5 --events 10",
    "idle": "--feeds 20 --seconds 0.5",
    "mixed": "--feeds 20 --seconds 1 --late 0.1 --leave 0.2",
    "soak": "--feeds 20 --seconds 1 --late 0.1",
}

# How many operations that is.
COUNTS = {
    "fanout": ("deliveries", 100), "burst": ("deliveries", 400), "mission": ("acknowledged", 60), "receipts": ("receipts", 70), "push": ("pushes", 50),
    "reconnect": ("replayed", 200), "slow": ("deliveries", 320), "spread": ("deliveries", 20), "patterns": ("deliveries", 100), "idle": ("feeds", 20),
    "mixed": ("feeds", 20), "soak": ("feeds", 20),
}


@pytest.fixture(scope="module")
def url():
    with Served("--jwt-secret", SECRET) as served:
        yield served.url


def bench(*arguments: str) -> dict:
    done = pere("bench", *arguments, "--jwt-secret", SECRET, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


# Stories


def test_every_story_has_a_short_form():
    assert SHORT.keys() == COUNTS.keys() == SCENARIOS.keys()


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_story_is_told_to_its_end_and_counts_right(url, name):
    told = bench(name, "--url", url, *SHORT[name].split())
    figure, count = COUNTS[name]
    assert told["scenario"] == name
    assert told["figures"][figure] == count
    assert 0 <= told["figures"]["server_busy"]
    assert told["arguments"]["processes"] >= 1
    for quantiles in told["figures"]["latency"].values():
        assert 0 < quantiles["p50"] <= quantiles["p99"] <= quantiles["max"]
    if name != "idle":
        assert told["figures"]["load_us"] > 0
        assert all(shares[-1][0] == 1.0 for shares in told["curves"].values())


def test_those_who_never_read_are_stuck():
    # As long as their sockets take what they are sent they cost what all others do, and nothing is measured.
    with Served() as served, Process("bench", "slow", "--url", served.url, "--feeds", "20", "--stuck", "4") as load:
        row, deadline = 0, time.monotonic() + 20
        while row < 3:  # who just comes is behind too, for a moment
            assert time.monotonic() < deadline and lives(load.pid), load.err
            told = urlopen(f"{served.url}/metrics", timeout=10).read()
            row = row + 1 if b"\npere_feeds_behind 5.0\n" in told else 0


def test_receipts_are_given_many_in_a_request_and_by_several_processes(url):
    told = bench("receipts", "--url", url, "--feeds", "10", "--events", "20", "--batch", "8", "--processes", "2")["figures"]
    assert (told["receipts"], told["requests"]) == (200, 30)


def test_what_is_asked_on_time_is_as_much_as_what_is_asked_at_once(url):
    assert bench("push", "--url", url, "--events", "40", "--rate", "200")["figures"]["pushes"] == 40


def test_a_person_gets_a_table_and_a_picture(url, tmp_path):
    picture = tmp_path / "out.png"
    done = pere("bench", "fanout", "--url", url, "--jwt-secret", SECRET, "--feeds", "10", "--events", "3", "--pid", str(os.getpid()), "--plot", str(picture))
    # Where it takes longer than two seconds, a line now and then says how far it is.
    assert (done.returncode, re.sub(r"(?m)^ +[\d.]+ s  \d+ feeds open, .*\n", "", done.stderr)) == (0, "")
    assert "deliveries" in done.stdout
    assert "the load's own processor" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


# What goes wrong


@pytest.mark.parametrize("arguments, code, sentence", [
    (["nothing"], 2, "is not one of"),
    (["fanout", "--feeds", "0"], 2, "--feeds"),
    (["fanout", "--url", "ftp://127.0.0.1"], 2, "a load is put on an http:// address"),
    (["fanout", "--url", "http://127.0.0.1:99999"], 2, "a load is put on an http:// address"),
    (["fanout", "--url", "http://192.0.2.1"], 1, "is not this machine"),
    (["fanout", "--plot", "out.txt"], 2, "a picture is one of"),
    (["fanout", "--plot", "/nowhere/out.png"], 2, "there is no folder /nowhere"),
    (["fanout", "--pid", "999999999"], 2, "there is no process"),
    (["fanout", "--feeds", "99000000", "--processes", "1"], 1, "ulimit -n"),
    (["receipts", "--feeds", "1001"], 1, "at most 1000 devices"),
])
def test_what_cannot_be_is_said(url, arguments, code, sentence):
    done = pere("bench", *arguments, *([] if "--url" in arguments else ["--url", url]))
    assert (done.returncode, done.stdout) == (code, "")
    assert sentence in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_server_that_is_not_there_is_said():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        done = pere("bench", "fanout", "--url", f"http://127.0.0.1:{port}")
    assert (done.returncode, done.stderr) == (1, f"pere: 127.0.0.1:{port} cannot be reached: Connection refused\n")


def test_a_server_that_refuses_is_quoted(url):
    for story, what in (("fanout", "a feed was refused"), ("push", "refused")):
        done = pere("bench", story, "--url", url, "--feeds", "3", "--events", "3")
        assert done.returncode == 1
        assert what in done.stderr
        assert "401" in done.stderr


def test_a_server_that_dies_under_the_load_is_said_and_no_process_is_left():
    with Served() as served, Process("bench", "fanout", "--url", served.url, "--feeds", "10", "--events", "1000") as load:
        load.until(" 10 feeds open")
        fleets = children(load.pid)
        assert fleets or sys.platform != "linux"
        served.kill()
        assert load.end() == 1
        assert "the server closed the feed" in load.err
        assert not any(map(lives, fleets))


async def test_a_load_that_is_over_waits_no_longer_for_answers_that_do_not_come(monkeypatch):
    monkeypatch.setattr(fleet, "STALL", 0.1)
    load = fleet.Fleet(Target("127.0.0.1", 1), 0)
    load.lines.asked = 1
    with pytest.raises(fleet.Trouble, match="0 of 1 requests were answered"):
        await asyncio.wait_for(load.live(0.0, 0.0), SECONDS)


def test_a_load_that_is_killed_leaves_no_process(url):
    with Process("bench", "idle", "--url", url, "--jwt-secret", SECRET, "--feeds", "10", "--seconds", "60") as load:
        load.until("feeds open")
        fleets = children(load.pid)
        load.end(SIGKILL)
        deadline = time.monotonic() + 15
        while any(map(lives, fleets)):
            assert time.monotonic() < deadline, "somebody goes on without a head"
            time.sleep(0.02)


def children(pid: int) -> list[int]:
    """The processes that this one has started; none where that cannot be seen."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def lives(pid: int) -> bool:
    """It runs; one that has ended and that nobody has asked for its exit code does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# Parts


def test_a_quantile_is_right_to_one_in_a_hundred():
    durations = sorted(int(random.Random(seed).lognormvariate(8, 2)) for seed in range(5_000))
    whole, first, second = Histogram(), Histogram(), Histogram()
    for place, us in enumerate(durations):
        (first if place % 3 else second).add(us)
    whole.merge(first)
    whole.merge(Histogram(second.counts.items()))
    assert len(whole) == 5_000
    for share in (0.01, 0.5, 0.9, 0.999, 1.0):
        exact = durations[max(0, int(share * 5_000) - 1)]
        assert exact * 0.99 - 1 <= whole.quantile(share) <= exact
    assert Histogram().quantile(0.5) == 0


def test_what_differs_between_turns_is_told_from_what_drifts():
    # From one turn to the next it is up to a third slower, so two means would differ by anything.
    source = random.Random(7)
    before, after = [], []
    for turn in range(60):
        pace = 1 + turn % 20 / 60
        before.append(20 * pace * source.uniform(0.95, 1.05))
        after.append(22 * pace * source.uniform(0.95, 1.05))
    found, least, most = estimate.ratio(before, after)
    assert 1.05 < least < found < most < 1.15
    assert least < 1.1 < most
    assert estimate.ratio(before, before) == (1.0, 1.0, 1.0)


def test_what_rises_is_told_from_what_jumps_about():
    source = random.Random(7)
    still = [60_000 + source.choice((0, 0, 0, 64, 256)) for _ in range(45)]
    found, least, most = estimate.slope(still)
    assert least <= found <= most
    assert least < 1 and most > -1
    rising = [value + 20 * minute for minute, value in enumerate(still)]
    found, least, most = estimate.slope(rising)
    assert 10 < least <= found <= most < 30
    assert estimate.slope([5.0]) == (0.0, 0.0, 0.0)


def test_an_event_has_its_size_and_its_time():
    target = Target("127.0.0.1", 1)
    event = target.event(12345, 150)
    assert len(event) == 150
    assert json.loads(event)["ts"] == "@00000000000000012345"
    made = target.pushed(target.pushing("c"), event)
    assert made.startswith(b"POST /push/c HTTP/1.1\r\n")
    assert made.endswith(b"Content-Length: 150\r\n\r\n" + event)


def test_another_server_is_spoken_to_as_it_wants():
    target = Target("h", 1, push="/pub?id={channel}", body="topic={channel}&data={quoted}", kind="application/x-www-form-urlencoded", headers=("X-Key: k",))
    made = target.pushed(target.pushing("c"), b'{"a":1}')
    assert made.startswith(b"POST /pub?id=c HTTP/1.1\r\n")
    assert b"\r\nX-Key: k\r\n" in made
    assert made.endswith(b"\r\nContent-Length: 30\r\n\r\ntopic=c&data=%7B%22a%22%3A1%7D")


def aimed(load: tuple[str, ...]) -> Target:
    """The server that these words of a command line mean."""
    words = dict(zip(load[::2], load[1::2], strict=True))
    names = {"--feed-path": "feed", "--push-path": "push", "--feedback-path": "feedback", "--push-body": "body", "--push-type": "kind",
             "--feedback-body": "answer", "--feedback-type": "answer_kind"}
    return Target("h", 1, headers=tuple(words[name] for name in words if name == "--header"),
                  **{field: words[name] for name, field in names.items() if name in words})


def request(made: bytes) -> tuple[str, dict[str, list[str]], bytes, bytes]:
    """The path, the query, the head and the body of a request, whose length must be right."""
    head, _, body = made.partition(b"\r\n\r\n")
    url = urlsplit(head.split()[1].decode())
    length = re.search(rb"Content-Length: (\d+)", head)
    assert int(length[1] if length else 0) == len(body)
    return url.path, parse_qs(url.query, strict_parsing=bool(url.query)), head, body


def test_centrifugo_is_spoken_to_as_its_documentation_has_it():
    target = aimed(centrifugo.LOAD)
    path, query, _, _ = request(target.listening("c-1", "d"))
    assert (path, {name: json.loads(value) for name, (value,) in query.items()}) == ("/connection/uni_sse", {"cf_connect": {"subs": {"c-1": {}}}})
    path, _, _, body = request(target.pushed(target.pushing("c-1"), b'{"a":1}'))
    assert (path, json.loads(body)) == ("/api/publish", {"channel": "c-1", "data": {"a": 1}})
    path, _, _, body = request(target.receipt("c-1", "d", "7"))
    assert (path, json.loads(body)) == ("/api/publish", {"channel": "receipts-c-1", "data": {"device": "d", "id": "7"}})


def test_mercure_is_spoken_to_as_its_documentation_has_it():
    target = aimed(mercure.LOAD)
    path, query, _, _ = request(target.listening("c-1", "d"))
    assert (path, query["topic"], query["match"]) == ("/.well-known/mercure", ["c-1"], ["c-1"])
    path, _, head, body = request(target.pushed(target.pushing("c-1"), b'{"a":"1&2"}'))
    assert (path, parse_qs(body.decode())) == ("/.well-known/mercure", {"topic": ["c-1"], "data": ['{"a":"1&2"}']})
    token = re.search(rb"Authorization: Bearer (\S+)", head)
    assert jwt.decode(token[1], rounds.SECRET, ["HS256"]) == {"mercure": {"publish": ["*"]}}
    path, _, _, body = request(target.receipt("c-1", "d", "urn:uuid:7"))
    assert (path, parse_qs(body.decode())) == ("/.well-known/mercure", {"topic": ["receipts-c-1"], "data": ["d urn:uuid:7"]})
    for version, is_told in (("v0.20.2 h1:abc=", False), ("v1.0.1 h1:abc=", True)):
        assert ("protocol_version_compatibility" in mercure.configuration("80", version)) is is_told


class Owed:
    """Who listens to a feed, and notes what must be answered."""

    answers, want = True, 99

    def __init__(self) -> None:
        self.latency, self.delivered, self.ids = Histogram(), 0, []

    def opened(self, feed: Feed) -> None:
        pass

    def owes(self, feed: Feed, id: bytes) -> None:
        self.ids.append(id)


@pytest.mark.parametrize("frames, ids", [
    # As Centrifugo has them: no ids, the event inside an envelope, and a first message and pings in between.
    (b'\r\ndata: {"connect":{"client":"x","subs":{"c":{}},"ping":25}}\n\ndata: {"channel":"c","pub":{"data":EVENT}}\n\ndata: {}\n\n'
     b'data: {"channel":"c","pub":{"data":EVENT}}\n\n', [b"%020d" % 1] * 2),
    # And Mercure: an id, a comment to begin with and between.
    (b":\n\nid: urn:uuid:1\ndata: EVENT\n\n:\n\nid: urn:uuid:2\ndata: EVENT\n\n", [b"urn:uuid:1", b"urn:uuid:2"]),
])
def test_an_event_is_answered_by_its_id_or_by_what_it_says(frames, ids):
    frames = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + frames.replace(b"EVENT", Target("h", 1).event(1, 100))
    for size in (len(frames), 7, 1):
        owed = Owed()
        feed = Feed(owed, 0, "c", False)
        for start in range(0, len(frames), size):
            feed.data_received(frames[start : start + size])
        assert (owed.ids, owed.delivered) == (ids, len(ids))


# bench/


def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)


def test_every_server_that_is_measured_beside_pere_delivers_all():
    """At once, which is no way to measure."""
    servers = {server.name: (measure, server) for measure in experiments.measures() for server in measure.servers}
    with ThreadPoolExecutor(len(servers)) as pool:
        told = list(pool.map(lambda each: rounds.once(*each, "--feeds 5 --events 10"), servers.values()))
    assert [(each["figures"]["feeds"], each["figures"]["deliveries"]) for each in told] == [(5, 50)] * len(servers)


def test_a_server_that_has_gone_again_is_told_of_with_its_last_words():
    """As one whose port somebody else has by now, who answers in its place."""
    gone = rounds.Server("gone", (sys.executable, "-c", "import socket, time; s = socket.create_server(('127.0.0.1', {port})); time.sleep(0.3); raise SystemExit('so long')"))
    with pytest.raises(SystemExit, match="gone did not start: so long"), rounds.running(gone):
        pass


def test_the_floor_for_receipts_answers_them():
    assert rounds.once(receipts.MEASURES[0], rounds.ECHO, "--feeds 5 --events 10 --lines 3")["figures"]["receipts"] == 50


def test_rounds_are_kept_compared_and_drawn(tmp_path):
    measure = rounds.Measure("small", "fanout", (rounds.PERE, rounds.SEND), "--feeds 5 --events 3", floor=rounds.SEND.name)
    result = rounds.measured(measure, rounds=2)
    assert {name: len(runs) for name, runs in result["runs"].items()} == {rounds.PERE.name: 2, rounds.SEND.name: 2}
    assert len(rounds.ratios(result, rounds.PERE.name)) == 2
    assert rounds.SECRET not in json.dumps(result)
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    before.write_text(json.dumps(result))
    # Twice as dear, of which the floor knows nothing.
    for run in result["runs"][rounds.PERE.name]:
        run["server_us"] *= 2
    after.write_text(json.dumps(result))
    done = ran("bench.compare", str(before), str(after))
    assert (done.returncode, done.stderr) == (0, "")
    assert len(re.findall(r"\+100\.0 %", done.stdout)) == 2  # the cost, and its ratio to the floor
    assert pictures.draw(result, tmp_path / "small.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("text, sentence", [(None, "cannot be read"), ("{", "is no JSON"), ("[]", "is no file of results")])
def test_what_cannot_be_compared_is_said(tmp_path, text, sentence):
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text)
    done = ran("bench.compare", str(path), str(path))
    assert (done.returncode, done.stdout) == (1, "")
    assert sentence in done.stderr


def test_a_change_is_marked_where_the_rounds_do_not_touch():
    assert change([1.0, 1.1, 1.2], [1.3, 1.4, 1.5]) == ("+27.3 %", "*")
    assert change([1.0, 1.1, 1.4], [1.3, 1.4, 1.5]) == ("+27.3 %", "")
    assert change([], [1.0]) == ("unknown", "")


@pytest.mark.parametrize("module, arguments, sentence", [
    ("bench", ["nothing"], "there is no nothing; there are burst, fanout"), ("bench.micro", ["nothing"], "there is no nothing; there are audience"),
    ("bench.load.fanout", ["--rounds", "0"], "--rounds is 1 or more, not 0"), ("bench.load.fanout", ["--only", "Apache"], "has no server with 'Apache' in its name"),
])
def test_a_measure_that_is_none_is_said(module, arguments, sentence):
    done = ran(module, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"usage: python -m {module} ")
    assert sentence in done.stderr


def test_a_server_tells_what_is_in_it_while_it_is_under_load():
    told = rounds.once(soak.MEASURES[0], soak.WATCHED, "--feeds 5 --seconds 1 --late 0.1")["figures"]
    assert told["memory_mib"] > 10 and len(told["memory_kib"]) >= 59
    look = told["inside"][0]
    assert look.keys() == {"minutes", "types", *tables.INSIDE}
    assert all(look[name] > 0 for name in ("rss_kib", "malloc_kib", "blocks")) and look["objects"] >= sum(look["types"].values())


def test_ctrl_c_ends_all_servers_and_says_what_is_kept():
    bench = subprocess.Popen([sys.executable, "-m", "bench", "fanout"], cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    with bench:
        try:
            assert bench.stderr.read(1) == "."  # the first server is being started
            deadline = time.monotonic() + 20
            while sys.platform == "linux" and not (servers := children(bench.pid)):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            os.killpg(bench.pid, SIGINT)
            out, err = bench.communicate(timeout=40)
        finally:
            bench.kill()
    assert bench.returncode == 130
    assert err == "\nstopped: all servers have ended; what was kept so far stays, the rounds under way are lost\n"
    assert not any(map(lives, servers))


@pytest.mark.parametrize("readme", [ROOT / "README.md", ROOT / "bench" / "README.md"])
def test_what_is_said_of_the_results_is_what_they_are(readme):
    text = readme.read_text()
    assert tables.MARKED.search(text)
    assert tables.written(text) == text, "python -m bench.pictures writes it anew"
    for _, result in tables.results():
        assert result["runs"] and not result["is_short"], result["name"]


def test_a_goal_is_reached_or_missed():
    goal = goals.Goal("memory", 2.0, "KiB", "idle", lambda result: result["found"])
    for found, verdict in (([1.0, 1.1, 1.2], "reached"), ([1.9, 1.95, 1.99], "reached by a hair"), ([1.0, 1.5, 2.1], "reached, but not in every round"), ([1.9, 2.1, 2.2], "missed")):
        assert goal.line({"found": found, "rounds": 3})[2].endswith(f"**: {verdict}")
    more = goals.Goal("receipts", 1_000, "/s", "receipts", lambda result: result["found"], at_most=False)
    assert more.line({"found": [1_400.0], "rounds": 1})[1:3] == ["at least 1,000 /s", "**1,400**: reached"]
    assert more.line({"found": [900.0], "rounds": 1})[2] == "**900.0**: missed"


def test_every_measure_opens_with_its_question_and_its_command_line():
    files = [path for path in (ROOT / "bench").rglob("*.py") if path.parent.name in ("load", "micro") and not path.name.startswith("__")]
    assert len(files) > 20
    for path in files:
        doc = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert "?" in doc, path
        assert re.search(rf"python -m bench\.{path.parent.name}[ .]{path.stem}", doc), path


@pytest.mark.parametrize(("question", "rows"), [("others", 4), ("each", 2)])
def test_what_further_nodes_cost_is_told_for_each_number_of_them(question, rows):
    short = "from bench.load import nodes; nodes.KEPT, nodes.MANY, nodes.KEPT_BY, nodes.LOOK = 50, 10, 0.0, 0.1; nodes.main()"
    done = subprocess.run([sys.executable, "-c", short, "--only", question, "--nodes", "2", "--pushes", "20", "--listeners", "3"], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    table = done.stdout.partition("nodes  ")[2].splitlines()[1:]
    assert [re.findall(r" (\d) ", row)[0] for row in table] == ["1", "2"] * (rows // 2), done.stdout
