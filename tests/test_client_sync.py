"""The client without asyncio, and what a program has to install to use either."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from contextlib import closing

import pytest
from listener import in_a_hurry  # noqa: F401  # a fixture
from processes import ENVIRONMENT, SECONDS, Process, Served

from pere import Refusal, Retry, SyncClient
from pere.client.news import Opened


@pytest.fixture
def aside(start):
    """`await aside(story)`: a story without asyncio, told in a thread while the server runs here: `story(url, until_open)`."""

    async def aside(story, **config):
        server = await start(**{"retry": 0.1} | config)
        return await asyncio.to_thread(story, f"http://127.0.0.1:{server.port}")

    return aside


class Listener:
    """A device on a thread of its own; `opened` is set once it listens."""

    def __init__(self, url, work, **wanted):
        self.opened = threading.Event()
        self._url, self._work, self._wanted = url, work, wanted
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        assert self.opened.wait(SECONDS)
        return self

    def __exit__(self, *exc_info):
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()

    def _run(self):
        with SyncClient(self._url, device="d", on_news=lambda news: isinstance(news, Opened) and self.opened.set()) as client:
            self._work(client)


async def test_an_event_is_pushed_listened_to_answered_and_accounted_for(aside):
    seen = []

    def listen(client):
        with closing(client.listen(["c", "x.*"])) as feed:
            for event in feed:
                seen.append((event.channel, event.data))
                if event.data == "bad":
                    event.failed("no paper")
                if event.data == "end":
                    event.processed()
                    break
        client.flush()
        assert client.unanswered == 0

    def story(url):
        with Listener(url, listen), SyncClient(url) as shop:
            ids = [shop.push("c", data, key=data)["id"] for data in ("good", "bad")]
            ids += [result["id"] for result in shop.push_many([{"channel": "x.y", "data": 1}, {"channel": "c", "data": "end"}])]
            channels = ["c", "c", "x.y", "c"]
            states = [{state for state, count in shop.wait(channel, id, until="complete")["counts"].items() if count} for channel, id in zip(channels, ids, strict=True)]
            assert states == [{"processed"}, {"failed"}, {"processed"}, {"processed"}]
            assert [line["status"] for line in shop.devices("c", ids[1])] == ["no paper"]
            id = shop.push("c", "unseen", to=["d", "e"])["id"]
            assert [line["device"] for line in shop.outstanding("c", id)] == ["d", "e"]
            assert shop.recall("c", id)["cancelled"] == 2
            assert shop.status("c", id)["recalled"] is True

    await aside(story)
    assert seen == [("c", "good"), ("c", "bad"), ("x.y", 1), ("c", "end")]


async def test_handlers_answer_by_how_they_end(aside, caplog):
    class Enough(BaseException):
        """As Ctrl-C would be."""

    attempts = []

    def handler(event):
        attempts.append(event.attempt)
        if event.data == "later" and event.attempt == 1:
            raise Retry
        if event.data == "bad":
            raise ValueError("no paper")
        if event.data == "end":
            raise Enough
        return "printed"

    def handle(client):
        with pytest.raises(Enough):
            client.handle("c", handler, ack_wait=60)
        client.flush()

    def story(url):
        with SyncClient(url) as shop:
            with Listener(url, handle):
                ids = [shop.push("c", data)["id"] for data in ("good", "bad", "later")]
                for id in ids:
                    shop.wait("c", id, until="complete")
                ids.append(shop.push("c", "end")["id"])
            lines = [next(iter(shop.devices("c", id))) for id in ids]
            assert [(line["state"], line["status"]) for line in lines] == [
                ("processed", "printed"), ("failed", "ValueError: no paper"), ("processed", "printed"), ("sent", None)]

    await aside(story)
    assert "the handler of" in caplog.text
    caplog.clear()


async def test_what_the_server_says_and_what_cannot_be_reached_are_the_same_errors_as_with_asyncio(aside):
    def story(url):
        with SyncClient(url, device="d") as client:
            with pytest.raises(Refusal) as caught:
                client.push("no such?", 1)
            assert caught.value.status == 400
            with pytest.raises(Refusal):
                client.feedback("c", "1-0")
            with pytest.raises(ValueError, match="satisfied or complete"):
                client.wait("c", "1-0", until="done")
        with pytest.raises(ValueError, match="closed"):
            client.status("c", "1-0")
        client.close()
        with SyncClient("http://127.0.0.1:1", timeout=1) as lost, pytest.raises(ConnectionError, match="cannot be reached"):
            lost.push("c", 1)

    await aside(story)
    with pytest.raises(ValueError, match="a server's URL is like"):
        SyncClient("nowhere")
    assert [thread.name for thread in threading.enumerate() if thread.name == "pere.SyncClient"] == []


async def test_who_waits_on_another_thread_when_it_is_closed_waits_no_more(aside):
    def story(url):
        opened, ended = threading.Event(), []
        client = SyncClient(url, device="d", on_news=lambda news: isinstance(news, Opened) and opened.set())

        def listen():
            with pytest.raises(ValueError, match="closed") as caught:
                for _ in client.listen("c"):
                    pass
            ended.append(caught)

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        assert opened.wait(SECONDS)
        client.close()
        thread.join(SECONDS)
        assert len(ended) == 1

    await aside(story)


DEVICE = """
import sys
from pere import SyncClient
with SyncClient(sys.argv[1], device="d", on_news=lambda news: print(type(news).__name__, flush=True)) as client:
    try:
        for event in client.listen("c"):
            print("event", event.data, flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
print("ended", client.unanswered, flush=True)
"""


class Script(Process):
    command = [sys.executable, "-c"]


def test_ctrl_c_ends_a_device_after_it_has_given_its_receipts_and_a_pause_costs_it_nothing():
    with Served("--heartbeat", "0.1", "--retry", "0.1") as served, Script(DEVICE, served.url) as device, SyncClient(served.url) as shop:
        device.until("Opened")
        ids = [shop.push("c", 0)["id"]]
        device.until("event 0")
        # As a laptop that is put to sleep with all that runs on it.
        os.kill(device.pid, signal.SIGSTOP)
        ids += [shop.push("c", n)["id"] for n in range(1, 4)]
        shop.wait("c", ids[1], until="complete", seconds=0.5)
        os.kill(device.pid, signal.SIGCONT)
        for id in ids[:-1]:
            assert shop.wait("c", id, until="complete", seconds=20)["counts"]["processed"] == 1
        device.until("event 3")
        assert device.end(signal.SIGINT) == 0
        # A feed that was lost is opened again, perhaps before the receipt for what came on it was there: then that came twice, and was handed on once.
        assert [line for line in device.out.splitlines() if line not in ("Opened", "Lost", "Duplicate")] == [*(f"event {n}" for n in range(4)), "interrupted", "ended 0"]


@pytest.mark.parametrize("code, unwanted", [
    ("import pere", "tornado uvloop httptools aiohttp asyncio orjson prometheus_client jwt click"),
    ("from pere import verify_notice, Refusal", "tornado uvloop httptools aiohttp asyncio prometheus_client jwt click"),
    ("from pere import Client, SyncClient, Event, Retry", "tornado uvloop httptools prometheus_client jwt cryptography click rich msgpack redis pere.server pere.config"),
    ("import pere.client.client, pere.client.sync", "tornado uvloop httptools prometheus_client jwt click rich"),
])
def test_who_only_visits_loads_nothing_of_the_server(code, unwanted):
    script = f"import sys\n{code}\nprint(*sorted(set({unwanted.split()!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS)
    assert (done.stdout.strip(), done.stderr) == ("", "")


@pytest.mark.parametrize("module", ["pere", "pere.client"])
def test_what_is_not_there_is_said(module):
    done = subprocess.run([sys.executable, "-c", f"from {module} import Clent"], env=ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS)
    assert "cannot import name 'Clent'" in done.stderr
