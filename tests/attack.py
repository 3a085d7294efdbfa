"""Does a server that strangers may say anything to serve the honest as before, and does its memory come to an end?

    python -m tests.attack --minutes 20 --store memory:
    python -m tests.attack --minutes 20 --store sqlite:DIR/attack.db --keys --seed 7

A real server in a process. Strangers at hundreds of addresses do all that the README names, and what it does not: they push, listen, answer, follow, wait, ask, recall, and let go in the middle; what they
say is mostly right, sometimes wrong, sometimes bent. With `--keys` some of them have tokens, of their own device and channels; without, all may do everything but touch the
channel of the honest: a publisher, and devices that read, check and answer. Each second somebody asks /healthz, and reads how much memory there is.

Wrong is: a 500, a feed on which an honest device sees anything but what was pushed, in its order and each once; a receipt that was answered and is not in the delivery status; a push of the
honest that is refused. What was seen stands there each minute.
"""

import asyncio
import http.client
import random
import resource
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import orjson
import uvloop

# pytest finds the words of the tests beside this file, and so must `python -m tests.attack`.
sys.path.insert(0, str(Path(__file__).parent))

from minting import SECRET, token
from processes import Started
from wire import Feed, Wire, said


DEVICES = 8  # that are honest
STRANGERS = 40  # that do something at any time
EVERY = 0.1  # seconds between two honest pushes
LATER = 0.5  # seconds between two looks at whether all have answered
PATIENCE = 60.0
NAMES = ["a", "b", "x.1", "x.2", "x.y.z", "~", ".", "..", "A:b@c", "pere.hello", "%00", "a\nb", "", "a" * 128, "a" * 129, "é", "<img src=x onerror=alert(1)>", "__proto__"]
WORDS = ["delivered", "processed", "failed", "working", "retry", "", "PROCESSED", "sent", "expired"]
IDS = ["", "0", "0-0", "1-1", "9999999999999-0", "-1", "null", "8796093022207-1048575", "2014-12-01T14:28:30Z", "a" * 300]
# So that what is bounded comes to its bound while somebody looks.
SMALL = ["--max-devices", "50000", "--max-channels", "10000", "--receipts-kept", "20000", "--peer-registrations", "0", "--max-webhooks", "20"]
BENT = [b"\r\n", b"\n", b"\0", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"HTTP/1.1", b" ", b"\xff", b"0\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"%0d%0a", b"event: pere.bye\n\n"]


class Attack:
    """`found` is what was wrong, `told` how often what was answered."""

    def __init__(self, server: Started, seed: int, has_keys: bool, strangers: int = STRANGERS):
        self.found: list[str] = []
        self.told: Counter[str] = Counter()
        self.deeds: Counter[str] = Counter()
        self.pushed: dict[str, int] = {}  # what the honest publisher said, by its id
        self.checked = self.evicted = 0  # how many of these stand in the delivery status as they are to, and how many had made way by then
        self.late = 0  # receipts for what had made way
        self.followed: Counter[str] = Counter()  # receipts of each that were told to who follows them
        self.health: list[float] = []  # seconds
        self.memory: list[float] = []  # MiB
        self._server = server
        self._chance = random.Random(seed)
        self._has_keys = has_keys
        self._strangers = strangers
        self._is_over = False
        self._ids = ["1-1"]  # some that there are, or were
        self._open: list[Wire] = []  # of the honest
        self._ready = 0
        self._tokens: list[str] = []

    async def run(self, seconds: float) -> None:
        if self._has_keys:
            self._tokens = [token(f"s{n}", push=["s.**"], feed=["s.**"], key=SECRET, expires=86400 if n else -10) for n in range(50)]
        honest = [*(asyncio.create_task(self._device(n)) for n in range(DEVICES)), asyncio.create_task(self._follow_receipts())]
        while self._ready < len(honest):
            self._rethrow(honest)
            await asyncio.sleep(0.01)
        others = [asyncio.create_task(self._stranger()) for _ in range(self._strangers)]
        watching = threading.Thread(target=self._watch)
        watching.start()
        await self._push(time.monotonic() + seconds)
        self._is_over = True
        await asyncio.gather(*others)
        await asyncio.to_thread(watching.join)
        deadline = time.monotonic() + PATIENCE
        while self.followed.total() + self.late < DEVICES * len(self.pushed) and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        if self.followed.total() + self.late != DEVICES * len(self.pushed) or max(self.followed.values()) > DEVICES:
            self._wrong(f"who follows the receipts is told {self.followed.total()}, and not {DEVICES * len(self.pushed) - self.late}")
        for each in honest:
            each.cancel()
        for result in await asyncio.gather(*honest, return_exceptions=True):
            if not isinstance(result, asyncio.CancelledError):
                self._wrong(f"an honest device has ended: {result!r}")
        for wire in self._open:
            wire.close()

    def _wrong(self, sentence: str) -> None:
        self.found.append(sentence)

    def _rethrow(self, tasks: list[asyncio.Task[None]]) -> None:
        for each in tasks:
            if each.done():
                each.result()

    def text(self) -> str:
        health = sorted(self.health) or [0.0]
        return (f"{len(self.pushed)} honest pushes, {self.checked} of them complete, {self.evicted} no longer kept, {self.followed.total()} receipts followed, {self.late} too late; /healthz p50 {1000 * health[len(health) // 2]:.0f} ms, worst {1000 * health[-1]:.0f} ms; "
                f"MiB {' '.join(f'{each:.0f}' for each in self.memory[:: max(1, len(self.memory) // 10)])}; {self.deeds.total()} deeds of strangers, "
                f"{dict(self.told.most_common())}; wrong: {self.found[:10]}")

    # The honest

    def _who(self, name: str, **may: Any) -> dict[str, str]:
        return {"Authorization": f"Bearer {token(name, expires=86400, **may)}"} if self._has_keys else {"Device": name}

    async def _ask(self, source: str, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Any:
        wire = await Wire.open(self._server.port, source=source)
        try:
            await wire.send(said(method, target, body, headers))
            return await asyncio.wait_for(wire.answer(method), PATIENCE)
        finally:
            wire.close()

    async def _device(self, number: int) -> None:
        who = self._who(f"honest-{number}", feed=["honest"])
        feed = await Feed.open(self._server.port, source=f"127.1.0.{number + 1}")
        back = await Wire.open(self._server.port, source=f"127.1.0.{number + 1}")
        self._open += [feed, back]
        await feed.start("/feed/honest", who)
        expected = None
        while (message := await feed.next()) is not None:
            if message.event == "pere.hello" and expected is None:
                expected = 0
                self._ready += 1
                continue
            if message.event != "message" or orjson.loads(message.data) != {"n": expected}:
                self._wrong(f"an honest device reads {message} where {expected} was pushed")
            expected = (expected or 0) + 1
            await back.send(said("POST", "/feedback/honest", b"", who | {"Last-Event-ID": message.id}))
            answer = await asyncio.wait_for(back.answer("POST"), PATIENCE)
            if answer.status == 410:
                self.late += 1  # what the strangers push takes room too
            elif answer.status != 200 or answer.json != {"state": "processed", "duplicate": False}:
                self._wrong(f"an honest receipt is answered {answer}")
        self._wrong("an honest feed has ended")

    async def _follow_receipts(self) -> None:
        feed = await Feed.open(self._server.port, source="127.1.1.3")
        self._open.append(feed)
        await feed.start("/receipts/honest", self._who("publisher", push=["honest"]))
        while (message := await feed.next()) is not None:
            if message.event == "pere.hello" and not self.pushed:
                self._ready += 1
            elif message.event != "receipt":
                self._wrong(f"who follows the receipts reads {message}")
            elif (told := orjson.loads(message.data))["device"].startswith("honest-") and told["state"] == "processed":
                self.followed[told["event_id"]] += 1
            else:
                self._wrong(f"a receipt that nobody gave: {told}")

    async def _push(self, end: float) -> None:
        who = self._who("publisher", push=["honest"])
        looking: list[asyncio.Task[None]] = []
        n = 0
        while time.monotonic() < end:
            answer = await self._ask("127.1.1.1", "POST", "/push/honest", b'{"n":%d}' % n, who)
            if answer.status != 201:
                self._wrong(f"an honest push is answered {answer}")
                return
            self.pushed[answer.json["id"]] = n
            self._ids.append(answer.json["id"])
            looking.append(asyncio.create_task(self._look(answer.json["id"], who)))
            looking = [each for each in looking if not each.done() or each.result() is not None]
            n += 1
            await asyncio.sleep(EVERY)
        await asyncio.gather(*looking)

    async def _look(self, id: str, who: dict[str, str]) -> None:
        """All that was answered is in the delivery status."""
        deadline = time.monotonic() + PATIENCE
        while True:
            await asyncio.sleep(LATER)
            answer = await self._ask("127.1.1.2", "GET", f"/events/honest/{id}", b"", who)
            status = answer.json
            if answer.status == 410:
                self.evicted += 1
                return
            if answer.status == 200 and status["counts"]["processed"] == DEVICES == status["audience"] and status["complete"]:
                self.checked += 1
                return
            if time.monotonic() > deadline:
                self._wrong(f"of {id} is told {answer}")
                return

    def _watch(self) -> None:
        """In a thread, so that what is measured is not how busy the strangers are."""
        while not self._is_over:
            began = time.monotonic()
            asked = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=PATIENCE, source_address=("127.1.2.1", 0))
            asked.request("GET", "/healthz")
            status = asked.getresponse().status
            asked.close()
            self.health.append(time.monotonic() - began)
            if status != 200:
                self._wrong(f"/healthz is answered {status}")
            self.memory.append(memory(self._server.pid))
            time.sleep(1)

    # The strangers

    async def _stranger(self) -> None:
        deeds = [self._pushes, self._pushes, self._pushes_many, self._pushes_and_waits, self._listens, self._listens, self._listens, self._answers, self._answers, self._answers_many,
                 self._follows, self._asks, self._asks, self._bends, self._bends, self._bursts, self._administers, self._hooks]
        while not self._is_over:
            deed = self._chance.choice(deeds)
            self.deeds[deed.__name__] += 1
            wire = None
            try:
                wire = await Wire.open(self._server.port, source=f"127.2.{self._chance.randrange(4)}.{self._chance.randrange(1, 255)}")
                async with asyncio.timeout(self._chance.choice([0.05, 1, 5])):  # and then it goes, whatever is under way
                    await deed(wire)
            except (TimeoutError, EOFError, ConnectionError):
                self.told["cut"] += 1
            except OSError as error:
                self.told[error.strerror or "error"] += 1
                await asyncio.sleep(0.1)
            finally:
                if wire is not None:
                    self._chance.choice([wire.close, wire.reset])()

    def _channel(self) -> str:
        return self._chance.choice([f"s.{self._chance.randrange(10)}", f"s.{self._chance.randrange(10)}", f"s.{self._chance.getrandbits(16)}", quote(self._chance.choice(NAMES), safe=".:~-_")])

    def _id(self) -> str:
        return self._chance.choice([self._chance.choice(self._ids[-2000:])] * 4 + IDS)

    def _stranger_headers(self, **more: str) -> dict[str, str]:
        name = f"s{self._chance.randrange(1, 50)}" if self._chance.random() < 0.9 else f"d{self._chance.getrandbits(20)}"
        found = {"Device": name} | more
        if self._tokens:
            given = self._chance.choice([*self._tokens, self._chance.choice(self._tokens)[:-3] + "AAA", "x.y.z"])
            number = self._tokens.index(given) if given in self._tokens else 1
            found |= {"Device": f"s{number}"} if self._chance.random() < 0.9 else {}
            found |= self._chance.choice([{"Authorization": f"Bearer {given}"}] * 8 + [{"Cookie": f"pere_token={given}"}, {}])
        return found

    def _payload(self) -> bytes:
        size = self._chance.choice([0, 1, 20, 20, 200, 2000, 20_000, 65_530, 70_000])
        return self._chance.choice([orjson.dumps("x" * size), orjson.dumps({"event": "pere.bye", "id": "\r\n\r\n", "pad": "\u2028" * (size // 6)}), b"[" * min(size, 2000), self._chance.randbytes(size), b"\r\n" * (size // 2)])

    async def _say(self, wire: Wire, method: str, target: str, body: bytes = b"", **headers: str) -> Any:
        await wire.send(said(method, target, body, self._stranger_headers(**{name.replace("_", "-"): value for name, value in headers.items()})))
        answer = await wire.answer(method)
        self._hear(answer, f"{method} {target}")
        return answer

    def _hear(self, answer: Any, what: str) -> None:
        self.told[str(answer.status)] += 1
        if answer.status >= 500 and (answer.status not in (501, 503, 505)):
            self._wrong(f"{what} is answered {answer}")

    async def _pushes(self, wire: Wire) -> None:
        for _ in range(self._chance.randrange(1, 20)):
            query = self._chance.choice(["", "", "?receipt=none", "?ttl=1", "?ttl=0", "?need=50%25", "?need=all", "?type=pere.bye", "?type=a%0d%0ab", "?ttl=1e9", "?" + "&".join(
                f"to=s{self._chance.randrange(100)}" for _ in range(self._chance.choice([1, 3, 1000]))), "?to=" + "d" * 128])
            key = {"Idempotency-Key": f"{self._chance.getrandbits(self._chance.choice([4, 40]))}"} if self._chance.random() < 0.3 else {}
            answer = await self._say(wire, "POST", f"/push/{self._channel()}{query}", self._payload(), Content_Type=self._chance.choice(["application/json", "text/plain", "", "text/html"]), **key)
            if answer.status == 201:
                self._ids.append(answer.json["id"])

    async def _pushes_many(self, wire: Wire) -> None:
        items = [{"channel": self._channel(), "data": self._chance.choice([1, "x" * 100, None, {"a": [1]}]), "to": self._chance.choice([[], ["s1"], [f"s{n}" for n in range(30)]])} for _ in range(self._chance.choice([1, 10, 1000, 1001]))]
        await self._say(wire, "POST", "/push", orjson.dumps(items), Content_Type="application/json")

    async def _pushes_and_waits(self, wire: Wire) -> None:
        await self._say(wire, "POST", f"/push/{self._channel()}", b"1", Prefer=self._chance.choice(["wait=300", "wait=1", "wait=0", "wait=-1", "wait=1e9", "wait=2, wait=3"]))

    async def _listens(self, wire: Wire) -> None:
        target = self._chance.choice([f"/feed/{self._channel()}", f"/feed/{self._channel()}?from=all", "/feed?" + "&".join(f"channel={self._channel()}" for _ in range(self._chance.choice([1, 5, 100, 101]))),
                                      "/feed?channel=s.**", "/feed?channel=s.*&channel=x.**&format=envelope&ack_wait=1&window=3", f"/feed/{self._channel()}?window=1&ack_wait=0.1&format=envelope"])
        await self._stream(wire, target)

    async def _follows(self, wire: Wire) -> None:
        await self._stream(wire, self._chance.choice([f"/receipts/{self._channel()}", f"/receipts/{self._channel()}?from=all", f"/receipts/{self._channel()}?from={self._id()}"]))

    async def _stream(self, wire: Wire, target: str) -> None:
        last = {"Last-Event-ID": self._id()} if self._chance.random() < 0.5 else {}
        await wire.send(said("GET", target, b"", self._stranger_headers(**last)))
        answer = await wire.head()
        self._hear(answer, target)
        if self._chance.random() < 0.3:
            await asyncio.sleep(10)  # and reads nothing
        while await wire.more():
            pass

    async def _answers(self, wire: Wire) -> None:
        for _ in range(self._chance.randrange(1, 50)):
            form = self._chance.choice([b"", b"status=" + quote(self._payload()[:2000]).encode(), orjson.dumps({"state": self._chance.choice(WORDS), "status": {"a": self._chance.random()}, "delay": 1})])
            await self._say(wire, "POST", f"/feedback/{self._channel()}?state={self._chance.choice(WORDS)}", form, Last_Event_ID=self._id(),
                            Content_Type=self._chance.choice(["application/json", "application/x-www-form-urlencoded"]))

    async def _answers_many(self, wire: Wire) -> None:
        receipts = [{"event_id": self._id(), "state": self._chance.choice(WORDS), "status": f"{self._chance.random()}"} for _ in range(self._chance.choice([1, 100, 1000, 1001]))]
        await self._say(wire, "POST", "/feedback", orjson.dumps(self._chance.choice([{"receipts": receipts}, {"up_to": self._id(), "channel": self._channel(), "state": "delivered"}])), Content_Type="application/json")

    async def _asks(self, wire: Wire) -> None:
        channel, id = self._channel(), self._id()
        await self._say(wire, self._chance.choice(["GET", "GET", "GET", "HEAD", "OPTIONS", "PUT", "TRACE"]), self._chance.choice([
            f"/events/{channel}?limit=1000", f"/events/{channel}/{id}", f"/events/{channel}/{id}?wait=300", f"/events/{channel}/{id}/devices?state=outstanding&limit=1000", f"/events/{channel}?after={id}",
            "/", "/pere.js", "/openapi.json", "/asyncapi.json", "/console/../../etc/passwd", "/healthz", "/readyz", f"/{channel}", "http://127.0.0.1/admin/overview", "//admin/overview", "*"]),
            Accept="text/html", If_None_Match='"1"')

    async def _bends(self, wire: Wire) -> None:
        """What was right, until something happened to it on the way."""
        whole = bytearray(said(self._chance.choice(["GET", "POST"]), self._chance.choice(["/push/s.1", "/feedback/s.1", "/feed/s.1", "/events/s.1", "/push"]), self._payload()[:500], self._stranger_headers(Last_Event_ID=self._id())))
        for _ in range(self._chance.randrange(1, 4)):
            place = self._chance.randrange(len(whole))
            whole[place : place + self._chance.choice([0, 0, 1, 5])] = self._chance.choice([*BENT, self._chance.randbytes(2)])
        for start in range(0, len(whole), step := self._chance.choice([7, 100, 100_000])):
            await wire.send(bytes(whole[start : start + step]))
        self._hear(await wire.answer(), repr(bytes(whole[:100])))

    async def _bursts(self, wire: Wire) -> None:
        """Many requests, of whose answers not all are read."""
        one = said("GET", f"/events/{self._channel()}?limit=100", b"", self._stranger_headers())
        await wire.send(one * self._chance.choice([2, 64, 500]))
        for _ in range(self._chance.randrange(5)):
            self._hear(await wire.answer(), "one of many")

    async def _administers(self, wire: Wire) -> None:
        target = self._chance.choice(["/admin/connections", f"/admin/devices/{self._channel()}", "/admin/devices?after=a", "/admin/overview", "/admin/behind", "/metrics", f"/admin/events/{self._channel()}"])
        await self._say(wire, "GET", target)
        await self._say(wire, "DELETE", self._chance.choice([f"/admin/devices/d{self._chance.getrandbits(10)}", f"/admin/devices/s{self._chance.randrange(50)}", f"/events/{self._channel()}/{self._id()}"]))

    async def _hooks(self, wire: Wire) -> None:
        url = self._chance.choice(["https://127.0.0.1/", "https://[::ffff:127.0.0.1]/", "https://2130706433/", "http://localhost/", "https://nowhere.invalid/", "https://169.254.169.254/latest/", "file:///etc/passwd", "https://a@b/"])
        answer = await self._say(wire, "POST", "/webhooks", orjson.dumps({"url": url, "channels": ["s.**"]}), Content_Type="application/json")
        if answer.status == 201:
            await self._say(wire, self._chance.choice(["DELETE", "PATCH", "GET"]), f"/webhooks/{answer.json['id']}", b"{}")


def memory(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def serve(store: str, has_keys: bool, *flags: str) -> Started:
    keys = {"PERE_JWT_SECRET": SECRET} if has_keys else {}
    return Started("--store", store, "--limits-exempt", "", *SMALL, *flags, **keys)


@click.command
@click.option("--minutes", default=1.0, show_default=True)
@click.option("--seed", default=None, type=int)
@click.option("--store", default="memory:", show_default=True)
@click.option("--keys", "has_keys", is_flag=True, help="the server asks for tokens, and some strangers have them")
@click.option("--strangers", default=STRANGERS, show_default=True)
def main(minutes: float, seed: int | None, store: str, has_keys: bool, strangers: int) -> None:
    """Let strangers do what they like to a server, and see what the honest notice."""
    seed = random.randrange(1 << 32) if seed is None else seed
    with serve(store, has_keys) as server:
        attack = Attack(server, seed, has_keys, strangers)

        async def run() -> None:
            running = asyncio.create_task(attack.run(60 * minutes))
            while not running.done():
                await asyncio.wait([running], timeout=60)
                click.echo(attack.text())
            running.result()

        uvloop.run(run())
        click.echo(f"--seed {seed}; the server said: {server.err[-2000:]!r}")
    if attack.found:
        raise SystemExit("\n".join(attack.found[:50]))


if __name__ == "__main__":
    main()
