"""The end of a loop, when nothing may be open on it any more."""

import asyncio
import warnings

from tornado.ioloop import IOLoop


def closed(loop: IOLoop | asyncio.AbstractEventLoop) -> None:
    """Close it. What was left open on it is closed too, and said; but for connections of which nothing is read any more, because the other end has gone,
    or ours is about to go."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", ResourceWarning)
        loop.close()
    left = [said for said in map(str, (each.message for each in warned)) if "reading=False" not in said]
    assert not left, left
