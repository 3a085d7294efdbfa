"""The end of a loop, when nothing may be open on it any more."""

import asyncio
import warnings

from tornado.ioloop import IOLoop


def closed(loop: IOLoop | asyncio.AbstractEventLoop) -> None:
    """Close it. What was left open on it is closed too, and said."""
    with warnings.catch_warnings(record=True) as left:
        warnings.simplefilter("always", ResourceWarning)
        loop.close()
    assert not left, [str(each.message) for each in left]
