"""An endpoint: somebody's address for notices, what it wants to hear of, and whether it is heard.

An endpoint is `pending` until it has answered a `pere.webhook.verify` with 2xx, so that nobody can have notices sent to who did not ask
for them; then `active`. Its owner may pause it (`paused`), and we give it up (`disabled`). No sockets and no clock here.
"""

from collections.abc import Callable, Iterable
from secrets import token_hex
from typing import Any

import orjson

from pere.errors import BadRequest, Conflict
from pere.event import timestamp
from pere.names import pattern, shown
from pere.notice import COMPLETED, CONNECTED, DISCONNECTED, EXPIRED, GIVEN_UP, RECEIPTS, SATISFIED
from pere.signing import new_secret

# What can be asked for; what an endpoint hears that asks for nothing are the two that end a story.
TYPES = (RECEIPTS, SATISFIED, COMPLETED, EXPIRED, CONNECTED, DISCONNECTED, GIVEN_UP)
DEFAULT_TYPES = (COMPLETED, EXPIRED)

# Structured mode of CloudEvents 1.0 (HTTP binding, 3.2) has a type of its own; many receivers only know the plain one.
CONTENT_TYPES = ("application/json", "application/cloudevents+json")

PENDING, ACTIVE, PAUSED, DISABLED = "pending", "active", "paused", "disabled"

GRACE = 24 * 3600.0  # seconds in which the secret before this one signs too
MAX_CHANNELS = 100
MAX_HEARD = 1_000  # channels of which is remembered whether an endpoint hears of them
FIELDS = frozenset(("url", "types", "channels", "content_type"))


class Endpoint:
    """`secrets` are the newest first, each with the moment (seconds since 1970) up to which it signs, None for the one that stands.
    `trouble` is what went wrong last, for people; empty if nothing did."""

    KEPT = ("id", "url", "types", "channels", "content_type", "state", "is_verified", "secrets", "created", "trouble")
    __slots__ = (*KEPT, "_heard", "_tests")

    def __init__(self, url: str, types: tuple[str, ...], channels: tuple[str, ...], content_type: str, created: float, *, id: str = "",
                 state: str = PENDING, is_verified: bool = False, secrets: list[tuple[str, float | None]] | None = None, trouble: str = ""):
        self.id = id or f"wh_{token_hex(8)}"
        self.url = url
        self.types = types
        self.channels = channels
        self.content_type = content_type
        self.created = created
        self.state = state
        self.is_verified = is_verified
        self.secrets = secrets or [(new_secret(), None)]
        self.trouble = trouble
        self._tests: tuple[Callable[[str], object], ...] = ()
        self._heard: dict[str, bool] = {}  # channels that were asked for lately

    def rotate(self, now: float) -> float:
        """Take a new secret. Returns until when the one before signs too. Raises Conflict where one is still on its way out: a third
        would take the grace from whoever has only the first."""
        self.secrets = [each for each in self.secrets if each[1] is None or each[1] > now]
        if len(self.secrets) > 1:
            raise Conflict("rotating", f"the secret before this one still signs, until {timestamp(self.secrets[1][1] or now)}; rotate again after that")
        until = now + GRACE
        self.secrets = [(new_secret(), None), (self.secrets[0][0], until)]
        return until

    def signing(self, now: float) -> list[str]:
        """The secrets that sign at this moment, newest first."""
        return [secret for secret, until in self.secrets if until is None or until > now]

    def wants(self, type: str, channels: Iterable[str]) -> bool:
        """Whether it is to hear of what is on one of these. Without channels of its own it hears of all."""
        return type in self.types and (not self.channels or any(map(self._hears, channels)))

    def _hears(self, channel: str) -> bool:
        known = self._heard.get(channel)
        if known is None:
            # Held here: all patterns of all endpoints are more than are remembered elsewhere.
            if not self._tests:
                self._tests = tuple(map(pattern, self.channels))
            if len(self._heard) >= MAX_HEARD:
                self._heard.clear()
            known = self._heard[channel] = any(test(channel) for test in self._tests)
        return known

    def as_dict(self) -> dict[str, Any]:
        """As it is told to its owner: never with a secret."""
        return {
            "id": self.id,
            "url": self.url,
            "types": self.types,
            "channels": self.channels,
            "content_type": self.content_type,
            "state": self.state,
            "created": timestamp(self.created),
            "trouble": self.trouble or None,
        }

    def document(self) -> bytes:
        """All of it, to be kept. This holds the secrets."""
        return orjson.dumps({name: getattr(self, name) for name in self.KEPT})

    @classmethod
    def of(cls, document: bytes) -> "Endpoint":
        """As `document` has it."""
        kept = orjson.loads(document)
        return cls(kept["url"], tuple(kept["types"]), tuple(kept["channels"]), kept["content_type"], kept["created"], id=kept["id"],
                   state=kept["state"], is_verified=kept["is_verified"], secrets=[(secret, until) for secret, until in kept["secrets"]],
                   trouble=kept["trouble"])


def asked(fields: Any, check_url: Callable[[str], object], more: frozenset[str] = frozenset()) -> dict[str, Any]:
    """What a request says of an endpoint, checked: those of FIELDS, and of `more`, that it names. `check_url` raises BadRequest for an
    address that may not be. Raises BadRequest otherwise too."""
    if not isinstance(fields, dict):
        raise BadRequest("bad_json", 'an endpoint is an object such as {"url": "https://example.com/hook"}')
    unknown = fields.keys() - FIELDS - more
    if unknown:
        raise BadRequest("unknown_field", f"an endpoint has {', '.join(sorted(FIELDS | more))}, and no {shown(min(unknown))}")
    said = dict(fields)
    if "url" in said:
        if not isinstance(said["url"], str):
            raise BadRequest("bad_webhook_url", '"url" is a string such as "https://example.com/hook"')
        check_url(said["url"])
    if "types" in said:
        said["types"] = tuple(dict.fromkeys(_words(said["types"], "types", "bad_webhook_types", len(TYPES))))
        for type in said["types"]:
            if type not in TYPES:
                raise BadRequest("bad_webhook_types", f"a type is one of {', '.join(TYPES)}, not {shown(type)}")
        if not said["types"]:
            # Most likely a mistake: it would hear of nothing at all.
            raise BadRequest("bad_webhook_types", '"types" names at least one type')
    if "channels" in said:
        said["channels"] = tuple(dict.fromkeys(_words(said["channels"], "channels", "bad_webhook_channels", MAX_CHANNELS)))
        for channel in said["channels"]:
            pattern(channel)
    if "content_type" in said and said["content_type"] not in CONTENT_TYPES:
        raise BadRequest("bad_content_type", f"content_type is {' or '.join(CONTENT_TYPES)}, not {shown(said['content_type'])}")
    return said


def _words(value: Any, name: str, code: str, most: int) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise BadRequest(code, f'"{name}" is a list of strings')
    if len(value) > most:
        raise BadRequest(code, f'"{name}" has at most {most} items, not {len(value)}')
    return value
