"""What the README shows of a terminal: its story and its command line are typed there as they are printed, one after the other, and
answered as they are printed, but for ids, times and how long something took."""

import json
import re
import sys
import time
from contextlib import ExitStack
from urllib.request import urlopen

import pytest
from nodes import needed
from processes import Served
from readme import README, SERVER, blocks
from redises import free_port
from terminals import Terminal

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


def test_what_is_typed_is_answered_as_it_is_printed(tmp_path):
    needed("curl", "curl")
    needed("jq", "jq")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    text = README.read_text("utf-8")
    # Behind these come verbs that tell of one machine, and of one moment.
    told = text[text.index("## Try it") : text.index("`pere doctor` looks for")]
    commands = COMMAND.findall(told)
    assert len(commands) == told.count("\n$ ") + told.count("\n    curl") > 14
    with ExitStack() as stack:
        story = Story(stack, str(tmp_path))
        for indented, command, printed in commands:
            story.type(indented or command, printed)
        story.end()


@pytest.mark.parametrize("first", ["PERE_TTL=60", ".venv/bin/pere serve --host 0.0.0.0\n", "export PERE_JWT_SECRET", "openssl", ".venv/bin/pere serve --no-tcp"])
def test_a_server_of_ones_own_is_started_and_asked_as_it_is_printed(first, tmp_path):
    needed("curl", "curl")
    needed("openssl", "openssl")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    port = str(free_port())
    [block] = [block for block in blocks() if block.language == "console" and block.code.startswith(f"$ {first}")]
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
