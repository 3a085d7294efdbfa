"""Who is let in, and to how much: the limits of `limits.py` put to connections, requests and feeds, and what is said where one is reached.

A client is looked at when its connection is accepted, when the head of a request is there and the body is not yet, and when a feed
opens. Some have no account, and so no limits of their own: those that `--limits-exempt` names, and trusted proxies, whose clients have one each.
"""

import resource
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from pere.auth import Grant
from pere.config import Config, flag
from pere.errors import ConfigError, Full, Refusal, TooMany
from pere.limits import CHANNELS, CONNECTS, NEW, WORDS, Account, Accounts, Brought, Buckets, Rate, Subjects, Takers, client_of, has_room
from pere.peers import Proxies

SWEEP = 2_000  # accounts that are looked at once a second, beside those that newcomers clear away: half a millisecond
SOON = 5  # seconds after which to try again where nobody can know when there will be room
SPARE = 128  # open files that are no connections; two for each of the queues of `queues.py`

# Whose limit it was: that of one client, or that of the whole server.
CLIENT, SUBJECT, ALL = "client", "subject", "all"


class Gate:
    """`time` is the wheel's. `feeds` tells how many are open, `channels` how many are kept; `limited` counts what was refused."""

    def __init__(self, config: Config, time: Callable[[], float]):
        self.accounts = Accounts([_rate(config, f"peer_{word}") for word in WORDS])
        self.subjects = Subjects([_rate(config, f"subject_{word}") for word in WORDS])
        self.brought = Brought()
        self.feeds: Callable[[], int] = lambda: 0
        self.channels: Callable[[], int] = lambda: 0
        self.limited = Counter(dict.fromkeys([*((word, whose) for word in WORDS for whose in (CLIENT, SUBJECT)), *((word, whose) for word in ("connections", "feeds") for whose in (CLIENT, ALL))], 0))
        self.on_turned_away: Callable[[], None] = lambda: None  # a connection could not stay
        self.time = time
        self._most = most_connections(config)
        self._config = config
        self._proxies = Proxies(*config.proxies)
        self._exempt = Proxies(*config.exempt)

    def renew(self, config: Config) -> Callable[[], None]:
        """The rates, and who is believed or has no limits, as these settings have it (see `reloading.py`)."""
        accounts, subjects = ([_rate(config, f"{whose}_{word}") for word in WORDS] for whose in ("peer", "subject"))
        proxies, exempt, most = Proxies(*config.proxies), Proxies(*config.exempt), most_connections(config)

        def renewed() -> None:
            self.accounts.rates, self.subjects.rates = tuple(accounts), tuple(subjects)
            self._proxies, self._exempt, self._most = proxies, exempt, most

        return renewed

    def due(self, now: float) -> float:
        """Once a second: what is idle is cleared away."""
        self.accounts.clear(now, SWEEP)
        self.subjects.clear(now, SWEEP)
        self.brought.clear(SWEEP)
        return 1.0

    def account(self, address: str, is_socket: bool = False) -> Account | None:
        """The account of whoever is at this address, if there is one; at the other end of a socket, a trusted proxy has none."""
        if self._exempt.trusts(address) or (is_socket and self._proxies.trusts(address)):
            return None
        return self.accounts.of(client_of(address), self.time())

    def clients(self) -> dict[Account, str]:
        """Whose each account is."""
        return {account: client for client, account in self.accounts.known.items()}

    def enter(self, address: str, connections: int) -> tuple[Account | None, Refusal | None]:
        """Somebody connects from this address, beside so many who did and have no feed. Their account, among whose connections they count until somebody
        says otherwise, if they have one; or why they cannot stay."""
        account = self.account(address, is_socket=True)
        held = connections + self.feeds()
        if held >= self._most:
            refusal = self._full("connections", ALL, f"no more than {self._most} connections are open at once")
        elif account is None:
            return None, None
        elif not has_room(account.connections + account.feeds, held, self._most, self._config.max_connections_per_peer):
            refusal = self._full("connections", CLIENT, f"one client may not have more than the {account.connections + account.feeds} connections that this one has")
        elif wait := self.accounts.take(account.full, CONNECTS, self.time()):
            refusal = self._too_many(CONNECTS, wait, self.accounts, CLIENT)
        else:
            account.connections += 1
            return account, None
        self.on_turned_away()
        return None, refusal

    def note(self, refusal: Refusal) -> None:
        """Something is refused: that is counted where the reason is a limit."""
        if refusal.whose:
            self.limited[refusal.limit, refusal.whose] += 1

    def charge(self, account: Account, kind: int, count: int = 1) -> None:
        """Somebody asks for so many of a kind. Raises TooMany."""
        wait = self.accounts.take(account.full, kind, self.time(), count)
        if wait:
            raise self._too_many(kind, wait, self.accounts, CLIENT)

    def charge_subject(self, grant: Grant, kind: int, count: int = 1) -> None:
        """The same for whoever a token says that it is, wherever it comes from."""
        now, buckets = self.time(), grant.buckets
        if buckets is None:
            buckets = self._buckets(grant, now)
        if count == 1 and buckets[kind] <= now:  # one out of a full one, as it mostly is
            rate = self.subjects.rates[kind]
            if rate is not None:
                buckets[kind] = now + rate.interval
            return
        wait = self.subjects.take(self._buckets(grant, now), kind, now, count)
        if wait:
            raise self._too_many(kind, wait, self.subjects, SUBJECT)

    def admits_subject(self, grant: Grant, kind: int) -> bool:
        """The same for one; who is not let in goes the usual way, and hears there why."""
        now = self.time()
        return not self.subjects.take(self._buckets(grant, now), kind, now)

    def _buckets(self, grant: Grant, now: float) -> Buckets:
        subjects = self.subjects
        buckets = subjects.of(grant.subject, now)
        grant.buckets = buckets if buckets is not subjects.crowd else None
        return buckets

    def admits(self, account: Account, kind: int) -> bool:
        """The same for one of a client."""
        return not self.accounts.take(account.full, kind, self.time())

    def bring(self, subject: str, channels: Collection[str]) -> None:
        """A subject brings these channels into being. Raises TooMany where it has its share of all that may be kept."""
        own, all, config, more = self.brought.counts[subject], self.channels(), self._config, len(channels) - 1
        if not has_room(own + more, all + more, config.max_channels, config.max_channels_per_subject) and all + more < config.max_channels:
            raise self._full(WORDS[CHANNELS], SUBJECT, f"one subject may not bring more channels into being than the {own} of this one that are kept")
        self.brought.note(subject, channels)

    def check_feeds(self, account: Account | None, own: int = 0) -> None:
        """Whether one feed more can be open, for a subject that has `own` of them where nothing else bounds that. Raises TooMany where the
        client or the subject has its share, Full where nobody can have another."""
        feeds, config = self.feeds(), self._config
        if feeds >= config.max_feeds:
            raise self._full("feeds", ALL, f"no more than {config.max_feeds} feeds are open at once")
        if account is not None and not has_room(account.feeds, feeds, config.max_feeds, config.max_feeds_per_peer):
            raise self._full("feeds", CLIENT, f"one client may not have more than the {account.feeds} feeds that this one has")
        if own and not has_room(own, feeds, config.max_feeds, 0):
            raise self._full("feeds", SUBJECT, f"one subject may not have more than the {own} feeds that this one has")

    def _too_many(self, kind: int, wait: float, accounts: Takers[Any], whose: str) -> TooMany:
        word, rate = WORDS[kind], accounts.rates[kind]
        assert rate is not None
        # To the next whole second, after which there is room.
        return TooMany(f"too_many_{word}", f"one {whose} may have {1 / rate.interval:g} {NEW.get(kind, word)} a second, {rate.burst} at once, and this one has had them", retry_after=int(wait) + 1, whose=whose)

    def _full(self, limit: str, whose: str, message: str) -> Refusal:
        return (Full if whose == ALL else TooMany)(f"too_many_{limit}", message, retry_after=SOON, whose=whose)


def most_connections(config: Config) -> int:
    """How many there can be: as many as are wanted, as far as files may be open."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    can_be = max(1, files - SPARE) if files != resource.RLIM_INFINITY else 1 << 20
    return min(config.max_connections or can_be, can_be)


def _rate(config: Config, name: str) -> Rate | None:
    """The rate of this setting. Raises ConfigError for one that is none, or that no batch would ever fit into."""
    try:
        rate = Rate.read(getattr(config, name))
    except ConfigError as error:
        raise ConfigError(f"{flag(name)}: {error}") from None
    if rate is not None and name.endswith(("pushes", "receipts")) and rate.burst < config.max_batch:
        raise ConfigError(f"{flag(name)} must let one batch of --max-batch ({config.max_batch}) through at once, not {rate.burst}")
    return rate
