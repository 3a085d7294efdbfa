"""What a test leaves open on a loop fails it, and holds up nobody."""

import asyncio
import warnings

import pytest
import uvloop
from loops import closed


async def leaving() -> None:
    """A connection, of which nobody closes either end."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname())
    server.close()
    await asyncio.sleep(0.01)


@pytest.fixture
def loop():
    made = uvloop.new_event_loop()
    made.run_until_complete(leaving())
    return made


def test_what_is_left_open_on_a_loop_is_said(loop):
    with pytest.raises(AssertionError, match="unclosed resource <TCPTransport"):
        closed(loop)


def test_a_loop_with_something_open_on_it_ends_where_warnings_are_errors(loop):
    with warnings.catch_warnings(record=True) as left:  # by the filters that hold for every test
        loop.close()
    assert "unclosed resource <TCPTransport" in str(left[0].message)
