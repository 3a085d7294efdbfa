"""Servers that one would pick instead, under the same load, each tuned as its own manual says, on one processor.

    pip install -r bench/peers/requirements.txt; (cd bench/peers/better_sse && npm install); apt install libnginx-mod-nchan
    go install github.com/centrifugal/centrifugo/v6@v6.9.1
    python -m bench.peers --rounds 3

Mercure and Centrifugo are taken where their binaries are on the PATH, and Go keeps to the one processor that it is given. Those that are not installed are left out, and said so. Where a peer has no receipts, the mission is
run with those that its application would have: a handler that remembers who has answered which event; in Nchan, Mercure and Centrifugo, which run no code, a channel of
its own to which devices publish their answers.
"""

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

from bench import rounds
from bench.peers import centrifugo, mercure
from bench.rounds import PERE, SEND, Measure, Server

HERE = Path(__file__).parent
NCHAN = (Path("/usr/lib/nginx/modules/ngx_nchan_module.so"), Path("/usr/lib64/nginx/modules/ngx_nchan_module.so"))
OPEN = rounds.pere("PERE, memory, no tokens", "memory:", tokens=False)


def installed(package: str) -> str:
    """The version of a Python package, or nothing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def said(*command: str) -> str:
    """What a program says of its version, or nothing where there is no such program."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip().splitlines()[0] if done.returncode == 0 else ""


def python(name: str, module: str, package: str) -> Server | str:
    version = installed(package)
    return Server(name, (sys.executable, "-m", f"bench.peers.{module}", "{port}"), version=f"{package} {version}") if version else f"pip install {package}"


def better_sse() -> Server | str:
    found = HERE / "better_sse" / "node_modules" / "better-sse" / "package.json"
    node = said("node", "--version")
    if not node or not found.exists():
        return "npm install in bench/peers/better_sse"
    import orjson

    return Server("better-sse", ("node", "{here}/peers/better_sse/server.mjs", "{port}"), version=f"better-sse {orjson.loads(found.read_bytes())['version']}, Node {node}")


def nchan() -> Server | str:
    module = next((path for path in NCHAN if path.exists()), None)
    if module is None or not said("nginx", "-v"):
        return "apt install libnginx-mod-nchan"
    return Server("Nchan", (sys.executable, "-m", "bench.peers.nchan", "{port}", "{tmp}", str(module)), ("--feedback-body", "{device} {id}"), child=True,
                  version=f"{said('nginx', '-v')}, {said('dpkg-query', '-W', 'libnginx-mod-nchan')}".replace("\t", " "))


def binary(name: str, load: tuple[str, ...], get: str, *more: str) -> Server | str:
    """One that is a single program, by its file here; its version is what it says of it. `get` is how one gets it."""
    program = name.lower()
    version = said(program, "version")
    command = (sys.executable, "-m", f"bench.peers.{program}", "{port}", "{tmp}", *(each.format(version=version) for each in more))
    return Server(name, command, load, version=f"{program} {version.removeprefix(name).strip()}") if version else f"{get}, and put {program} on the PATH"


def there() -> tuple[list[Server], list[str]]:
    """Those that are installed, and how the others would be."""
    found, missing = [], []
    for name, server in {
        "Tornado": Server("Tornado, the plain way", (sys.executable, "-m", "bench.experiments.request_handler", "{port}"), version=f"tornado {installed('tornado')}"),
        "sse-starlette": python("sse-starlette on uvicorn", "starlette_app", "sse-starlette"), "aiohttp-sse": python("aiohttp-sse", "aiohttp_app", "aiohttp-sse"),
        "better-sse": better_sse(), "Nchan": nchan(), "Mercure": binary("Mercure", mercure.LOAD, "see mercure.rocks/docs/hub/install", "{version}"),
        "Centrifugo": binary("Centrifugo", centrifugo.LOAD, "see https://centrifugal.dev/docs/getting-started/installation"),
    }.items():
        if isinstance(server, str):
            missing.append(f"{name} is not here ({server})")
        else:
            found.append(server)
    return found, missing


def measures() -> tuple[Measure, ...]:
    found, missing = there()
    servers = (PERE, OPEN, *found, SEND)
    shows = ("server_us", "latency/delivery/p99", "open_us", "feed_kib", "load_us")
    return (Measure("peers-fanout", "fanout", servers, "--events 30", "--events 10 --feeds 2000", shows, SEND.name, tuple(missing)),
            Measure("peers-burst", "burst", servers, "--events 40 --every 0.4", "--events 50 --feeds 2000", shows, SEND.name, tuple(missing)),
            Measure("peers-mission", "mission", servers, "--events 5", "--events 3 --feeds 1000", ("server_us", "capacity", "latency/receipt/p99", "load_us"), SEND.name, tuple(missing)))
