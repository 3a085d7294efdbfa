"""What a test leaves open on a loop is said, and holds up nobody."""

import asyncio
import warnings

import uvloop


async def leaving() -> None:
    """A connection, of which nobody closes either end."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname())
    server.close()
    await asyncio.sleep(0.01)


def test_a_loop_with_something_open_on_it_ends_where_warnings_are_errors():
    loop = uvloop.new_event_loop()
    loop.run_until_complete(leaving())
    with warnings.catch_warnings(record=True) as left:  # by the filters that hold for every test
        loop.close()
    assert "unclosed resource <TCPTransport" in str(left[0].message)
