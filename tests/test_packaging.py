"""What is handed out: the source archive and the wheel of a clean checkout, and what stands on a machine that has only the wheel."""

import email
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from functools import cache
from importlib.metadata import Distribution, distribution
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from packaging.requirements import Requirement
from processes import ENVIRONMENT, Process

HOUSE = Path(__file__).parent.parent
VERSION = re.search(r'__version__ = "(.+)"', (HOUSE / "pere/__init__.py").read_text("utf-8"))[1]

BUILD = """
import sys
from setuptools import build_meta
print(build_meta.build_sdist(sys.argv[1]))
"""


def run(*command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT | variables, capture_output=True, text=True, timeout=900, check=False)


def done(*command: str, folder: Path, **variables: str) -> str:
    ran = run(*command, folder=folder, **variables)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def ours():
    """Every file of this checkout as it stands, and nothing that somebody or some tool has left in it."""
    listed = done("git", "ls-files", "-z", folder=HOUSE).split("\0")
    return sorted(name for name in listed if (HOUSE / name).is_file())


@pytest.fixture(scope="module")
def product(ours):
    """What is installed: all of pere/, but for pictures that only the README shows."""
    return [name for name in ours if name.startswith("pere/") and not name.startswith("pere/console/pictures/")]


@pytest.fixture(scope="module")
def built(ours, tmp_path_factory):
    """(source archive, wheel): the archive is built from a clean checkout, and the wheel from that."""
    folder = tmp_path_factory.mktemp("built")
    for name in ours:
        (folder / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(HOUSE / name, folder / "checkout" / name)
    archive = folder / "out" / done(sys.executable, "-c", BUILD, str(folder / "out"), folder=folder / "checkout").split()[-1]
    done(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--wheel-dir", str(folder / "out"), str(archive), folder=folder)
    [wheel] = (folder / "out").glob("*.whl")
    return archive, wheel


def needs(name: str, extra: str) -> dict[str, Distribution]:
    """What is installed here of the packages that this one asks for, and they in turn."""
    found: dict[str, Distribution] = {}
    wanted = [Requirement(f"{name}[{extra}]" if extra else name)]
    while wanted:
        asked = wanted.pop()
        for line in distribution(asked.name).requires or ():
            inner = Requirement(line)
            if not inner.marker or any(inner.marker.evaluate({"extra": each}) for each in asked.extras or ("",)):
                if inner.name not in found or inner.extras:
                    wanted.append(inner)
                found[inner.name] = distribution(inner.name)
    return found


@pytest.fixture(scope="module")
def machine(built, tmp_path_factory):
    """`machine("redis")`: the folder of a virtual environment that has the wheel, what it asks for with this extra, and nothing else."""

    @cache
    def machine(extra: str = "") -> Path:
        folder = tmp_path_factory.mktemp("machine")
        venv.create(folder, with_pip=False)
        site = next(folder.glob("lib/*/site-packages"))
        for package in needs("pere", extra).values():
            for name in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
                if not (site / name).exists():
                    (site / name).symlink_to(package.locate_file(name))
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(folder / "bin/python"))
        done(*pip, "install", "--no-deps", "--no-index", "--no-compile", str(built[1]), folder=folder)
        assert done(*pip, "check", folder=folder) == "No broken requirements found.\n"
        return folder

    return machine


def about(wheel):
    return email.message_from_string(wheel.read(f"pere-{VERSION}.dist-info/METADATA").decode())


# What is in them


def test_the_wheel_has_all_of_pere_and_nothing_else(built, product):
    with zipfile.ZipFile(built[1]) as wheel:
        names = [name for name in wheel.namelist() if not name.endswith("/")]
    own = f"pere-{VERSION}.dist-info/"
    assert sorted(name for name in names if not name.startswith(own)) == product
    assert {"pere/py.typed", "pere/browser/pere.js", "pere/browser/pere.d.ts", "pere/console/index.html"} <= set(names)
    assert any(name.endswith(".woff2") for name in names)
    assert {name.removeprefix(own).removeprefix("licenses/") for name in names if name.startswith(own)} == {"LICENSE", "METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt"}


def test_the_source_archive_has_all_that_is_here_and_what_it_says_of_itself(built, ours):
    with tarfile.open(built[0]) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert [name for name in ours if name not in names and not name.startswith(".")] == []
    assert {name for name in names if name not in ours and not name.startswith("pere.egg-info/")} == {"PKG-INFO"}


def test_it_says_of_itself_what_is_so(built):
    with zipfile.ZipFile(built[1]) as wheel:
        told = about(wheel)
        assert b"pere = pere.cli:main" in wheel.read(f"pere-{VERSION}.dist-info/entry_points.txt")
        licence = next(wheel.read(name) for name in wheel.namelist() if name.endswith("/LICENSE"))
    assert (told["Name"], told["Version"], told["Requires-Python"], told["License-Expression"] or told["License"]) == ("pere", VERSION, ">=3.11", "MIT")
    assert licence == (HOUSE / "LICENSE").read_bytes()
    assert told["Description-Content-Type"] == "text/markdown" and told.get_payload().strip() == (HOUSE / "README.md").read_text("utf-8").strip()
    assert {"redis", "otel", "test", "bench"} <= set(told.get_all("Provides-Extra"))
    versions = {line.rpartition(" ")[2] for line in told.get_all("Classifier") if "Python :: 3." in line}
    assert {"3.11", "3.12", "3.13"} <= versions


def test_an_index_would_take_both(built):
    ran = run(sys.executable, "-m", "twine", "check", "--strict", *map(str, built), folder=built[0].parent, NO_COLOR="1", COLUMNS="200")
    assert ran.returncode == 0 and ran.stdout.count("PASSED") == 2, ran.stdout + ran.stderr


# What it does where it is installed


def test_the_command_is_there_by_both_names_and_knows_its_version(machine):
    told = f"pere, version {VERSION}\n"
    assert done(str(machine() / "bin/pere"), "--version", folder=machine()) == done(str(machine() / "bin/python"), "-m", "pere", "--version", folder=machine()) == told


def test_the_installed_server_has_its_console_its_module_and_its_work(machine, product):
    class Installed(Process):
        command = [str(machine() / "bin/pere")]

    def ask(path: str, body: bytes | None = None, **headers: str) -> tuple[str, bytes]:
        with urlopen(Request(url + path, body, headers), timeout=20) as answer:
            return answer.headers["Content-Type"], answer.read()

    with Installed("serve", "--port", "0", "--store", f"sqlite:{machine()}/p.db") as served:
        url = served.until(r"http://127\.0\.0\.1:\d+")[0]
        kind, page = ask("/", Accept="text/html")
        assert kind.startswith("text/html") and b"<title>" in page
        there = {name: ask("/" + name.removeprefix("pere/")) for name in product if name.startswith("pere/console/") and not name.endswith(("index.html", "OFL.txt"))}
        there["pere/browser/pere.js"] = ask("/pere.js")
        assert b"Pere" in there["pere/browser/pere.js"][1]  # without its comments
        assert [name for name, (_, content) in there.items() if name != "pere/browser/pere.js" and content != (HOUSE / name).read_bytes()] == []
        assert {kind.partition(";")[0] for kind, _ in there.values()} == {"text/javascript", "text/css", "image/svg+xml", "font/woff2"}
        with urlopen(Request(f"{url}/feed/orders", headers={"Device": "till"}), timeout=20) as feed:
            assert b'"audience":1' in ask("/push/orders", b'{"dish":"ribollita"}')[1]
            while (line := feed.readline()) != b'data: {"dish":"ribollita"}\n':
                assert line, "the feed ended"


NEEDY = [("redis", "serve", "--store", "redis://127.0.0.1:1/0"), ("redis", "store", "stats", "redis://127.0.0.1:1/0"), ("redis", "store", "copy", "redis://127.0.0.1:1/0", "p.db"),
         ("otel", "serve", "--store", "memory:", "--insecure", "--host", "192.0.2.1", "--otlp", "http://127.0.0.1:1/v1/traces"), ("bench", "bench", "fanout", "--plot", "out.png", "--url", "http://127.0.0.1:1")]


@pytest.mark.parametrize("extra, arguments", [(extra, arguments) for extra, *arguments in NEEDY])
def test_what_needs_an_extra_says_which_and_with_it_goes_further(machine, tmp_path, extra, arguments):
    # Whoever serves on this machine is left alone.
    nobody = {"PERE_URL": "http://127.0.0.1:1"}
    refused = run(str(machine() / "bin/pere"), *arguments, folder=tmp_path, **nobody)
    assert refused.returncode == 2 and f"{machine() / 'bin/python'}" in refused.stderr and f" -m pip install 'pere[{extra}]'" in refused.stderr and "Traceback" not in refused.stderr, refused.stderr
    further = run(str(machine(extra) / "bin/pere"), *arguments, folder=tmp_path, **nobody)
    assert further.returncode and "pip install" not in further.stderr and "Traceback" not in further.stderr, further.stderr


def test_without_extras_all_can_be_imported_that_a_program_may_want(machine):
    code = "from pere import Client, Refusal, Retry, SyncClient, verify_notice; import pere.server, pere.cli, pere.load.scenarios"
    assert done(str(machine() / "bin/python"), "-c", code, folder=machine()) == ""
