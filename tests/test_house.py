"""The house itself: its plan is in the README, what may know of what is kept, and nothing is found that nobody was told of.

No six lines stand twice, but where they are meant to: the schema in old files (`storage/version_*.sql`) is as it was written then; tables of cases, settings, classes
of errors and of news are alike as rows are; so is a constructor that keeps what it is given, and a dict of what is told; receipts are entered in three ways that stand
beside each other (`ledger.py` says why); programs in `foreign/` are each as somebody writes one for that library alone; what runs another program (nginx, Redis) ends
it in its own way, and a fixture closes what it opened; and a test tells its story from the beginning, for whoever reads that one alone.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest

from pere.config import Config, flag

HOUSE = Path(__file__).parent.parent
MADE = {".git", ".venv", ".hypothesis", ".fuzz", ".pytest_cache", ".ruff_cache", ".mypy_cache", "__pycache__", "build", "dist"}
FILES = sorted(path.relative_to(HOUSE).as_posix() for path in (HOUSE / "pere").rglob("*.py"))

# What people import from. They name what stands below them for type checkers, and read it when it is asked for.
DOORS = {"pere/__init__.py", "pere/client/__init__.py"}

# Rules are handed all they need: they have no sockets, no loop, no clock of their own. So it is with the words that they say.
WORDS = [f"pere/{name}.py" for name in ("errors", "names", "trace", "sse", "receipt", "event")]
OUTSIDE = {"asyncio", "tornado", "uvloop", "httptools", "socket", "ssl", "select", "threading", "time", "random", "os"}


def readme() -> str:
    return (HOUSE / "README.md").read_text("utf-8")


def section(title: str) -> str:
    """What the README says under this heading, up to the next one of its rank."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", readme(), re.M | re.S)
    assert found, f"the README has no section {title!r}"
    return found[1]


def plan() -> list[str]:
    """The files of pere/ in the order in which they are to be read."""
    blocks = re.findall(r"^```.*?\n(.*?)^```", section("How it is built"), re.M | re.S)
    return re.findall(r"^\W*(pere/[\w/]+\.py)\b", "".join(blocks), re.M)


def pure() -> list[str]:
    rules = section("How it is built").partition("# RULES")[2].partition("# MACHINERY")[0]
    return [*WORDS, *(file for file in plan() if re.search(rf"^{file}\b", rules, re.M))]


@cache
def imports(file: str) -> frozenset[str]:
    """The dotted names that a file imports anywhere, `from a import b` as `a.b`."""
    found = set()
    for node in ast.walk(ast.parse((HOUSE / file).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file} imports by dots: a full name says which file is meant"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(found)


def known_to(file: str) -> Iterator[str]:
    """The files of pere/ that a file imports from. A package is its `__init__.py`."""
    for name in imports(file):
        parts = name.split(".")
        if parts[0] != "pere":
            continue
        # The longest part of the name that is a file: what follows is something in it.
        for end in range(len(parts), 0, -1):
            module = "/".join(parts[:end])
            if (found := next((each for each in (f"{module}.py", f"{module}/__init__.py") if each in FILES), None)) is not None:
                yield found
                break


def texts() -> Iterator[tuple[str, str]]:
    """Every text that belongs to the house, by its path; what tools make beside it does not."""
    for folder, folders, names in os.walk(HOUSE):
        folders[:] = [name for name in folders if name not in MADE and not name.endswith(".egg-info")]
        for path in (Path(folder, name) for name in names if name not in MADE):  # `.git` is a file in a worktree
            with suppress(UnicodeDecodeError):  # a picture
                yield path.relative_to(HOUSE).as_posix(), path.read_text("utf-8")


# The plan


def test_the_readme_lists_every_file_and_no_other():
    assert sorted(plan()) == FILES


def test_imports_only_point_up_in_the_order_in_which_the_files_are_read():
    order = {file: place for place, file in enumerate(plan())}
    down = [f"{file} imports {other}, which is read after it"
            for file in order if file not in DOORS for other in sorted(set(known_to(file))) if order.get(other, len(order)) >= order[file]]
    assert down == []


def test_every_package_is_above_what_is_in_it():
    order = plan()
    for file in order:
        package = f"{file.rpartition('/')[0]}/__init__.py"
        assert order.index(package) <= order.index(file)


def test_no_file_is_a_drawer():
    drawers = {"utils", "util", "core", "manager", "managers", "helpers", "helper", "common", "misc"}
    assert [path for path, _ in texts() if Path(path).stem.lower() in drawers or drawers & set(Path(path).parts)] == []


# Who may know of what


@pytest.mark.parametrize("file", pure())
def test_a_rule_has_no_loop_no_socket_and_no_clock(file):
    roots = {imported.partition(".")[0] for imported in imports(file)}
    assert roots & OUTSIDE == set()


def test_rules_import_only_rules():
    assert {other for file in pure() for other in known_to(file)} <= {*pure()}


def test_whoever_imports_all_the_rules_has_neither_asyncio_nor_tornado():
    rules = ", ".join(file.removesuffix(".py").replace("/", ".") for file in pure())
    code = f"import sys, {rules}; print(*({{'asyncio', 'tornado'}} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], cwd=HOUSE, capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout.strip() == ""


def test_only_a_store_delivers_to_the_hub():
    """One node and many are one path."""
    calls = re.compile(r"\bdeliver\(")
    callers = {file for file in FILES if calls.search((HOUSE / file).read_text("utf-8").replace("def deliver(", ""))}
    assert {file for file in callers if not file.startswith("pere/storage/")} == set()
    assert "pere/storage/memory.py" in callers


# Settings

LINK = re.compile(r"\[([^\]]+)\]\([^)]+\)")


def documented() -> list[str]:
    """The flags in the first column of the README's table."""
    return re.findall(r"^\| *`(--[\w-]+)[^`]*` *\|", section("Settings"), re.M)


def test_every_setting_is_documented():
    assert [flag(setting.name) for setting in fields(Config) if flag(setting.name) not in documented()] == []


def test_every_setting_is_told_with_its_default_and_as_its_help_has_it():
    told = {row[0]: row[1:] for row in re.findall(r"^\| `(--[\w-]+)` \| `\w+` \| (.+?) \| (.+) \|$", LINK.sub(r"\1", section("Settings")), re.M)}

    def as_told(default: object) -> str:
        if isinstance(default, str):
            return f"`{default}`" if default else "none"
        return str(default).lower() if isinstance(default, bool) else f"{default:.15g}"

    assert told == {flag(each.name): (as_told(each.default), each.metadata["help"]) for each in fields(Config)}


def test_no_setting_is_documented_that_is_none_or_twice():
    assert sorted(documented()) == sorted({flag(setting.name) for setting in fields(Config)} & set(documented()))


# Manners

# Where somebody's home or checkout is on the machine on which something was written.
MACHINES = re.compile(r"(?<![\w.:/-])/(?:home|Users|root|work|mnt)/\w")


def test_no_path_of_a_single_machine_is_in_any_text():
    assert [f"{path}: {found[0]}" for path, text in texts() for found in MACHINES.finditer(text)] == []


def test_a_path_of_a_single_machine_would_be_found():
    for line in ("cd /" + "home/somebody/pere", 'open("/' + 'Users/s")', "PYTHONPATH=/" + "work/pere"):
        assert MACHINES.search(line)
    for line in ("POST /feedback/work", "http://work/home/index", "a/home/b", "/var/lib/pere"):
        assert not MACHINES.search(line)
