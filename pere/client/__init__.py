"""A visitor's side of PERE: push events, listen to feeds, give receipts, ask what became of an event.

Everything here speaks plain HTTP to a server elsewhere, so it knows nothing of the server's insides, and needs nothing of what that is made of: aiohttp and
orjson are enough. `Client` is for asyncio, `SyncClient` for everybody else; `verify_notice`, for those who receive webhooks, does without aiohttp too.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pere.client.client import Client as Client
    from pere.client.event import Event as Event
    from pere.client.event import Retry as Retry
    from pere.client.notices import Notice as Notice
    from pere.client.notices import verify_notice as verify_notice
    from pere.client.sync import SyncClient as SyncClient

PLACES = {"Client": "client", "Event": "event", "Retry": "event", "Notice": "notices", "verify_notice": "notices", "SyncClient": "sync"}


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{PLACES[name]}"), name)
