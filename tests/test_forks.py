"""What is forked instead of started is what it would be: otherwise all that is tested by it would be tested of something else."""

import os
import signal
import stat
from pathlib import Path

import pytest
from forks import Fork, can
from processes import Served, Started, pere

pytestmark = pytest.mark.skipif(not can({}), reason="only on Linux are commands forked")


def opened(pid: int) -> list[tuple[int, int]]:
    """The descriptors of a process, and what kind of thing each is."""
    folder = f"/proc/{pid}/fd"
    return sorted((int(name), stat.S_IFMT(os.stat(f"{folder}/{name}").st_mode)) for name in os.listdir(folder))


def test_a_server_that_is_forked_has_nothing_that_one_has_not_that_is_started():
    with Served() as forked, Started() as started:
        assert (type(forked._popen), isinstance(started._popen, Fork)) == (Fork, False)
        assert opened(forked.pid) == opened(started.pid)
        for of in ("cwd", "exe"):
            assert os.readlink(f"/proc/{forked.pid}/{of}") == os.readlink(f"/proc/{started.pid}/{of}")
        said = [dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()) for pid in (forked.pid, started.pid)]
        for name in ("Groups", "Umask", "NoNewPrivs"):
            assert said[0][name] == said[1][name]
        for name in ("SigBlk", "SigIgn", "SigCgt"):  # but for 32 and above, which are the C library's own
            here, there = (int(each[name], 16) % (1 << 31) for each in said)
            assert here == there, name
        assert Path(f"/proc/{forked.pid}/limits").read_text() == Path(f"/proc/{started.pid}/limits").read_text()


@pytest.mark.parametrize("arguments", [["--version"], ["shout"], ["config", "--json"], ["serve", "--port", "x"], ["store", "stats", "nothing.db"]])
def test_a_command_says_the_same_and_ends_alike(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    forked = pere(*arguments, PERE_TTL="60")
    # A variable that is not PERE's: it may have been read when all was loaded, so this one is started from nothing.
    started = pere(*arguments, PERE_TTL="60", LC_MESSAGES="C")
    assert (forked.returncode, forked.stdout, forked.stderr) == (started.returncode, started.stdout, started.stderr)


@pytest.mark.parametrize("how, code", [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)])
def test_it_ends_by_the_signal_that_it_is_sent_and_that_is_told(how, code):
    with Served() as served:
        assert served._popen.poll() is None
        assert served.end(how) == code
        with pytest.raises(ProcessLookupError):
            os.kill(served.pid, 0)
