"""Feeds as others read them: libraries that know nothing of PERE read one through two ends of its server, and lose and double nothing."""

import json
import sys
from contextlib import ExitStack

from nodes import FOREIGN, packages
from programs import needed
from processes import Process, Served, free_port

from pere import SyncClient

READERS = {
    "eventsource": "eventsource.mjs",
    "eventsource-parser": "eventsource-parser.mjs",
    "httpx-sse": "read_httpx_sse.py",
    "sseclient-py": "read_sseclient.py",
}
PAYLOADS = ["plain", "two\nlines", "\nempty lines\n\n", " a space before", "data: in data", ": a comment", "Größe, 梨, \N{PEAR}\N{LINE SEPARATOR}\N{NEXT LINE}", "x" * 60_000, {"n": [1, None, "\r\n"]}, ""]


class Reader(Process):
    def __init__(self, script, url):
        program = [needed("node", "nodejs"), str(packages() / script)] if script.endswith(".mjs") else [sys.executable, str(FOREIGN / script)]
        self.command = program
        super().__init__(url)

    @property
    def lines(self):
        return [json.loads(line) for line in self.out.split("\n")[:-1]]

    @property
    def events(self):
        return [line for line in self.lines if line != "open"]


def test_what_others_read_feeds_with_loses_and_doubles_nothing_while_the_server_is_killed_twice(tmp_path):
    flags = ("--store", f"sqlite:{tmp_path}/p.db", "--retry", "0.1")
    pushed = []
    with ExitStack() as stack:
        served = stack.enter_context(Served(*flags, port=free_port()))
        readers = {name: stack.enter_context(Reader(script, f"{served.url}/feed/c")) for name, script in READERS.items()}
        shop = stack.enter_context(SyncClient(served.url))

        def push(data, type=None):
            id = shop.push("c", data, type=type, patience=60)["id"]
            pushed.append([id, type or "message", data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))])

        def all_have_read():
            for reader in readers.values():
                reader.until(f'"{pushed[-1][0]}"')

        for reader in readers.values():
            reader.until("open")
        for life in range(3):
            for data in PAYLOADS:
                push(data, "order" if life == 1 else None)
            if life < 2:
                # Once everybody has it, and once in the middle of it.
                if life == 0:
                    all_have_read()
                served.kill()
                served = stack.enter_context(Served(*flags, port=served.port))
        push("end")
        all_have_read()
        assert {name: reader.events for name, reader in readers.items()} == {name: pushed for name in readers}
        # Who waits before it comes back may have missed the whole of a short life.
        assert all(reader.lines.count("open") >= 2 for reader in readers.values())
        assert [reader.end() for reader in readers.values()] == [0] * len(readers)
