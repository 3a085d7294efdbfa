"""What the README shows of a terminal is typed there as it is printed, and answered as it is printed, but for ids, times and how long
something took. Every block of commands is run somewhere here, or stands in `NOT_RUN` with the reason."""

import json
import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from processes import ENVIRONMENT, Served, free_port
from programs import needed
from readme import README, SERVER, Block, blocks, commands, section, snippet
from redises import RedisServer
from terminals import Terminal

# Blocks that need what no test has, by how they begin.
NOT_RUN = {
    "make serve": "it fetches packages from the network; `.ci/run` begins with a verb that does the same",
    "pip install aiohttp orjson": "it fetches packages from the network; tests/test_packaging.py installs the wheel without",
    "pip install '.[redis]'": "the same; tests/test_packaging.py has a machine with this extra, and tests/test_nodes.py the servers",
    "ACL SETUSER pere": "it is said to Redis; tests/test_store_copy.py and tests/test_doctor.py say the same rights to a real one",
    "litestream replicate": "Litestream is in no package of Debian, and there is no bucket; it was run by hand",
    "python3 -m venv /opt/pere": "it would change this machine; tests/test_deploy_systemd.py checks the units and runs their sockets",
    "systemctl daemon-reload": "it needs a systemd that is in charge; that was done by hand",
    "docker compose run": "it needs Docker; tests/test_deploy_compose.py runs the same nodes, Redis and nginx without",
    "kubectl create secret": "it needs a cluster; tests/test_deploy.py checks each description by the schemas of Kubernetes",
}
# Servers of one's own: one test for each of these blocks.
OWN = ("PERE_TTL=60", ".venv/bin/pere serve --host 0.0.0.0\n", "export PERE_JWT_SECRET", "openssl", ".venv/bin/pere serve --no-tcp")
# What tells of one machine and of one moment, so that only its form can be compared.
MOMENTS = (".venv/bin/pere doctor --store", ".venv/bin/pere top --once", ".venv/bin/pere bench fanout")
# What is only typed.
TYPED = ('eval "$(.venv/bin/pere completion bash)"', ".venv/bin/pere webhooks receive", "promtool check rules", "pere store backup", "pere store restore", "pere store copy", "pere serve --handover")
# Programs of the shell, which tests/test_readme_programs.py runs.
PROGRAMS = ("device.sh",)

OTHER = "127.0.0.1:4568"
# A command begins with "$ ", and what it prints follows; or it is curl, indented, and what it prints is shown later.
COMMAND = re.compile(r"^    (curl .*)\n|^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ |```).*\n)*)", re.M)
LISTENS = re.compile(r"curl -N|.venv/bin/pere listen(?!.*--count)")
ID = re.compile(r"\b\d{13}-\d+\b")
VOLATILE = (
    (re.compile(r"\b\d{13}-(?=\d)"), "MS-"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"), "TIME"),
    (re.compile(r"\b[\d.]+ (ms|s)\b|(?<=\"p\d\d\": )[\d.]+"), "SECONDS"),
    (re.compile(r"[^\r\n]*━[^\r\n]*[\r\n]*"), ""),  # a bar, which is wiped off
    (re.compile(r"^:\n+", re.M), ""),  # a heartbeat, for whoever takes long to type
    (re.compile(r" +"), " "),  # columns are as wide as what is in them
    (re.compile(r"\s*\n"), "\n"),
)


def said(text: str) -> str:
    """What stays when it is said again."""
    text = text.replace("\r\n", "\n")
    for pattern, instead in VOLATILE:
        text = pattern.sub(instead, text)
    return text.strip()


class Shell(Terminal):
    command = ("/bin/sh", "-c")


class Story:
    """`ids` are those of this time, by those in the README."""

    def __init__(self, stack: ExitStack, folder: str):
        self._stack, self._folder = stack, folder
        self._served = stack.enter_context(Served("--store", f"sqlite:{folder}/pere.db"))
        self._other = stack.enter_context(Served())
        self._ids: dict[str, str] = {}
        self._listening: dict[str, tuple[Shell, str]] = {}

    def type(self, command: str, printed: str) -> None:
        if command in self._listening:
            self.leave(command, printed)
        elif LISTENS.match(command):
            self._listening[command] = self._typed(command), printed
        else:
            shell = self._typed(command)
            assert shell.end(60) == 0, shell.text
            self._compare(shell.text, printed)
        self._until_all_listen()

    def leave(self, command: str, printed: str = "") -> None:
        """See what this one printed, and end it by Ctrl-C."""
        shell, first = self._listening.pop(command)
        deadline = time.monotonic() + 20
        while said(shell.text) != said(printed or first) and time.monotonic() < deadline:
            shell.read()
        self._compare(shell.text, printed or first)
        shell.type(b"\x03")
        assert shell.end() != 0

    def end(self) -> None:
        for command in list(self._listening):
            self.leave(command)

    def _typed(self, command: str) -> Shell:
        here = ID.sub(lambda match: self._ids[match[0]], command)
        here = here.replace(SERVER, f"127.0.0.1:{self._served.port}").replace(OTHER, f"127.0.0.1:{self._other.port}")
        return self._stack.enter_context(Shell(f"cd '{self._folder}' && {here}", PERE_URL=self._served.url, COLUMNS="132"))

    def _compare(self, came: str, printed: str) -> None:
        assert said(came) == said(printed)
        for there, here in zip(ID.findall(printed), ID.findall(came), strict=True):
            assert self._ids.setdefault(there, here) == here, f"{there} is {self._ids[there]} above, and {here} here"

    def _until_all_listen(self) -> None:
        """Whoever reads on is slower than a feed opens and ends."""
        deadline = time.monotonic() + 20
        while True:
            with urlopen(f"{self._served.url}/admin/connections", timeout=20) as answer:
                if json.load(answer)["total number"] == len(self._listening):
                    return
            assert time.monotonic() < deadline, list(self._listening)
            time.sleep(0.02)


def the_story() -> str:
    """What is typed one after the other; behind it come verbs that tell of one moment."""
    return section("Try it") + section("The command line").partition("`pere doctor` looks for")[0]


def is_of_the_story(block: Block) -> bool:
    return block.code.startswith(("$ ", "curl ")) and block.code.partition("\n")[0] in the_story()


def begins(first: str) -> Block:
    """The block of commands that begins so."""
    [block] = [block for block in commands() if block.code.removeprefix("$ ").startswith(first)]
    return block


def test_every_block_of_commands_is_run_or_is_said_not_to_be():
    ways = {"story": is_of_the_story, "program": lambda block: block.name in PROGRAMS}
    for first in (*OWN, *MOMENTS, *TYPED, *NOT_RUN):
        ways[first] = lambda block, first=first: block.code.removeprefix("$ ").startswith(first)
    found = {block: [way for way, holds in ways.items() if holds(block)] for block in commands()}
    # One that is new, or is two ways at once; and a way that nothing goes any more.
    assert [f"README.md:{block.line}: {block.code}" for block, taken in found.items() if len(taken) != 1] == []
    assert set(ways) - {way for taken in found.values() for way in taken} == set()
    assert all(snippet(name).language == "sh" for name in PROGRAMS)


def test_what_shows_no_language_has_no_command_in_it():
    # Else it would be none of those that are looked at above.
    typed = re.compile(r"^(?:\$ |(?:sudo |\.venv/bin/|/opt/\S*/)?(?:pere|curl|make|pip|python3?|docker|kubectl|systemctl) )", re.M)
    assert [f"README.md:{block.line}" for block in blocks() if block.language not in ("console", "sh") and typed.search(block.code)] == []


def test_a_block_that_is_new_would_be_found():
    text = "Text:\n\n    make coffee\n    make tea\n\n- an item\n    that goes on\n\n```console\n$ ls\n    a\n```\n\n```json\n    {}\n```\n"
    assert [(block.code, block.line) for block in commands(text)] == [("make coffee\nmake tea\n", 3), ("$ ls\n    a\n", 9)]


def test_what_is_typed_is_answered_as_it_is_printed(tmp_path):
    needed("curl", "curl")
    needed("jq", "jq")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    told = the_story()
    typed = COMMAND.findall(told)
    assert len(typed) == told.count("\n$ ") + told.count("\n    curl") > 14
    with ExitStack() as stack:
        story = Story(stack, str(tmp_path))
        for indented, command, printed in typed:
            story.type(indented or command, printed)
        story.end()


@pytest.mark.parametrize("first", OWN)
def test_a_server_of_ones_own_is_started_and_asked_as_it_is_printed(first, tmp_path):
    needed("curl", "curl")
    needed("openssl", "openssl")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    port = str(free_port())
    block = begins(first)
    before = f"cd '{tmp_path}'; "
    with ExitStack() as stack:
        for _, command, printed in COMMAND.findall(block.code):
            if command.startswith("export "):
                before += command + "; "
                continue
            alone = command.removesuffix(" &")
            if alone != command:
                alone = f"exec {alone}"  # so that it is this that is ended
            variables = {"PERE_PORT": port} if "pere serve" in command else {"PERE_URL": f"http://127.0.0.1:{port}"}
            shell = stack.enter_context(Shell(before + alone.replace("4567", port), COLUMNS="240", **variables))
            if alone.startswith("exec"):
                shell.until("listening url")
            elif "listen" in command:
                shell.until("listening to")
            else:
                refused = "pere: " in printed
                assert shell.end() == (2 if refused else 0), shell.text
                assert not printed or said(shell.text) == said(printed)


# What tells of one moment


def printed_by(first: str, command: str) -> str:
    return next(printed for _, typed, printed in COMMAND.findall(begins(first).code) if typed.startswith(command))


def run(command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Typed in a shell that finds `pere` here and in `.venv`."""
    if not (folder / ".venv").exists():
        (folder / ".venv").symlink_to(sys.prefix)
    environment = ENVIRONMENT | {"PATH": f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}", "COLUMNS": "132", "HOME": str(folder)} | variables
    return subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_the_doctor_looks_at_what_it_is_said_to_look_at(tmp_path):
    (machine, told), (way, told_of_it) = [(typed, printed) for _, typed, printed in COMMAND.findall(begins(MOMENTS[0]).code)]
    finding = re.compile(r"^(?:ok|advice|wrong) +([\w -]+):", re.M)
    redis = RedisServer(tmp_path, maxmemory_policy="allkeys-lru").start()
    try:
        done = run(machine.replace("6379", str(redis.port)).replace("4568", str(free_port())), tmp_path)
    finally:
        redis.kill()
    assert set(finding.findall(done.stdout)) == set(finding.findall(told))
    for line in ("wrong  store: maxmemory-policy is allkeys-lru: what is needed may be thrown away", "ok     store: Redis appends to its file"):
        assert line in told and line in done.stdout
    with Served("--heartbeat", "0.5") as served:
        done = run(way.replace("http://127.0.0.1:8080", served.url), tmp_path)
    assert done.returncode == 0 and set(finding.findall(told_of_it)) <= set(finding.findall(done.stdout)) | {"compression"}, done.stdout
    assert done.stdout.splitlines()[0].replace(served.url, "http://127.0.0.1:8080") == told_of_it.splitlines()[0]


def test_top_and_bench_show_what_they_are_printed_to_show(tmp_path):
    words = re.compile(r"[a-z][a-z/-]+")
    with Served("--store", f"sqlite:{tmp_path}/p.db") as served:
        top, bench = (run(COMMAND.findall(begins(first).code)[0][1], tmp_path, PERE_URL=served.url) for first in MOMENTS[1:])
        assert (top.returncode, bench.returncode) == (0, 0), top.stderr + bench.stderr
    figures = top.stdout.partition("again/s")[0]
    assert set(words.findall(printed_by(MOMENTS[1], ".venv").partition("again/s")[0])) - {"ms", "none"} <= set(words.findall(figures))
    names = re.compile(r"^([^:\n]+?)  ", re.M)
    assert names.findall(bench.stdout) == names.findall(printed_by(MOMENTS[2], ".venv"))
    assert bench.stdout.splitlines()[0] == printed_by(MOMENTS[2], ".venv").splitlines()[0]


# What is only typed


def test_a_shell_completes_as_it_is_told_to(tmp_path):
    for folder in ("functions", ".config/fish/completions"):
        (tmp_path / folder).mkdir(parents=True)
    # In zsh, the first of an array is the one that bash calls 0.
    done = run(f"fpath=(none functions); {begins(TYPED[0]).code}\ncomplete -p pere", tmp_path)
    assert done.returncode == 0 and "pere" in done.stdout, done.stderr
    assert "compdef" in (tmp_path / "functions/_pere").read_text() and "complete" in (tmp_path / ".config/fish/completions/pere.fish").read_text()


def test_a_receiver_of_webhooks_is_started_as_it_is_printed(tmp_path):
    (tmp_path / ".venv").symlink_to(sys.prefix)
    port = free_port()
    with Shell(f"cd '{tmp_path}' && exec {begins(TYPED[1]).code.replace('9000', str(port))}") as receiver:
        receiver.until(str(port))


def test_the_rules_of_prometheus_are_checked_as_it_is_printed(tmp_path):
    needed("promtool", "prometheus")
    (tmp_path / "deploy").symlink_to(README.parent / "deploy")
    done = run(f"set -e\n{begins(TYPED[2]).code}", tmp_path)
    assert done.returncode == 0 and done.stdout.count("SUCCESS") == 3, done.stdout + done.stderr


def test_a_store_is_backed_up_brought_back_and_moved_as_it_is_printed(tmp_path):
    def events(served: Served) -> int:
        with urlopen(f"{served.url}/events/c", timeout=20) as answer:
            return len(json.load(answer)["events"])

    def push(served: Served) -> None:
        urlopen(Request(f"{served.url}/push/c", b"1"), timeout=20).close()

    path = f"sqlite:{tmp_path}/pere.db"
    with Served("--store", path) as served:
        push(served)
        assert run(begins("pere store backup").code, tmp_path).returncode == 0
        push(served)
    [copy] = tmp_path.glob("pere-2*.db")
    restore, serve = begins("pere store restore").code.splitlines()
    assert run(re.sub(r"pere-2\S+", copy.name, restore), tmp_path).returncode == 0 and serve == "pere serve"
    with Served("--store", path) as served:
        assert events(served) == 1
    redis = RedisServer(tmp_path).start()
    try:
        there, back = (line.replace("6379", str(redis.port)) for line in begins("pere store copy").code.splitlines())
        assert run(there, tmp_path).returncode == 0
        for file in tmp_path.glob("pere.db*"):
            file.unlink()
        assert run(back, tmp_path).returncode == 0
    finally:
        redis.kill()
    with Served("--store", path) as served:
        assert events(served) == 1


def test_a_server_is_handed_over_as_it_is_printed(tmp_path):
    [(_, first, _), (_, second, printed)] = COMMAND.findall(begins("pere serve --handover").code)
    variables = {"PERE_PORT": str(free_port()), "PATH": f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}", "COLUMNS": "240"}
    with ExitStack() as stack:
        one, next_one = (f"cd '{tmp_path}' && exec {command.replace('/run/pere', str(tmp_path))}" for command in (first, second))
        serving = stack.enter_context(Shell(one, **variables))
        serving.until("listening url", 60)
        feed = stack.enter_context(urlopen(f"http://127.0.0.1:{variables['PERE_PORT']}/feed/c", timeout=60))
        taking = stack.enter_context(Shell(next_one, **variables))
        for line in printed.splitlines():
            taking.until(re.match(r"\S+ info +([a-z ]+) ", line)[1], 60)
        words = [re.match(r"\S+ info +([a-z ]+) ", line)[1] for line in printed.splitlines()]
        assert words == re.findall(rf" info +({'|'.join(words)}) ", taking.text)
        assert serving.end(60) == 0 and feed.readline()
