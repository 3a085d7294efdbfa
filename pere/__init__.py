"""PERE: Pushed Events with return Receipt Engine.

What its users import from here is read when they ask for it: who receives webhooks needs no HTTP client, and no visitor needs a server.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pere.client import Client as Client
    from pere.client import Event as Event
    from pere.client import Notice as Notice
    from pere.client import Retry as Retry
    from pere.client import SyncClient as SyncClient
    from pere.client import verify_notice as verify_notice
    from pere.errors import Refusal as Refusal

__version__ = "1.0.0.dev0"

PLACES = dict.fromkeys(("Client", "SyncClient", "Event", "Retry", "Notice", "verify_notice"), "pere.client") | {"Refusal": "pere.errors"}


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(PLACES[name]), name)
