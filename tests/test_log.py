"""Log lines, for people and for machines; what is set up for the whole process is tested in one of its own."""

import logging
import subprocess
import sys

import orjson
import pytest

from pere.log import Json, Text


def record(message: str = "listening", *, failed: bool = False, level: int = logging.INFO, **facts: object) -> logging.LogRecord:
    exc_info = None
    if failed:
        try:
            raise RuntimeError("no more room")
        except RuntimeError:
            exc_info = sys.exc_info()
    made = logging.LogRecord("pere.http", level, __file__, 1, message, (), exc_info)
    made.created = 1_417_444_110.993
    if facts:
        made.facts = facts
    return made


def test_a_line_for_people_is_time_level_message_and_facts():
    line = Text().format(record(url="http://127.0.0.1:4567", feeds=3))
    assert line == "2014-12-01T14:28:30.993Z info    listening url=http://127.0.0.1:4567 feeds=3"
    assert Text().format(record(level=logging.WARNING)) == "2014-12-01T14:28:30.993Z warning listening"


def test_a_line_for_machines_is_one_object():
    line = Json().format(record('a "quoted"\nline', url="http://127.0.0.1:4567", feeds=3))
    assert "\n" not in line
    assert orjson.loads(line) == {"time": "2014-12-01T14:28:30.993Z", "level": "info", "logger": "pere.http",
                                  "message": 'a "quoted"\nline', "url": "http://127.0.0.1:4567", "feeds": 3}


def test_a_fact_that_json_does_not_know_is_told_in_its_own_words():
    assert orjson.loads(Json().format(record(error=OSError("no route"), of={1})))["error"] == "no route"


def test_what_went_wrong_is_told_with_where():
    told = Text().format(record(failed=True, device="d1"))
    assert told.startswith("2014-12-01T14:28:30.993Z info    listening device=d1\nTraceback (most recent call last):\n")
    assert told.endswith("RuntimeError: no more room")
    told = orjson.loads(Json().format(record(failed=True, device="d1")))
    assert told["device"] == "d1"
    assert told["exception"].endswith("RuntimeError: no more room")


EVERYBODY_SPEAKS = """
import logging, sys
from pere.log import set_up
set_up(*sys.argv[1:])
for name in ("pere.hub", "somebody.else", "tornado.access", "tornado.general"):
    for level in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger(name), level)(f"{name} {level}")
"""


@pytest.mark.parametrize("level, heard", [
    ("debug", ["debug", "info", "warning", "error"]), ("info", ["info", "warning", "error"]), ("warning", ["warning", "error"]),
    ("error", ["error"]),
])
def test_our_lines_are_heard_from_the_level_on_and_only_the_warnings_of_others(level, heard):
    spoken = subprocess.run([sys.executable, "-c", EVERYBODY_SPEAKS, level, "json"], capture_output=True, text=True, timeout=60)
    assert spoken.stdout == ""
    assert [orjson.loads(line)["message"] for line in spoken.stderr.splitlines()] == [
        *(f"pere.hub {word}" for word in heard), "somebody.else warning", "somebody.else error",
        "tornado.access error", "tornado.general error"]


def test_lines_are_for_people_unless_machines_are_meant():
    spoken = subprocess.run([sys.executable, "-c", EVERYBODY_SPEAKS, "error", "text"], capture_output=True, text=True, timeout=60)
    assert spoken.stderr.splitlines()[0].endswith("Z error   pere.hub error")
