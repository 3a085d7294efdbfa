"""What a request is called: as its client calls it, where that may stand in a header and a log, and the same in both."""

import logging
import re

import pytest

MADE = re.compile("[0-9a-f]{16}")


@pytest.mark.parametrize("method, target, status", [
    ("GET", "/healthz", 200), ("GET", "/nothing", 404), ("PUT", "/push/c", 405), ("POST", "/push/a%20b", 400), ("POST", "/feedback/c", 400), ("GET", "/feed/a%20b", 400),
    ("OPTIONS", "/push/c", 204), ("GET", "/events/c/nonsense", 400)])
async def test_answers_of_handlers_and_refusals_name_their_request(start, ask, method, target, status):
    await start()
    answer = await ask(method, target, X_Request_Id="a-b.c:d/e+f=@1_")
    assert (answer.status, answer.headers["x-request-id"]) == (status, "a-b.c:d/e+f=@1_")
    made = [(await ask(method, target)).headers["x-request-id"] for _ in range(2)]
    assert all(map(MADE.fullmatch, made)) and made[0] != made[1]


@pytest.mark.parametrize("said", ["", "a b", "x" * 129, 'a"b', "a\tb", "{}", "\xe9"])
async def test_one_that_may_not_stand_there_is_replaced(start, ask, said):
    await start()
    for target in ("/healthz", "/feed/a%20b"):
        assert MADE.fullmatch((await ask("GET", target, X_Request_Id=said)).headers["x-request-id"])


async def test_what_cannot_even_be_read_has_one_too(start, connect):
    await start()
    line = await connect()
    await line.send(b"nonsense\r\n\r\n")
    assert MADE.fullmatch((await line.answer()).headers["x-request-id"])


@pytest.mark.parametrize("target", ["/feed/a%20b", "/nothing"])
async def test_the_log_names_it(start, ask, caplog, target):
    await start()
    with caplog.at_level(logging.DEBUG, "pere.http"):
        await ask("GET", target, X_Request_Id="mine")
    assert [record.facts["request"] for record in caplog.records if record.getMessage() == "refused"] == ["mine"]


async def test_a_mistake_of_the_server_names_it(start, ask, caplog):
    server = await start()
    for part, target, method in (("append", "/push/c", "POST"), ("stand", "/metrics", "GET")):
        setattr(server.store, part, None)
        answer = await ask(method, target, b"1", X_Request_Id="mine")
        assert (answer.status, answer.headers["x-request-id"], caplog.records[-1].facts["request"]) == (500, "mine", "mine")
        del server.store.__dict__[part]
    caplog.clear()
