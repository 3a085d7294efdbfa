"""`pere store copy`: a store from a file to Redis and back, with real servers before and after."""

import json
import re
import signal
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from processes import Process, Served, free_port, pere
from redises import RedisServer, common

from pere.cli.moving import copied
from pere.config import Config
from pere.errors import ConfigError
from pere.storage import keeping
from pere.storage.contents import Contents


def asked(url: str, target: str, body: object = None, method: str | None = None, **headers: str):
    """The JSON of an answer, or its status if that is an error."""
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url + target, data, {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code


def followed(url: str, after: str, last: str) -> list[dict]:
    """The receipts of a channel behind this one, up to that which was given last: this event was processed."""
    found: list[dict] = []
    with urllib.request.urlopen(f"{url}/receipts/orders?from={after}", timeout=20) as feed:
        while not found or (found[-1]["event_id"], found[-1]["state"]) != (last, "processed"):
            name, _, value = feed.readline().partition(b": ")
            assert name, f"it ended behind {found}"
            if name == b"data" and "event_id" in (told := json.loads(value)):
                found.append(told)
    return found


def answers(url: str, ids: dict[str, str]) -> dict:
    """All that can be asked, but for what only a life of a server knows."""
    found: dict = {}
    for name, id in ids.items():
        channel = "orders" if name != "elsewhere" else "news.eu"
        found[name] = status = asked(url, f"/events/{channel}/{id}")
        page = asked(url, f"/events/{channel}/{id}/devices")
        found[f"{name}'s devices"] = [{key: value for key, value in device.items() if key not in ("attempt", "sent_at")} for device in page["devices"]]
        assert sum(status["counts"].values()) == status["audience"]
    found["events"] = asked(url, "/events/orders")["events"] + asked(url, "/events/news.eu")["events"]
    found["devices"] = {device["device"]: device["patterns"] for device in asked(url, "/admin/devices")["devices"]}
    found["members"] = {name: member["Last-Event-Id"] for name, member in asked(url, "/admin/devices/orders").items()}
    found["webhooks"] = [{key: hook[key] for key in ("id", "url", "types", "channels")} for hook in asked(url, "/webhooks")["webhooks"]]
    found["receipts"] = followed(url, "all", ids.get("keyed") or ids["one"])
    return found


def lived(url: str) -> dict[str, str]:
    """Everything that can happen: receipts of all kinds, who left and came again, `to`, a recall, a ttl, patterns, a webhook, a key."""
    for name in ("till-1", "till-2", "till-3"):
        with Process("listen", "orders", "--device", name, "--receipt", "none", "--url", url) as device:
            device.until("pere.hello")
    with Process("listen", "news.*", "--device", "kiosk", "--receipt", "none", "--url", url) as device:
        device.until("pere.hello")
    ids = {"answered": asked(url, "/push/orders?type=order", {"n": [1, 2.5]})["id"], "open": asked(url, "/push/orders?receipt=delivered", "grüß")["id"],
           "addressed": asked(url, "/push/orders?to=till-3&to=new&to=till-1", 3, Device="shop")["id"], "recalled": asked(url, "/push/orders", 4)["id"],
           "none": asked(url, "/push/orders?receipt=none", 5)["id"], "elsewhere": asked(url, "/push/news.eu?need=1", 6, traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")["id"],
           "keyed": asked(url, "/push/orders", 7, Idempotency_Key="k-1")["id"]}
    for device, event, state, word in (("till-1", "answered", "delivered", None), ("till-1", "answered", "processed", {"printed": True}), ("till-2", "answered", "failed", "no paper"),
                                       ("till-3", "addressed", "processed", None), ("kiosk", "elsewhere", "processed", "shown")):
        told = asked(url, f"/feedback/{'orders' if device != 'kiosk' else 'news.eu'}", {"event_id": ids[event], "state": state} | ({"status": word} if word else {}), Device=device)
        assert told["state"] == state
    asked(url, f"/events/orders/{ids['recalled']}", method="DELETE")
    asked(url, "/admin/devices/till-2", method="DELETE")
    asked(url, "/webhooks", {"url": "https://example.com/hook", "channels": ["orders"]})
    asked(url, "/feedback/orders", {"event_id": ids["keyed"]}, Device="till-3")  # the last receipt, so that who follows them knows the end
    return ids


def copy(*arguments: object) -> str:
    done = pere("store", "copy", *map(str, arguments))
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


@pytest.fixture(scope="module")
def life(tmp_path_factory):
    """A file to which all has happened, with what a server answered that had it, and the ids of its events."""
    path = tmp_path_factory.mktemp("life") / "pere.db"
    with Served("--store", f"sqlite:{path}") as served:
        ids = lived(served.url)
        told = answers(served.url, ids)
        assert served.end(signal.SIGTERM) == 0
    return path, ids, told


@pytest.fixture
def redis(tmp_path) -> str:
    """A deployment of its own."""
    return f"{common().url}?prefix={tmp_path.name}"


def test_everything_goes_from_a_file_to_redis_and_back_and_everybody_goes_on_where_they_were(life, redis, tmp_path):
    path, ids, told = life
    assert re.fullmatch(rf"{re.escape(redis)}: 7 events, 2 channels, 3 registrations, 1 Idempotency-Keys, 1 patterns, \d+ records of webhooks and revoked tokens, \d+ receipts\n", copy(path, redis))
    with Served("--store", redis) as served:
        assert answers(served.url, ids) == told
        assert asked(served.url, "/push/orders", 7, Idempotency_Key="k-1")["id"] == ids["keyed"]
        # Who followed goes on behind what was read last; a device is sent what it owes; ids go on.
        assert followed(served.url, told["receipts"][1]["id"], ids["keyed"]) == told["receipts"][2:]
        with Process("listen", "orders", "--device", "till-1", "--json", "--count", "4", "--url", served.url) as device:
            assert device.end() == 0
            assert [json.loads(line)["id"] for line in device.out.splitlines()] == [ids["open"], ids["addressed"], ids["none"], ids["keyed"]]
        later = asked(served.url, "/push/orders", "later")["id"]
        told = answers(served.url, ids | {"later": later})
        assert served.end(signal.SIGTERM) == 0
    back = tmp_path / "back.db"
    assert copy(redis, f"sqlite:{back}").startswith(f"sqlite:{back}: 8 events, ")
    assert pere("store", "check", str(back)).stdout == f"{back} is sound\n"
    with Served("--store", f"sqlite:{back}") as served:
        assert answers(served.url, ids | {"later": later}) == told
        assert asked(served.url, "/push/orders", 7, Idempotency_Key="k-1")["id"] == ids["keyed"]
        assert asked(served.url, "/push/news.us", 1)["audience"] == 1  # whom the pattern means


def test_what_a_node_had_not_kept_yet_when_it_was_killed_goes_along(redis, tmp_path):
    with Served("--store", redis) as served:
        ids = {name: asked(served.url, "/push/orders?to=till", name)["id"] for name in ("one", "two")}
        asked(served.url, "/feedback/orders", {"event_id": ids["one"]}, Device="till")
        told = answers(served.url, ids)
        served.kill()
    done = pere("store", "copy", redis, str(tmp_path / "pere.db"))
    assert (done.returncode, done.stderr) == (2, f"pere: {redis} is in use: a node is there; end them, and wait for 20 s if they were killed\n")
    common().ask("DEL", f"{tmp_path.name}:nodes")  # as it is when it was silent for so long
    assert copy(redis, tmp_path / "pere.db").startswith(f"{tmp_path / 'pere.db'}: 2 events")
    with Served("--store", f"sqlite:{tmp_path / 'pere.db'}") as served:
        assert answers(served.url, ids) == told


def test_a_store_in_memory_takes_what_it_has_room_for_and_the_rest_is_told(redis, tmp_path):
    path = tmp_path / "pere.db"
    with Served("--store", f"sqlite:{path}") as served:
        ids = [asked(served.url, "/push/orders", number)["id"] for number in range(12)]
        other = asked(served.url, "/push/news", 1)["id"]
        assert served.end(signal.SIGTERM) == 0
    told = copy(path, redis, "--backlog-events", "5")
    assert told.startswith(f"{redis}: 6 events, 2 channels") and f"7 older events stay in {path}" in told
    with Served("--store", redis) as served:
        assert [event["id"] for event in asked(served.url, "/events/orders")["events"]] == ids[-5:]
        assert asked(served.url, f"/events/orders/{ids[0]}") == 410
        assert asked(served.url, f"/events/news/{other}")["id"] == other


# What is refused


def refusal(*arguments: object) -> str:
    done = pere("store", "copy", *map(str, arguments))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"pere: .+\n", done.stderr)
    return done.stderr[len("pere: "):-1]


def test_what_is_there_is_left_unless_it_is_forced(life, redis, tmp_path):
    path, *_ = life
    copy(path, redis)
    assert refusal(path, redis) == f"{redis} is not empty, and is left as it is; --force replaces it"
    copy(path, redis, "--force")
    (tmp_path / "there.db").write_text("that of yesterday")
    assert "is there already" in refusal(redis, tmp_path / "there.db")
    told = copy(redis, tmp_path / "there.db", "--force")
    before = re.search(r"what was there is (.+)\n", told)[1]
    assert Path(before).read_text() == "that of yesterday"


def test_nothing_is_copied_under_the_feet_of_a_server(life, redis, tmp_path):
    path, *_ = life
    here = tmp_path / "pere.db"
    with Served("--store", f"sqlite:{here}") as served:
        assert f"{here} is in use by another process (pid {served.pid})" in refusal(here, redis)
        copy(path, redis)
        assert "is in use by another process" in refusal(redis, here, "--force")
        assert asked(served.url, "/push/orders", 1)["channel"] == "orders"
    with Served("--store", redis):
        assert "is in use: a node is there" in refusal(path, redis, "--force")


def test_what_cannot_be_copied_is_told(life, redis, tmp_path):
    path, *_ = life
    assert "memory: keeps nothing" in refusal("memory:", redis)
    assert "pere store backup" in refusal(path, tmp_path / "copy.db")
    assert refusal(redis, redis) == "FROM and TO are the same"
    assert refusal(redis, tmp_path / "copy.db") == f"there is nothing in {redis}"
    assert refusal(tmp_path / "none.db", redis) == f"there is no file {tmp_path / 'none.db'}"
    assert "cannot be used" in refusal(f"redis://user:secret-word@127.0.0.1:{free_port()}/0", tmp_path / "copy.db")
    assert "secret-word" not in refusal(f"redis://user:secret-word@127.0.0.1:{free_port()}/0", tmp_path / "copy.db")
    assert "there is no folder" in refusal(_filled(path, redis), tmp_path / "none" / "copy.db")


def _filled(path: Path, redis: str) -> str:
    copy(path, redis)
    return redis


# Half a copy


async def test_half_a_copy_is_never_taken_for_a_whole(life, redis, tmp_path):
    """Whoever is killed while it is written leaves names that no node reads and that go away by themselves."""
    path, *_ = life
    seen = []

    def watched(name: str, done: int, total: int) -> None:
        if name == "writing":
            there = common()
            seen.append((there.ask("EXISTS", f"{tmp_path.name}:head"), there.ask("EXISTS", f"{tmp_path.name}:copied:events"), int(there.ask("PTTL", f"{tmp_path.name}:copied:events")[1:]) > 0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await copied(str(path), redis, Config(), False, watched)
    assert seen == [(b":0", b":1", True)]
    assert common().ask("EXISTS", f"{tmp_path.name}:head", f"{tmp_path.name}:copied:events", f"{tmp_path.name}:events") == b":0"
    await copied(str(path), redis, Config(), False, lambda *said: None)
    with pytest.raises(KeyboardInterrupt):
        await copied(redis, str(tmp_path / "back.db"), Config(), False, watched)
    assert [name for name in tmp_path.iterdir() if not name.name.endswith("-lock")] == []


async def test_a_node_that_comes_meanwhile_ends_the_copy(life, redis):
    path, *_ = life
    nodes = []

    def watched(name: str, done: int, total: int) -> None:
        if name == "writing" and not nodes:
            nodes.append(Served("--store", redis))

    try:
        with pytest.raises(ConfigError, match="a node has come to .* meanwhile"):
            await copied(str(path), redis, Config(), True, watched)
        assert asked(nodes[0].url, "/push/orders", 1)["channel"] == "orders"
    finally:
        for node in nodes:
            node.__exit__()


def test_a_user_of_few_rights_can_copy(life, redis, tmp_path):
    path, ids, told = life
    rights = f"on >se:cret@ ~{tmp_path.name}:* &{tmp_path.name}:* +@read +@write +@scripting +@pubsub +@connection +time".split()
    assert common().ask("ACL", "SETUSER", "copyist", *rights) == b"+OK"
    url = redis.replace("127", "copyist:se%3Acret%40@127", 1)
    assert "se%3Acret" not in copy(path, url)
    copy(url, tmp_path / "back.db")
    with Served("--store", f"sqlite:{tmp_path / 'back.db'}") as served:
        assert answers(served.url, ids) == told


async def test_what_was_written_wrong_is_found_and_thrown_away(life, redis, tmp_path):
    path, *_ = life

    def watched(name: str, done: int, total: int) -> None:
        if name == "reading":
            common().ask("HDEL", f"{tmp_path.name}:copied:members", "orders till-1")

    with pytest.raises(ConfigError, match=r"is not what was written, and is thrown away: members \(2, and 3 were written\)"):
        await copied(str(path), redis, Config(), False, watched)
    assert common().ask("EXISTS", f"{tmp_path.name}:head", f"{tmp_path.name}:copied:members") == b":0"


async def test_a_redis_that_fills_up_takes_nothing(life, tmp_path):
    path, *_ = life
    with RedisServer(tmp_path, maxmemory="1mb") as there:
        with pytest.raises(ConfigError, match="cannot be used: .*maxmemory"):
            await copied(str(path), there.url, Config(), False, lambda *said: None)
        there.ask("CONFIG", "SET", "maxmemory", "0")
        assert there.ask("DBSIZE") == b":0"


# What is compared


def test_the_log_of_receipts_goes_back_as_far_as_its_events_do():
    rows = [(number, id, "c", 1.0, "d", 4, None, 2.0) for number, id in ((1, 10), (2, 11), (4, 10), (5, 12), (6, 10))]
    contents = Contents(number=6, rows=list(rows))
    contents.kept["events"] = {keeping.joined("c", str(id)): b"" for id in (10, 11, 12)}
    contents.trim()
    assert [row[0] for row in contents.rows] == [4, 5, 6]  # 3 is missing
    del contents.kept["events"]["c 12"]
    contents.trim()
    assert [row[0] for row in contents.rows] == [6]
    contents.number = 7
    contents.trim()
    assert contents.rows == []


@pytest.mark.parametrize("kind", ["keys", "documents", "members"])
def test_a_digest_tells_what_is_another(kind):
    one, other = Contents(), Contents()
    one.kept[kind]["a b"], other.kept[kind]["a b"] = keeping.pack_value(b"1"), keeping.pack_value(b"1")
    one.check(other, "here")
    other.kept[kind]["a b"] = keeping.pack_value(b"2")
    with pytest.raises(ConfigError, match=f"here is not what was written, and is thrown away: {kind}"):
        one.check(other, "here")
