"""The programs in the README do what it says, as they stand there: each is a device that listens, answers and comes back, or a publisher."""

import asyncio
import json
import shutil
import subprocess
import sys
import threading
from contextlib import ExitStack
from importlib import import_module

import pytest
from processes import ENVIRONMENT, SECONDS, Process, Served, free_port
from programs import needed
from readme import blocks, snippet
from werkzeug.serving import make_server

from pere import SyncClient

# With what each is run, and the device that it is. Where there is no MicroPython, Python has the same sockets; which one it was is in the
# name of the test.
MICRO = shutil.which("micropython")
DEVICES = {
    "till.py": (sys.executable, "till"),
    "kitchen.py": (sys.executable, "kitchen"),
    "device.sh": ("sh", "till-sh"),
    "device_requests.py": (sys.executable, "till-requests"),
    "device.mjs": ("node", "till-node"),
    "device_micro.py": (MICRO or sys.executable, "till-micro"),
}
PUSHED = {"dish": "ribollita", "table": "Größe 7"}


class Program(Process):
    """One of the README's, from a file of its own, against the server on this port."""

    def __init__(self, name, folder, port):
        self.command = [DEVICES[name][0]]
        (folder / name).write_text(snippet(name).against(port), "utf-8")
        super().__init__(str(folder / name), PYTHONUNBUFFERED="1")


@pytest.mark.parametrize("micro", ["micropython" if MICRO else "python for micropython"])
def test_every_device_answers_for_what_it_is_sent_and_comes_back_after_its_server_was_killed(tmp_path, micro):
    needed("node", "nodejs")
    needed("curl", "curl")
    flags = ("--store", f"sqlite:{tmp_path}/p.db")
    with ExitStack() as stack:
        served = stack.enter_context(Served(*flags, port=free_port()))
        programs = {name: stack.enter_context(Program(name, tmp_path, served.port)) for name in DEVICES}
        shop = stack.enter_context(SyncClient(served.url))
        names = [device for _, device in DEVICES.values()]

        def pushed(dish):
            """An event to all of them, and what each said of it."""
            id = shop.push("orders", PUSHED | {"dish": dish}, to=names, patience=60)["id"]
            status = shop.wait("orders", id, until="complete", seconds=60)
            assert status["complete"], (list(shop.outstanding("orders", id)), {name: program.out + program.err for name, program in programs.items()})
            return {line["device"]: (line["state"], line["status"], line["attempt"]) for line in shop.devices("orders", id)}

        printed = {device: ("processed", "printed", 1) for device in names}
        assert pushed("ribollita") == printed | {"till": ("failed", "no bread", 1), "kitchen": ("processed", {"minutes": 12}, 1)}
        served.kill()
        served = stack.enter_context(Served(*flags, port=served.port))
        assert pushed("minestrone") == printed | {"till": ("processed", None, 1), "kitchen": ("processed", {"minutes": 12}, 2)}
        for name, program in programs.items():
            # Each was worked on once, and shown where it is shown.
            assert (program.out.count("minestrone"), program.out.count("ribollita")) == ((0, 0) if name == "kitchen.py" else (1, 1)), (name, program.out)

        # A device that is deleted stops, where it is told so.
        for device in names:
            subprocess.run(["curl", "-fsS", "-X", "DELETE", f"{served.url}/admin/devices/{device}"], env=ENVIRONMENT, check=True, timeout=20)
        ended = {name: program.end(seconds=60) for name, program in programs.items() if name != "device.sh"}
        assert set(ended.values()) == {0}, ended


def test_the_publisher_is_told_who_has_it(tmp_path):
    with Served() as served, SyncClient(served.url, device="till") as till:
        feed = till.listen("orders")
        listening = threading.Thread(target=lambda: till.feedback("orders", next(feed).id, "failed"))
        listening.start()
        till.push("orders", 0, to=["till"])
        listening.join(20)
        path = tmp_path / "shop.py"
        path.write_text(snippet("shop.py").against(served.port).replace("seconds=20", "seconds=0.2"))
        done = subprocess.run([sys.executable, str(path)], env=ENVIRONMENT, capture_output=True, text=True, timeout=25)
        assert (done.stdout, done.stderr) == ("0 of 1\ntill has not answered\n", "")
        feed.close()


async def test_the_receiver_of_webhooks_takes_what_is_genuine(hooked, add, in_state, push, capsys, tmp_path, monkeypatch):
    await hooked()
    (tmp_path / "hooks_of_the_readme.py").write_text(snippet("hooks.py").code)
    monkeypatch.syspath_prepend(tmp_path)
    hooks = import_module("hooks_of_the_readme")
    there = make_server("127.0.0.1", 0, hooks.app, threaded=True)
    thread = threading.Thread(target=there.serve_forever)
    thread.start()
    try:
        endpoint = await add(f"http://127.0.0.1:{there.server_port}/hook", types=["pere.event.satisfied"])
        # The secret is told only now; until it knows it, it lets nothing in, and is asked again.
        hooks.SECRET = endpoint["secret"]
        await in_state(endpoint["id"], "active")
        id = await push("c", 1)
        out = ""
        while f"'id': '{id}'" not in out:
            out += capsys.readouterr().out
            await asyncio.sleep(0.01)
        assert "pere.event.satisfied" in out
        # Not by the loop: uvloop forks, and Python goes on in what was forked, with the locks that other threads had just then.
        done = await asyncio.to_thread(subprocess.run, ["curl", "-s", "-w", "%{http_code}", "-d", "{}", f"http://127.0.0.1:{there.server_port}/hook"],
                                       capture_output=True, timeout=SECONDS, check=True)
        assert done.stdout.endswith(b"400")
    finally:
        there.shutdown()
        thread.join(SECONDS)
        assert not thread.is_alive()
        there.server_close()


def test_every_program_is_run():
    assert {block.name for block in blocks() if block.name} - {"shop.py", "hooks.py"} == set(DEVICES)


def test_a_block_knows_what_it_is():
    text = "# T\n\n```python\n# a.py\nx = 1\n```\n```console\n$ b\n```\n```js\n// c.mjs\n```\n"
    assert [(block.language, block.name, block.line) for block in blocks(text)] == [("python", "a.py", 3), ("console", "", 7), ("js", "c.mjs", 10)]
    assert json.dumps(blocks(text)[0].code) == '"# a.py\\nx = 1\\n"'
    with pytest.raises(LookupError, match="0 programs"):
        snippet("no.py")
