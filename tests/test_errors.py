"""What is refused, and how that is said."""

import re

import orjson

from pere import errors
from pere.errors import BadRequest, Refusal, WrongMethod


def test_the_tree_at_the_top_of_the_file_shows_every_refusal_with_its_status():
    shown = {name: int(status) for name, status in re.findall(r"── (\w+) +(\d{3}) ", errors.__doc__)}
    assert shown == {kind.__name__: kind.status for kind in vars(errors).values()
                     if isinstance(kind, type) and issubclass(kind, Refusal) and kind is not Refusal}


def test_a_refusal_has_a_code_for_machines_and_a_sentence_for_people():
    refusal = BadRequest("bad_ttl", 'a ttl is a number, not "soon"')
    assert orjson.loads(refusal.body()) == {"error": "bad_ttl", "message": 'a ttl is a number, not "soon"'}
    assert str(refusal) == 'a ttl is a number, not "soon"'
    assert refusal.retry_after is None


def test_a_status_that_one_refusal_names_is_its_own():
    assert Refusal("http_version", "not 2.0", status=505).status == 505
    assert Refusal("internal", "something went wrong").status == 500


def test_a_wrong_method_says_which_would_have_been_right():
    refusal = WrongMethod("wrong_method", "not PUT", allow="GET, HEAD")
    assert (refusal.status, refusal.allow) == (405, "GET, HEAD")
