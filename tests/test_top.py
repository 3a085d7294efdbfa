"""`pere top`: a real server and a real terminal, and what a person sees there."""

import io
import json
import signal

import pytest
from minting import SECRET, token
from processes import SECONDS, Process, Served, free_port, pere
from rich.console import Console
from terminals import Terminal

from pere.cli.gauges import quantile, together, told
from pere.cli.top import screen, times


@pytest.fixture(scope="module")
def url():
    with Served() as served:
        yield served.url


def looked(*arguments: str, code: int = 0, **variables: str) -> dict:
    done = pere("top", "--once", "--json", "--every", "0.5", *arguments, **variables)
    assert (done.returncode, done.stderr) == (code, "")
    return json.loads(done.stdout)


def test_what_happens_while_it_looks_is_told_for_programs():
    with Served() as served, Process("listen", "orders", "--device", "till", "--url", served.url) as device:
        device.until("pere.hello")
        with Process("push", "orders", "--every", "0.02", "--url", served.url) as publisher:
            publisher.until("pushed to orders, for 1 device")
            looks = (looked("--url", served.url)["total"] for _ in range(60))
            total = next(total for total in looks if all(total[name] > 0 for name in ("pushes", "deliveries", "receipts", "busy")))
    assert (total["feeds"], total["online"], total["registered"], total["channels"], total["behind"]) == (1, 1, 1, 1, 0)
    assert total["most_feeds"] == {"orders": 1} and total["furthest_behind"] == []
    assert 0 < total["round_trip"]["p50"] <= total["round_trip"]["p99"]
    assert total["memory"] > 1e6


def test_a_person_sees_it_in_80_columns_and_q_ends_it(url):
    with Terminal("top", "--every", "0.2", "--url", url) as terminal:
        terminal.until(r"(?s)pushes/s +\d.*feed behind")  # its last line: what is written at once may be read in pieces
        for word in ("deliveries/s", "receipts/s", "owed", "round trip", "loop lag", "webhooks", "feed behind", "q quits"):
            assert word in terminal.text
        assert "…" not in terminal.text
        terminal.type(b"q")
        assert terminal.end() == 0
        assert terminal.seen.rstrip().endswith(b"\x1b[?25h") or b"\x1b[?1049l" in terminal.seen  # the terminal is as it was
        assert "Traceback" not in terminal.text


def test_ctrl_c_ends_it_too(url):
    with Terminal("top", "--every", "0.2", "--url", url) as terminal:
        terminal.until("pushes/s")
        terminal.type(b"\x03")
        assert terminal.end() == 0
        assert "Traceback" not in terminal.text


def test_a_server_that_goes_away_is_told_and_found_again():
    with Served(port=free_port()) as first:
        with Terminal("top", "--every", "0.2", "--url", first.url) as terminal:
            terminal.until("pushes/s")
            first.kill()
            terminal.until(f"{first.url} is away: ")
            seen = len(terminal.text)
            with Served(port=first.port):
                terminal.until(rf"(?s)\A.{{{seen}}}.*pushes/s")
                terminal.type(b"q")
                assert terminal.end() == 0


def test_what_is_no_terminal_is_shown_one_look(url):
    done = pere("top", "--every", "0.2", "--url", url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "pushes/s" in done.stdout and "q quits" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_lines_of_json_come_until_ctrl_c(url):
    with Process("top", "--json", "--every", "0.1", "--url", url) as top:
        top.until(r"(?s)(\"total\".*\n.*){2}")
        assert top.end(signal.SIGINT) == 130
        assert top.err == ""
        assert all(json.loads(line)["total"] for line in top.out.splitlines())


def test_several_nodes_are_told_apart_and_added_up(url):
    with Served() as other, Process("listen", "news", "--url", other.url) as device:
        device.until("pere.hello")
        nowhere = f"http://127.0.0.1:{free_port()}"
        seen = looked("--url", url, "--node", other.url, "--node", nowhere, code=1)
        assert [node["url"] for node in seen["nodes"]] == [url, other.url, nowhere]
        assert seen["nodes"][1]["feeds"] == 1 and seen["nodes"][2]["away"] == "Connection refused"
        assert seen["total"]["feeds"] == seen["nodes"][0]["feeds"] + 1
        assert "news" in seen["total"]["most_feeds"]
        shown = pere("top", "--once", "--every", "0.1", "--url", url, "--node", other.url).stdout
        assert "2 nodes" in shown and other.url.removeprefix("http://") in shown


def test_it_says_what_keeps_it_from_looking():
    with Served("--jwt-secret", SECRET) as served:
        assert "token that may administer" in looked("--url", served.url, code=1)["nodes"][0]["away"]
        assert looked("--url", served.url, PERE_TOKEN=token("d", admin=True))["total"]["feeds"] == 0
    with Served("--admin-port", "0", "--unix", "") as served:
        assert "--admin-port" in looked("--url", served.until(r"url=(http://[^,]+),")[1], code=1)["nodes"][0]["away"]
    done = pere("top", "--once", "--url", "localhost")
    assert (done.returncode, "a server's URL is like" in done.stderr) == (2, True)


def test_a_feed_that_does_not_read_is_named(url):
    from socket import create_connection

    host, port = url.removeprefix("http://").split(":")
    with create_connection((host, int(port)), timeout=SECONDS) as slow:
        slow.sendall(b"GET /feed/loud HTTP/1.1\r\nHost: a\r\nDevice: sleeper\r\n\r\n")
        assert slow.recv(100)
        assert pere("push", "loud", "x" * 60_000, "--count", "200", "--url", url).returncode == 0
        total = looked("--url", url)["total"]
    (behind,) = total["furthest_behind"]
    assert (behind["device"], behind["channel"]) == ("sleeper", "loud") and behind["events"] > 0
    assert total["behind"] == 1


# The address


async def test_who_is_behind_is_told_by_how_much(start, ask, get, listen, push):
    server = await start()
    await listen("c", device="quick")
    assert await get("/admin/behind") == {"feeds": [], "count": 0}
    await listen("c", device="slow", window="1", ack_wait="60")
    for _ in range(3):
        await push("c")
    told = await get("/admin/behind")
    assert told == {"feeds": [{"device": "slow", "channel": "c", "events": 2, "stuck": 0}], "count": 1}
    assert (await get("/admin/behind?limit=1"))["count"] == 1
    assert (await ask("GET", "/admin/behind?limit=0")).error == (400, "bad_limit")
    assert server.hub.channels.behind == 0


# Figures


def test_a_quantile_lies_within_its_bucket():
    assert quantile({0.1: 50, 0.2: 100, float("inf"): 100}, 0.5) == 0.1
    assert quantile({0.1: 50, 0.2: 100, float("inf"): 100}, 0.75) == pytest.approx(0.15)
    assert quantile({0.1: 0, float("inf"): 10}, 0.5) == 0.1  # beyond all bounds
    assert quantile({0.1: 0, float("inf"): 0}, 0.5) is None
    assert quantile({}, 0.5) is None


@pytest.mark.parametrize("half, most, shown", [(0.00078, 0.0024, "0.78 / 2.4 ms"), (0.5, 1.5, "500 ms / 1.5 s"), (None, None, "none")])
def test_times_are_shown_in_the_units_that_people_would_use(half, most, shown):
    assert times({"p50": half, "p99": most}) == shown


def test_a_screen_holds_the_longest_numbers():
    from pere.cli.gauges import look_of

    one = {"url": "http://127.0.0.1:4567", **told(None, look_of("", {"c" * 128: 100_000}, [{"device": "d" * 128, "channel": "c", "events": 10_000_000, "stuck": 59.9}]))}
    one |= {"feeds": 100_000, "online": 100_000, "registered": 1_000_000, "channels": 1_000_000, "pushes": 50_000.0, "deliveries": 9_999_999.0, "receipts": 999_999.0,
            "outstanding": 99_999_999, "oldest": 86_400 * 9, "memory": 9e9, "busy": 0.999, "round_trip": {"p50": 0.999, "p99": 1800.0}, "webhooks_queued": 100_000, "webhooks_dead": 10_000, "webhooks_failing": 3}
    console = Console(width=80, record=True, file=io.StringIO(), markup=False)
    console.print(screen({"time": 0.0, "nodes": [one, one], "total": together([one, one])}))
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 80
    for number in ("200,000", "19,999,998", "1,999,998", "99,999,999", "100,000 queued"):
        assert number in shown
