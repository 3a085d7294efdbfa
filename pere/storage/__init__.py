"""What a store is: it gives events their ids, keeps them, delivers them to the hub, and enters receipts in the ledger.

The hub broadcasts only what a store delivers, and a publisher or a device is answered only when the store says so, hence
the callbacks: `then` is called once, when the matter is as safe as this store makes it, which may be at once.

It is a little longer than a file should be: the contract stands here whole, with a sentence for each question, and what is only handed over with it.
"""

import builtins
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from pere.audience import Audience, Member
from pere.backlog import Backlog
from pere.bulk import Receipt
from pere.devices import Device, Devices
from pere.entry import Entry
from pere.errors import Refusal
from pere.event import Draft, Event, format_id, timestamp
from pere.ledger import Ledger
from pere.receipt import NAMES


class Accepted(NamedTuple):
    """An event that is kept. `repeated` tells that its Idempotency-Key was known, and nothing was published again."""

    id: int
    audience: int
    repeated: bool = False


class Record(NamedTuple):
    """A change of the state of an event on a device, as it is kept: what the device said, or that its time ended (`expired`,
    `cancelled`). Without a device it ended for all that still owed a receipt. `status` is JSON, `at` seconds since 1970; `latency`
    in seconds is only of what a device said. `late` is as in the delivery status: the device had been given up."""

    number: int
    event_id: int
    channel: str
    device: str | None
    state: int
    status: bytes | None
    late: bool
    at: float
    latency: float | None

    def encode(self) -> bytes:
        """As publishers are told of it, in JSON."""
        # This runs for every receipt. No name needs escaping, so it is JSON as it stands.
        device = f'"{self.device}"' if self.device is not None else "null"
        latency = f"{self.latency:.3f}" if self.latency is not None else "null"
        return (f'{{"id":"{self.number}","event_id":"{_event_id(self.event_id)}","channel":"{self.channel}","device":{device},"state":"{NAMES[self.state]}",'
                f'"status":{self.status.decode() if self.status is not None else "null"},"late":{"true" if self.late else "false"},"at":"{timestamp(self.at)}",'
                f'"latency":{latency}}}').encode()


PAGE_BYTES = 1024 * 1024  # of payloads in a page of events: who asks and does not read has the server hold no more


def within(events: Iterable[Event]) -> list[Event]:
    """The first of these events that are no more than a page, and one at least."""
    page: list[Event] = []
    size = 0
    for event in events:
        size += len(event.data)
        if page and size > PAGE_BYTES:
            break
        page.append(event)
    return page


_event_id = lru_cache(256)(format_id)  # of ten thousand receipts in a row, most are for the same events


@dataclass(frozen=True, slots=True)
class Page:
    """Some records, oldest first, and the number up to which there are no others; whether there are more behind it, and whether
    something that was before the first of these is no longer kept."""

    records: list[Record]
    through: int
    is_more: bool
    is_lost: bool


class Stand(NamedTuple):
    """How everything stands, in numbers: devices that are online or registered, channels, receipts that are owed, and when the oldest event was accepted that
    owes any."""

    online: int
    registered: int
    channels: int
    outstanding: int
    oldest: float | None


class Shelf:
    """What is at hand of one channel: its newest events and its devices. `waiting` are devices that were addressed by `to` before
    they were ever seen here, with the ordinals of these events. `past` are older events that were fetched, by ordinal."""

    __slots__ = ("audience", "backlog", "name", "past", "touched", "waiting")

    def __init__(self, name: str, backlog: Backlog, now: float):
        self.name = name
        self.backlog = backlog
        self.audience = Audience()
        self.waiting: dict[str, deque[int]] = {}
        self.touched = now
        self.past: dict[int, Event] = {}

    def let_go(self, devices: Iterable[str]) -> None:
        """What these devices wait for is no longer kept, as far as it is older than `first`."""
        for device in devices:
            ordinals = self.waiting.get(device)
            while ordinals and ordinals[0] < self.first:
                ordinals.popleft()
            if ordinals is not None and not ordinals:
                del self.waiting[device]

    @property
    def first(self) -> int:
        """The ordinal of the oldest event that is kept anywhere."""
        return self.backlog.first

    @property
    def gone_id(self) -> int:
        """The newest id that is no longer kept anywhere: what is not above it may have existed."""
        return self.backlog.evicted_id

    def at(self, ordinal: int) -> Event | None:
        """The event with this ordinal, if it is at hand."""
        return self.backlog.at(ordinal) or self.past.get(ordinal)


class Store(ABC):
    """The contract; `tests/storage/test_contract.py` holds every store to it.

    `born` is the first id that this store could have given: it cannot vouch for anything older. `clock` is seconds since 1970. `deliver` is
    who is told of every event, and `withdraw` who is told that one was recalled; set both before the first append. `on_commit` is told of every commit how many seconds it took, and
    how many events and changes of states were in it. `dismiss` is told of a device that was removed on another node, and has feeds
    on this one; `forsake` when the store has lost what it knew, so that every feed must begin anew, and `on_anew` when it has read
    everything again; `heed` of what a device has said on another node of how it goes, as `pass_on` there. `events` and `event_bytes` count what was accepted,
    `bytes` is what the backlogs hold. `on_receipts` is told each channel of which records have become visible, maybe many times in
    a turn of the loop; None as long as nobody wants to know. `leads` tells whether it is this node that sends webhooks (one does), `on_lead` is
    told when that changes, and `on_document` of what another node has put away, or taken away (None). `decided` is what was decided while the store started, and of which nobody may have been told: which event that was, when, and how it stood.
    """

    ledger: Ledger
    devices: Devices
    born: int
    clock: Callable[[], float]
    events: int
    event_bytes: int
    bytes: int
    deliver: Callable[[Event], None]
    withdraw: Callable[[Event], None]
    dismiss: Callable[[Device], None]
    forsake: Callable[[], None]
    on_anew: Callable[[], None]
    leads: bool
    on_lead: Callable[[bool], None]
    on_document: Callable[[str, str, builtins.bytes | None], None]
    heed: Callable[[str, str, int, int, float], None]
    on_commit: Callable[[float, int], None]
    on_receipts: Callable[[str], None] | None
    decided: list[tuple[str, Event, float, dict[str, Any]]]

    @abstractmethod
    async def begin(self) -> None:
        """Bring to hand what is kept, before anything else is asked. Raises ConfigError where that cannot be."""

    @property
    @abstractmethod
    def newest(self) -> int:
        """An id that all events to come are above, and none that is kept."""

    @property
    def writing(self) -> float:
        """For how many seconds the thread that writes has been at the commit that is under way; 0 where none is, or there is no such thread."""
        return 0.0

    async def has_others(self) -> bool:
        """Whether other nodes serve the same, so that a device may go there."""
        return False

    def waking(self) -> Callable[[Callable[[], None]], None] | None:
        """What calls back when all is at hand that was taken on other nodes while this one slept; None where it is, or nothing was heard of them."""
        return None

    @abstractmethod
    def lags(self, id: int, names: Collection[str]) -> bool:
        """Whether another node may have taken what is not at hand here: of what is up to this id, or of these channels and patterns; with no
        name, of anything. Then `reach` comes first."""

    @abstractmethod
    async def reach(self, id: int, *names: str) -> None:
        """Done when all of that is at hand which was taken before, on whatever node. Raises Unavailable."""

    @abstractmethod
    def follow(self, name: str) -> None:
        """Somebody here waits for what happens on a channel, or on all that a pattern means: it is to be at hand as soon as it is kept, also where
        another node takes it. Once for each time that it is followed it is to be unfollowed."""

    @abstractmethod
    def unfollow(self, name: str) -> None:
        """One of those does not wait any more."""

    @abstractmethod
    def trouble(self) -> str | None:
        """Why nothing can be kept at present; None if all is well."""

    @abstractmethod
    def append(self, draft: Draft, then: Callable[[Accepted | Refusal], None]) -> None:
        """Give the event its id, keep it, open its entry in the ledger, deliver it. Raises Refusal where it cannot be accepted."""

    @abstractmethod
    def record_many(self, receipts: Sequence[Receipt], then: Callable[[list[tuple[int, int] | Refusal]], None]) -> None:
        """Enter receipts in the ledger, in this order, all in one piece of work: states that a device can set, its own words as JSON, and
        when it did it, in seconds since 1970, which counts for the latency, but never as before the event, or as later than now. `then`
        is told once, for each of them, the state that stands and the outcome; or why it could not be kept, which spoils no other: NotFound
        for an event (of this channel, if one is given) and a device that are not known together, Gone for an event that is no longer kept.
        This is called once for each turn of the loop in which there were receipts. It raises nothing."""

    def record(self, channel: str | None, device: str, id: int, state: int, status: builtins.bytes | None, then: Callable[[int, int], None],
               refused: Callable[[Refusal], None], at: float | None = None) -> None:
        """Enter one receipt; `refused` is told why it could not be kept."""
        def told(answers: list[tuple[int, int] | Refusal]) -> None:
            (answer,) = answers
            if isinstance(answer, Refusal):
                refused(answer)
            else:
                then(*answer)

        self.record_many(((device, id, state, status, at, channel),), told)

    @abstractmethod
    def recall(self, channel: str, id: int, then: Callable[[int], None], refused: Callable[[Refusal], None]) -> None:
        """Take an event back: from now on it is sent to nobody, and what devices still owe for it is `cancelled`. `then` is told how many
        that were; or `refused`, why it could not be kept. Raises as `find` does."""

    @abstractmethod
    def open(self, channel: str) -> Shelf:
        """The shelf of a channel, made if there is none."""

    @abstractmethod
    def settled(self, shelf: Shelf, member: Member) -> int:
        """The ordinal up to which a device owes nothing on a channel: where it resumes."""

    @abstractmethod
    def shelf(self, channel: str) -> Shelf | None:
        """What is kept of a channel; None if nothing is."""

    @abstractmethod
    def channels(self) -> Collection[str]:
        """The names of all channels of which anything is kept."""

    @abstractmethod
    def count_channels(self) -> int:
        """How many these are."""

    @abstractmethod
    def seek(self, shelf: Shelf, id: int) -> int:
        """The ordinal of the newest event of a channel that is not above this id; `shelf.first - 1` where all are above."""

    @abstractmethod
    def id_at(self, shelf: Shelf, ordinal: int) -> int:
        """The id of the event with this ordinal; 0 where it is not kept, and so not known."""

    @abstractmethod
    def fetch(self, shelf: Shelf, ordinal: int, then: Callable[[], None]) -> None:
        """Bring an event that is kept, but not at hand, into `shelf.past`, and some that follow it; then say so."""

    @abstractmethod
    async def history(self, channel: str, after: int, limit: int) -> tuple[list[Event], bool]:
        """At most `limit` kept events of a channel above this id, oldest first, as many as are `within` a page; and whether there are more."""

    @abstractmethod
    def recent(self, limit: int) -> list[tuple[Event, Entry | None]]:
        """At most `limit` events, of all channels, the newest first, of those that are at hand; each with its entry in the ledger, None if it asks
        for no receipts. Raises Unavailable."""

    @property
    @abstractmethod
    def newest_record(self) -> int:
        """The number of the newest record of any channel that is visible: those to come are above it."""

    @abstractmethod
    async def records(self, channel: str | None, after: int, limit: int) -> Page:
        """At most `limit` records of a channel, or of all (None), above this number, every one exactly once and as it will always be told. A number that
        was never given, or that is older than what can be vouched for, gives a page that says so. Raises Unavailable."""

    @abstractmethod
    def register(self, channel: str, device: str) -> Member:
        """Take a device into the audience of a channel. Raises Full where no more devices are taken."""

    @abstractmethod
    def has(self, channel: str) -> bool:
        """Whether anything is kept of a channel."""

    @abstractmethod
    def check_room(self, device: str, channels: Collection[str], patterns: Collection[str]) -> tuple[int, int]:
        """Whether all these can be opened, and the device (if there is one) registered on them: how many registrations and how many channels
        that would bring. Raises TooMany where the device would have more than one may have, Full where no more are taken."""

    @abstractmethod
    def want(self, device: str, pattern: str, channels: Iterable[str] | None = None) -> None:
        """Take a device into the audience of every channel that the pattern means, those that are yet to be born included. `channels` are
        those that there are, where somebody has looked for them. Raises Full where no more devices are taken."""

    @abstractmethod
    def arrive(self, device: Device) -> None:
        """A device that wants channels which are yet to be born opens a feed, on whatever channels: however long it was away, it joins those that are born from now on."""

    @abstractmethod
    def is_assured(self, device: str) -> bool:
        """Whether all that the device is registered for is kept."""

    @abstractmethod
    def assure(self, device: str, then: Callable[[Refusal | None], None]) -> None:
        """Call `then` when it is, which may be at once; or with the reason why it cannot be."""

    @abstractmethod
    def unregister(self, channel: str, device: str) -> None:
        """Take a device off one channel; what it still owed there is `cancelled`."""

    @abstractmethod
    def remove(self, device: str) -> Any:
        """Forget a device on all channels and return what was known of it; None if nothing was."""

    @abstractmethod
    def find(self, channel: str, id: int) -> Event:
        """A kept event. Raises NotFound, or Gone where it made way."""

    @abstractmethod
    def pending(self, channel: str, device: str, last: int, limit: int) -> tuple[list[int], bool]:
        """At most `limit` ids, up to `last`, of the kept events of a channel that the device has said nothing of yet, oldest first; and
        whether there may be more. Raises Conflict where too many are open before the first of them."""

    @abstractmethod
    async def status(self, channel: str, id: int) -> dict[str, Any]:
        """The delivery status of an event, as `GET /events/{channel}/{id}` answers it; `version` in it moves with every change.
        Raises as `find` does."""

    @abstractmethod
    def watch(self, channel: str, id: int, then: Callable[[bool], None]) -> tuple[bool, Callable[[], None]]:
        """Call `then` after every change of an event's delivery status, with whether it is decided: satisfied, or never to be. Returns
        whether it is so already, and what ends this. Raises as `find` does."""

    @abstractmethod
    async def lines(self, channel: str, id: int, state: str | None, start: int, limit: int) -> tuple[list[dict[str, Any]], int | None]:
        """At most `limit` devices of an event's audience in this state (`outstanding` is all that owe a receipt), from a slot on, and
        the slot to go on from, or None at the end. The order never changes, so paging misses none while receipts come in."""

    @abstractmethod
    def attempt(self, event: Event, device: str, again: bool) -> int | None:
        """Before an event that is not new is written to a device, for the first time or `again`: which attempt that is. 0 if it has had
        all its attempts, which ends in `expired`; None if it owes no receipt."""

    @abstractmethod
    def owes(self, event: Event, device: str) -> bool:
        """Whether the device still owes a receipt for the event; one that is on its way to be kept counts as given."""

    @abstractmethod
    def owes_all(self, events: Iterable[Event], member: Member) -> bool:
        """Whether it owes one for each of these that asks for receipts. It may be False where that is not at hand."""

    @abstractmethod
    def standing(self, channel: str | None, device: str, id: int) -> tuple[Event, int]:
        """An event (of this channel, if one is given) of whose audience the device is, and the state that stands there: a receipt that is
        on its way to be kept does not show yet. Raises as `record` does, Unavailable included."""

    @abstractmethod
    def pass_on(self, device: str, channel: str, id: int, word: int, delay: float) -> None:
        """A device has said of an event that it is WORKING, or wants it again (RETRY) in so many seconds: tell the nodes on which its feeds are."""

    @abstractmethod
    def documents(self, kind: str) -> dict[str, builtins.bytes]:
        """What was put away under this kind, by name. What is on its way to be kept does not show yet. Raises Unavailable."""

    @abstractmethod
    def document(self, kind: str, name: str) -> builtins.bytes | None:
        """One of these; None if there is none. Raises Unavailable."""

    @abstractmethod
    def names(self, kind: str) -> list[str]:
        """The names of these, in order. Raises Unavailable."""

    @abstractmethod
    def put_away(self, kind: str, name: str, document: builtins.bytes | None, then: Callable[[Refusal | None], None]) -> None:
        """Keep a small document that is not an event, in place of the one of that name; None takes it away. `then` is told when that is
        safe, or why it cannot be. Two that are put away one after the other are kept in that order; in one turn of the loop, together or not at all."""

    @abstractmethod
    def stand(self) -> Stand:
        """How everything stands, for those who watch: on a node that nobody asks as it was on another one a second ago."""

    @abstractmethod
    def oldest_outstanding(self) -> float | None:
        """When the oldest event was accepted that somebody still owes a receipt for; None if nobody owes any."""

    @abstractmethod
    async def settle(self) -> None:
        """Done when everything that this store was told before is kept, or is known not to be."""

    async def save(self) -> int:
        """Save what can be saved before the end, so that less is left for it. Nobody waits for that. Returns how much news of channels and of who is registered there has
        been: as long as it is as much, who has read of them need not read it again."""
        return 0

    async def put_down(self, moved: Iterable[tuple[Shelf, Member]], flushed: Mapping[str, int]) -> dict[str, int]:
        """The first part of `close`, where another process goes on with the feeds and waits for the store: done when it may have it. Nothing is told to this one any more.
        Since `save`, feeds of these members were `moved` from where all others are, which have been written to up to the ordinals `flushed` of their channels. Returns what
        the other need not look for."""
        await self.close()
        return {}

    @abstractmethod
    async def close(self) -> None:
        """Save what is to be saved, at the end. Nothing is asked of the store after that."""

    @abstractmethod
    def sweep(self, now: float, is_used: Callable[[str], bool]) -> None:
        """Expire what is due, and forget channels that are empty and, as `is_used` tells, have no feeds; a bounded piece of work."""
