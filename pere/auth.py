"""Who asks, and what they may do: a token becomes a Grant.

A token is a JWT (RFC 7519) that says who its bearer is (`sub`) and what they may do, `{"pere": {"push": [patterns], "feed": [patterns],
"admin": true}}`; what it does not name it does not allow. Its signature is verified once and remembered; whether its time has come,
and is not over, is looked at each time. No sockets here, and no clock: who asks says when.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import orjson

from pere.errors import BadRequest, Forbidden, Unauthorized
from pere.jws import bad_token, bytes_of, claims_of, key_of, parts_of
from pere.names import DEVICE, pattern, shown, whole
from pere.remembered import remembered

if TYPE_CHECKING:  # a server without keys has no use for all that keys need
    from pere.keys import Key

# What an address asks for. What says nothing asks for NOBODY: an address that was forgotten is shut.
ANYBODY, PUSH, FEED, ADMIN, NOBODY = "anybody", "push", "feed", "admin", "nobody"

MAX_KNOWN = 100_000  # tokens that are remembered, as many as there may be feeds; some 50 MB when full
MAX_PATTERNS = 100  # of one kind, in one token
WORDS = {PUSH: "push to", FEED: "listen to"}


@dataclass(frozen=True, slots=True)
class Scope:
    """What a token allows. There is one for all tokens that allow the same: ten thousand devices listen to one channel."""

    push: tuple[str, ...] = ()
    feed: tuple[str, ...] = ()
    is_admin: bool = False


EMPTY = Scope()


class Grant:
    """A token that holds. `subject` is the device or publisher, "" if the token names none. It holds from `begins` until `expires`,
    in seconds since 1970; `expires` is None where it holds for ever. `buckets` are
    those of its subject, where the limits have looked for them."""

    __slots__ = ("begins", "buckets", "expires", "fed", "name", "scope", "subject")

    def __init__(self, subject: str = "", scope: Scope = EMPTY, begins: float = 0.0, expires: float | None = None):
        self.subject = subject
        self.name = subject.encode()
        self.scope = scope
        self.begins = begins
        self.expires = expires
        self.buckets: list[float] | None = None
        self.fed = ""  # what it was last found to allow to listen to: a device mostly has one channel

    def may_push(self, channel: str) -> bool:
        return _means(self.scope.push, channel)

    def may_feed(self, wanted: str) -> bool:
        """Whether it may listen to a channel, or to every channel that a pattern means: one of those in the token must cover it alone."""
        return _covers(self.scope.feed, wanted)

    def check(self, need: str, channel: str | None = None) -> None:
        """Raises Forbidden unless it allows what an address asks for: on this channel (or pattern, of FEED), or on any at all if None."""
        if need == FEED:
            if channel is None:
                if self.scope.feed:
                    return
            elif channel == self.fed or channel in self.scope.feed or _covers(self.scope.feed, channel):  # mostly it stands there as it is
                self.fed = channel
                return
        if need == PUSH and (self.scope.push if channel is None else self.may_push(channel)):
            return
        if need == ANYBODY or need == ADMIN and self.scope.is_admin:
            return
        # The same for a channel that is there and one that is not.
        if need in WORDS:
            raise NotAllowed("not_allowed", f"this token does not allow to {WORDS[need]} {shown(channel) if channel is not None else 'any channel'}")
        raise NotAllowed("not_allowed", f"this token does not allow that: it asks for {need}")

    def named(self, *names: str | None) -> str:
        """Who it is that gave these names, "" if nobody did. Raises Forbidden for a name that is not the subject's."""
        for name in names:
            if name and name != self.subject:
                raise NotAllowed("wrong_device", f"this token is that of {shown(self.subject)}, not of {shown(name)}" if self.subject else
                                 f"this token is that of no device, and so not of {shown(name)}")
        return self.subject


class NotAllowed(Forbidden):
    challenge = 'Bearer realm="pere", error="insufficient_scope"'


class Open(Grant):
    """Where there are no keys: everybody may do everything, under any name."""

    __slots__ = ()

    def may_push(self, channel: str) -> bool:
        return True

    def may_feed(self, wanted: str) -> bool:
        return True

    def check(self, need: str, channel: str | None = None) -> None:
        pass

    def named(self, *names: str | None) -> str:
        return next(filter(None, names), "")


OPEN = Open()
NOTHING = Grant()  # what a request has before anybody has looked at it


class NoToken(Unauthorized):
    """RFC 6750, 3.1: who said nothing is told of no error."""

    challenge = 'Bearer realm="pere"'

    def __init__(self) -> None:
        super().__init__("no_token", "this asks for a token: Authorization: Bearer, ?access_token= or the cookie pere_token")


class UnknownKey(Unauthorized):
    """Perhaps the keys have changed: who can fetch them may look again."""

    def __init__(self, id: Any):
        super().__init__("unknown_key", f"the token is signed with a key that is not known here: kid {shown(str(id))}")


class Verifier:
    """Tokens become Grants. `audience` is who we are (`aud`), "" if nobody in particular; `leeway` is by how many seconds the clocks of
    those who mint may be wrong; `max_age` is the longest that a token may hold, 0 is any length. `fetched` are keys that come and go
    beside those that stand, `keys`; None if there are none of that kind."""

    def __init__(self, keys: Iterable["Key"], audience: str = "", leeway: float = 0.0, max_age: float = 0.0, fetched: Iterable["Key"] | None = None):
        self._standing = _by_algorithm(keys)
        self._fetched = tuple(fetched) if fetched is not None else None
        self._audience = audience or None
        self._leeway = leeway
        self._max_age = max_age
        self.revoked: dict[str, float] = {}
        # What was verified is not verified again. What was refused is not remembered: there is no end of that. When half of all that may
        # be known is new, the other half makes way, but for what is asked for again. (Measured: a cache that keeps an order touches three
        # entries at each look, and with ten thousand devices those are never at hand.)
        # (And measured: to keep a hash of each token and the end of its signature instead of its bytes takes a sixth of a KiB less, and
        # costs each receipt 0.15 us.)
        self._keys_of = remembered(64)(self._candidates)  # by header, of which a fleet has one
        self.known: dict[bytes, Grant] = {}
        self._older: dict[bytes, Grant] = {}

    def grant(self, token: bytes, now: float) -> Grant:
        """What a token allows. Raises Unauthorized where it does not hold; UnknownKey, which is one, where its key may yet be found."""
        grant = self.known.get(token)
        if grant is None:
            grant = self._remember(token)
        expires: float = grant.expires  # type: ignore[assignment]  # which a token always has
        if now >= expires:
            raise Unauthorized("expired_token", f"the token expired {now - expires + self._leeway:.0f} s ago")
        if now < grant.begins:
            raise Unauthorized("early_token", f"the token holds only in {grant.begins - now + self._leeway:.0f} s (nbf, iat)")
        return grant

    def _remember(self, token: bytes) -> Grant:
        grant = self._older.get(token) or self._verify(token)
        known = self.known
        if len(known) >= MAX_KNOWN // 2:
            self._older = known.copy()
            known.clear()
        known[token] = grant
        return grant

    def _forget(self) -> None:
        self._keys_of = remembered(64)(self._candidates)
        self.known.clear()
        self._older.clear()

    def stand(self, keys: Iterable["Key"]) -> None:
        """These are the keys that stand, from now on."""
        self._standing = _by_algorithm(keys)
        self._forget()

    def fetch(self, keys: Iterable["Key"]) -> None:
        """These are the keys of the kind that comes and goes, from now on."""
        self._fetched = tuple(keys)
        self._forget()

    def revoke(self, subject: str, at: float) -> None:
        """Refuse the tokens of a subject that were issued up to now, and those that do not say when they were. The clock of who
        issued them may be ahead, so the leeway counts against them."""
        self.revoked[subject] = max(at, self.revoked.get(subject, 0.0))
        self._forget()

    def outlived(self, now: float) -> list[str]:
        """The subjects whose revoked tokens have all expired, which is known only where tokens have a longest age. They are taken off."""
        if not self._max_age:
            return []
        over = [subject for subject, at in self.revoked.items() if at + self._max_age + 2 * self._leeway < now]
        for subject in over:
            del self.revoked[subject]
        return over

    def _verify(self, token: bytes) -> Grant:
        message, header, body, signature = parts_of(token)
        for key in self._keys_of(header):
            if key.signed(message, signature):
                return self._grant(claims_of(body))
        raise self._unsigned(header, signature)

    def _candidates(self, header: bytes) -> list["Key"]:
        """The keys that may have signed it. Only a fetched key is known by its id; who names none may have meant any."""
        algorithm, id = key_of(header)
        if not isinstance(algorithm, str):
            return []
        return self._standing.get(algorithm, []) + [key for key in self._fetched or () if key.algorithm == algorithm and (id is None or key.id is None or key.id == id)]

    def _unsigned(self, header: bytes, signature: bytes) -> Unauthorized:
        """Why no key has signed it."""
        bytes_of(signature)  # it may be none
        algorithm, id = key_of(header)
        is_fetched = self._fetched is not None and algorithm in FETCHED
        if not is_fetched and (not isinstance(algorithm, str) or algorithm not in self._standing):
            taken = {*self._standing, *(FETCHED if self._fetched is not None else ())}
            return bad_token(f"the token is signed by {shown(str(algorithm))}; taken is {' or '.join(sorted(taken))}")
        if is_fetched and not any(key.id == id for key in self._fetched or () if key.id is not None):
            return UnknownKey(id)
        return bad_token("the signature of the token is not right")

    def _grant(self, claims: dict[str, Any]) -> Grant:
        """What verified claims allow. Raises Unauthorized where they are none, are for somebody else, or revoked."""
        if "exp" not in claims:
            raise bad_token("the token has no exp")
        expires, issued = _time(claims, "exp"), _time(claims, "iat") if "iat" in claims else None
        if (audience := claims.get("aud")) != self._audience:
            self._check_audience(audience)
        begins = max(_time(claims, "nbf"), issued or 0.0) if "nbf" in claims else issued
        if self._max_age and (issued is None or expires - issued > self._max_age):
            raise Unauthorized("long_token", f"a token holds at most {self._max_age:g} s here, and says so by iat and exp")
        subject = claims.get("sub", "")
        if not isinstance(subject, str) or subject and not DEVICE.fullmatch(subject):
            raise bad_token("sub is no name of a device: 1 to 128 of A-Z a-z 0-9 _ . : @ ~ -")
        if "jti" in claims and not isinstance(claims["jti"], str):
            raise bad_token("jti is a string")
        if subject in self.revoked and (issued is None or issued <= self.revoked[subject] + self._leeway):
            raise Unauthorized("revoked_token", f"the tokens of {subject} that were issued before are revoked")
        said = claims.get("pere", SILENT)
        try:
            scope = _scope(orjson.dumps(said))
        except orjson.JSONEncodeError:  # what can be read can be written, unless it is hundreds of brackets deep
            scope = _allowed(said)
        return Grant(subject, scope, begins - self._leeway if begins else 0.0, _same(expires + self._leeway))

    def _check_audience(self, said: Any) -> None:
        """RFC 7519, 4.1.3: a token that is for somebody is refused by everybody else."""
        if not said and self._audience is not None:
            raise bad_token("the token has no aud")
        whom = [said] if isinstance(said, str) else said
        if said and (not isinstance(whom, list) or not all(isinstance(each, str) for each in whom) or self._audience not in whom):
            raise Unauthorized("wrong_audience", "the token is for somebody else (aud)")


def _by_algorithm(keys: "Iterable[Key]") -> "dict[str, list[Key]]":
    found: "dict[str, list[Key]]" = {}
    for key in keys:
        found.setdefault(key.algorithm, []).append(key)
    return found


FETCHED = ("RS256", "ES256", "EdDSA")
NUMBERS = (int, float)
SILENT: dict[str, Any] = {}


def _time(claims: dict[str, Any], name: str) -> float:
    """A NumericDate (RFC 7519, 2), which is there."""
    value = claims[name]
    if value.__class__ in NUMBERS and 0 <= value < 1e11:
        return value
    raise bad_token(f"{name} is a number of seconds since 1970")


# One object for all tokens that end in the same second: most of a fleet's do, and each receipt looks at it.
_same: Callable[[float], float] = remembered(1024)(lambda moment: moment)


@remembered(1024)
def _scope(said: bytes) -> Scope:
    """What a fleet's tokens allow is mostly the same to the byte. What is refused is not remembered."""
    return _allowed(orjson.loads(said))


def _allowed(said: Any) -> Scope:
    if not isinstance(said, dict) or not isinstance(said.get("admin", False), bool):
        raise bad_token('what a token allows is {"pere": {"push": [patterns], "feed": [patterns], "admin": true}}')
    push, feed = said.get("push", []), said.get("feed", [])
    if not isinstance(push, list) or not isinstance(feed, list) or len(push) > MAX_PATTERNS or len(feed) > MAX_PATTERNS:
        raise bad_token(f'"push" and "feed" are lists of at most {MAX_PATTERNS} channels and patterns')
    for name, patterns in (("push", push), ("feed", feed)):
        for each in patterns:
            try:
                pattern(each if isinstance(each, str) else "")
            except BadRequest:
                raise bad_token(f'"{name}" has {shown(each)} in it, which is neither a channel nor a pattern') from None
    return Scope(tuple(push), tuple(feed), said.get("admin", False))


@lru_cache(maxsize=1024)
def _means(patterns: tuple[str, ...], channel: str) -> bool:
    return any(pattern(each)(channel) for each in patterns)


@lru_cache(maxsize=1024)
def _covers(patterns: tuple[str, ...], wanted: str) -> bool:
    name = whole(wanted)
    return any(pattern(each)(name) for each in patterns)
