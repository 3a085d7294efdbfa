"""The README as a document: whoever follows a link arrives, and finds every part of it at the beginning."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from readme import FENCED, README, section

HOUSE = README.parent
PAGES = sorted(path.relative_to(HOUSE).as_posix() for path in (README, *HOUSE.glob("bench/*.md"), *HOUSE.glob("deploy/**/*.md")))
LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    return FENCED.sub("", page.read_text("utf-8"))


def anchors(page: Path) -> list[str]:
    """What forges call the headings of a page: small letters, digits, and hyphens for spaces."""
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", prose(page), re.M)]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_to_something_here_arrives(page):
    astray = []
    for link in LINK.findall(prose(HOUSE / page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        there = (HOUSE / page).parent / path if path else HOUSE / page
        if not there.exists() or anchor and anchor not in anchors(there):
            astray.append(link)
    assert astray == []


@pytest.mark.parametrize("page", PAGES)
def test_no_two_headings_have_one_anchor(page):
    found = anchors(HOUSE / page)
    assert sorted(found) == sorted(set(found))


def test_the_contents_name_every_section_once_and_in_order():
    sections = [heading for heading in re.findall(r"^## (.+)$", prose(README), re.M) if heading not in ("What it is", "Contents")]
    assert [name for name in re.findall(r"\[([^\]]+)\]\(#", section("Contents")) if name in sections] == sections


def test_every_cell_of_the_comparison_that_tells_of_somebody_else_has_its_source():
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section("Compared with others").splitlines() if line.startswith("|")]
    assert len(rows) >= 8 and {len(row) for row in rows} == {len(head)} == {8}
    # What everybody knows of a protocol needs none.
    bare = {"up to your backend", "every client of MQTT"}
    assert [cell for row in rows for cell in row[2:] if "](https://" not in cell and cell not in bare] == []


def test_the_exceptions_that_lint_makes_are_those_that_are_told():
    rows = re.findall(r"^ *\| (B\d+), [^|]+\| (`[^|]+`) \|", section("Security"), re.M)
    told = {(code, file.rpartition("/")[2]) for code, files in rows for file in re.findall(r"`([^`]+)`", files)}
    marked = {(code, path.name) for path in HOUSE.glob("pere/**/*.py") for code in re.findall(r"# nosec (B\d+)", path.read_text("utf-8"))}
    assert told == marked
