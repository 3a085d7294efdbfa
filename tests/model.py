"""What PERE must do, as a page of lists and dicts: audience, states, attempts, where a feed begins, and what comes to an end.

Nothing here is clever, shared or kept for speed: who wants to know something goes through everything there is. The id of an event
is taken from the server and all else follows. `soak.py` does the same things to this and to a real server, and compares.

It is one file, though a long one: whoever doubts what is right reads it from end to end, beside the README, and each promise stands in it once.
"""

import math
from dataclasses import dataclass, field
from typing import Any

RANKS = {"pending": 0, "delivered": 2, "expired": 3, "cancelled": 3, "processed": 4, "failed": 4}


@dataclass
class Limits:
    """Seconds and counts. `per_channel` is None where the events of all channels together are bounded, in number and in `age`."""

    per_channel: int | None
    overall: int = 10**9
    age: int = 10**9
    keep_expired: int = 10**9
    attempts: int = 3
    feeds: int = 2
    key_window: int = 50
    device_ttl: int = 1000
    stuck_after: float = 59.5
    at_hand: int = 10**9  # events of a channel


@dataclass
class Told:
    """What is known of one device and one event."""

    state: str = "pending"
    late: bool = False
    resends: int = 0
    status: Any = None
    latency: float | None = None


@dataclass(eq=False)
class Member:
    """A registration of a device on a channel. `position` is the ordinal of the last event that was written to the device."""

    device: str
    position: int
    seen: int
    answered: int = 0
    fed: bool = False  # it had a feed here
    safe: tuple[int, int] = (0, 0)  # how far it had come, and when it was last heard of, as far as a crash cannot take it back


@dataclass(eq=False)
class Event:
    """`told` holds the audience, and `who` by which registration each of them may answer: None is by its name."""

    id: int
    ordinal: int
    channel: str
    data: Any
    level: str
    to: tuple[str, ...]
    time: int
    expires: int
    told: dict[str, Told]
    who: dict[str, Member | None]
    need: int
    is_satisfied: bool = False  # or was once
    recalled: bool = False
    is_noticed: bool = False  # as one whose time in memory is over


@dataclass(eq=False)
class Channel:
    """`gone` is the newest id that made way, `first` the ordinal of the first event that is kept, or is to come. `waiting` are devices
    that were addressed before they were ever seen here, with the ordinal of the first such event that is kept."""

    name: str
    events: list[Event] = field(default_factory=list)
    members: dict[str, Member] = field(default_factory=dict)
    waiting: dict[str, int] = field(default_factory=dict)
    last: int = 0
    first: int = 1
    gone: int = 0


@dataclass(eq=False)
class Feed:
    """`at` is by channel the ordinal up to which it was given everything; `given` what the client must find, and has not read yet."""

    device: str
    is_envelope: bool
    patterns: tuple[str, ...]
    at: dict[str, int] = field(default_factory=dict)
    given: list[tuple[Any, ...]] = field(default_factory=list)
    full_since: int | None = None


def means(pattern: str, channel: str) -> bool:
    """The patterns of these tests: `x.*` is one more part, `**` is everything."""
    return pattern == "**" or (channel.startswith("x.") and channel.count(".") == 1)


def owes(state: str, level: str) -> bool:
    return state == "pending" or (state == "delivered" and level == "processed")


def answered(state: str, word: str, level: str) -> tuple[str, str]:
    """The state after a receipt, and what became of the receipt."""
    if state in ("expired", "cancelled"):
        return (state, "duplicate") if owes(word, level) else (word, "late")
    if RANKS[word] > RANKS[state]:
        return word, "accepted"
    return state, "conflict" if RANKS[word] == RANKS[state] and word != state else "duplicate"


class Model:
    def __init__(self, limits: Limits, now: int, born: int):
        self.limits, self.now, self.born = limits, now, born
        self.channels: dict[str, Channel] = {}
        self.feeds: list[Feed] = []
        self.wishes: dict[str, set[str]] = {}
        self.seen: dict[str, int] = {}  # when a feed of the device last came or went
        self.removed: dict[str, int] = {}
        self.keys: dict[tuple[str, str], tuple[int, int, int]] = {}  # when, which event, and for how many

    def events(self) -> list[Event]:
        return sorted((event for channel in self.channels.values() for event in channel.events), key=lambda event: event.id)

    def event(self, id: int) -> Event | None:
        return next((event for event in self.events() if event.id == id), None)

    def open(self, name: str) -> Channel:
        """A channel; at its birth all join who wanted it, and all who listen for it."""
        if name not in self.channels:
            channel = self.channels[name] = Channel(name)
            for device in self.joining(name):
                member = self.join(channel, device)
                member.seen = self.now if self.is_online(device) else self.seen[device]
                member.safe = (member.safe[0], member.seen)
            for feed in self.feeds:
                if any(means(pattern, name) for pattern in feed.patterns):
                    feed.at[name] = 0
                    if feed.device:
                        channel.members[feed.device].fed = True
        return self.channels[name]

    def joining(self, name: str) -> list[str]:
        """Who has asked for channels of such a name, and has not been away for too long."""
        return [device for device, patterns in self.wishes.items() if any(means(pattern, name) for pattern in patterns)
                and (self.is_online(device) or self.seen[device] >= self.now - self.limits.device_ttl)]

    def join(self, channel: Channel, device: str) -> Member:
        """What was addressed to the device before it was ever seen is still owed."""
        if device not in channel.members:
            position = channel.waiting.pop(device, channel.last + 1) - 1
            channel.members[device] = Member(device, position, self.now, safe=(position, self.now))
        return channel.members[device]

    def owing(self, event: Event, device: str) -> Told | None:
        """What the device must still answer, if it must."""
        return event.told[device] if self.may_answer(event, device) and owes(event.told[device].state, event.level) else None

    def may_answer(self, event: Event, device: str) -> bool:
        return device in event.who and event.who[device] in (None, self.channels[event.channel].members.get(device))

    # Publishers

    def audience(self, name: str, to: tuple[str, ...]) -> dict[str, Member | None]:
        if to or name not in self.channels:
            return dict.fromkeys(to or self.joining(name))
        return dict(self.channels[name].members)

    def need(self, wanted: int | str | None, audience: int) -> int | None:
        """How many receipts satisfy; None if there can never be so many."""
        count = audience if wanted in (None, "all") else math.ceil(audience / 2) if wanted == "50%" else int(wanted or 0)
        return count if count <= audience else None

    def known_key(self, name: str, key: str) -> tuple[int, int] | None:
        at, id, audience = self.keys.get((name, key), (-10**9, 0, 0))
        return (id, audience) if key and at > self.now - self.limits.key_window else None

    def push(self, id: int, name: str, data: Any, level: str, to: tuple[str, ...], ttl: int, need: int | str | None, key: str) -> Event:
        channel = self.open(name)
        who = self.audience(name, to)
        channel.last += 1
        event = Event(id, channel.last, name, data, level, to, self.now, self.now + ttl, {}, {}, 0)
        if level != "none":
            event.who, event.told = who, {device: Told() for device in who}
            event.need = self.need(need, len(who)) or 0
        event.is_satisfied = not event.need
        if key:
            self.keys[name, key] = (self.now, id, len(who))
        channel.events.append(event)
        for feed in self.feeds:
            if name in feed.at:
                self._broadcast(feed, event)
        for device in to:
            if device not in channel.members:
                channel.waiting.setdefault(device, event.ordinal)
        self.make_room()
        return event

    def _broadcast(self, feed: Feed, event: Event) -> None:
        if feed.full_since is not None:
            return
        if self._is_for(event, feed):
            self._give(feed, event, 1)
        self._wrote(feed, event.channel, event.ordinal)

    def recall(self, event: Event) -> int:
        """How many owe nothing for it any more. Who has it is told."""
        owed = [told for told in event.told.values() if owes(told.state, event.level)]
        for told in owed:
            told.state = "cancelled"
        for feed in self.feeds if not event.recalled else ():
            if feed.at.get(event.channel, 0) >= event.ordinal and self._is_for(event, feed):
                feed.given.append(("cancel", event.id, True))
        event.recalled = True
        return len(owed)

    def _is_for(self, event: Event, feed: Feed) -> bool:
        return not event.to or feed.device in event.to

    def _give(self, feed: Feed, event: Event, attempt: int) -> None:
        feed.given.append((event.id, event.data, attempt if feed.is_envelope else None))

    def _wrote(self, feed: Feed, name: str, ordinal: int) -> None:
        feed.at[name] = ordinal
        member = self.channels[name].members.get(feed.device)
        if member is not None:
            member.position = max(member.position, ordinal)

    # Devices

    def connect(self, device: str, channels: tuple[str, ...], patterns: tuple[str, ...], is_envelope: bool, start: int | None,
                cursor: int | None) -> Feed:
        """`cursor` is what the client has read up to, `start` after which id it asks to begin (0 is everything)."""
        feed = Feed(device, is_envelope, patterns)
        meant = [*channels, *(name for name in self.channels if name not in channels and any(means(pattern, name) for pattern in patterns))]
        for name in meant:
            if device:
                self.join(self.open(name), device)
        mine = [other for other in self.feeds if device and other.device == device]
        if len(mine) >= self.limits.feeds:
            self.end(mine[0], "replaced")
        self.seen[device] = self.now
        if device:
            self.wishes.setdefault(device, set()).update(patterns)
            self.removed.pop(device, None)
        gaps: list[tuple[Any, ...]] = []
        found: list[tuple[Event, int]] = []
        for name in meant:
            self._begin(feed, self.open(name), start, cursor, gaps, found)
        feed.given += gaps
        for event, attempt in sorted(found, key=lambda each: each[0].id):
            self._give(feed, event, attempt)
        for name in meant:
            self._wrote(feed, name, self.channels[name].last)
            if device:
                member = self.channels[name].members[device]
                member.fed, member.seen = True, self.now
        self.feeds.append(feed)
        return feed

    def _begin(self, feed: Feed, channel: Channel, start: int | None, cursor: int | None, gaps: list[tuple[Any, ...]],
               found: list[tuple[Event, int]]) -> None:
        """What a feed that has just connected is given of a channel."""
        member = channel.members.get(feed.device)
        after = start if cursor is None else cursor
        is_known = member is not None and (member.fed or member.position < channel.last)
        asks = cursor is None and start is not None
        to = channel.events[0].id if channel.events else None
        has_missed = is_known and member.position < channel.first - 1
        if has_missed:
            # The id of what it was last written is told where it happens to be known still.
            gaps.append(("gap", channel.name, after or Ellipsis, to, channel.first - 1 - member.position))
        if after and (after < max(channel.gone, self.born) if asks or not is_known else after < channel.gone and not has_missed):
            gaps.append(("gap", channel.name, after, to, None))
        for event in channel.events:
            if event.expires <= self.now or not self._is_for(event, feed):
                continue
            if event.recalled:
                # Where the client begins to read there is only what the file has at hand.
                has = event.ordinal <= member.position if is_known else cursor is not None and event.id <= cursor
                if has:
                    feed.given.append(("cancel", event.id, event.ordinal > channel.last - self.limits.at_hand))
                continue
            told = self.owing(event, feed.device) if member is not None else None
            is_after = after is not None and event.id > after
            if told is not None and not (is_after and not is_known):
                attempt = self._attempt(told, event.ordinal <= member.position)
            elif is_known and not asks:
                attempt = event.level == "none" and (is_after if cursor is not None else event.ordinal > member.position)
            else:
                attempt = int(is_after)
            if attempt:
                found.append((event, int(attempt)))

    def _attempt(self, told: Told, is_again: bool) -> int:
        """Which attempt this is; 0 if it had all of them."""
        if not is_again:
            return 1
        if told.resends + 1 >= self.limits.attempts:
            told.state = "expired"
            return 0
        told.resends += 1
        return told.resends + 1

    def fill(self, feed: Feed) -> None:
        """Its socket takes nothing more. What was written last waits at the server."""
        feed.full_since = self.now

    def read_on(self, feed: Feed) -> None:
        """The client has read everything: the feed catches up."""
        feed.full_since = None
        found = []
        for name, at in feed.at.items():
            channel = self.channels[name]
            if at + 1 < channel.first:
                feed.given.append(("gap", name, Ellipsis, channel.events[0].id if channel.events else None, channel.first - 1 - at))
            found += [event for event in channel.events if event.ordinal > at and event.expires > self.now
                      and not event.recalled and self._is_for(event, feed)]
            self._wrote(feed, name, channel.last)
        for event in sorted(found, key=lambda event: event.id):
            self._give(feed, event, 1)

    def end(self, feed: Feed, reason: str) -> None:
        """A client that reads is told why; to a full socket nothing more gets through, not even what waited."""
        self.feeds.remove(feed)
        self.seen[feed.device] = self.now
        feed.given = [("bye", reason)] if feed.full_since is None and reason not in ("gone", "slow") else []
        for name in feed.at:
            if feed.device in self.channels[name].members:
                self.channels[name].members[feed.device].seen = self.now

    def answer(self, channel: str | None, device: str, id: int, word: str, status: Any) -> tuple[str, str]:
        """The state that stands and what became of the receipt; or why it is refused."""
        event = self.event(id)
        if event is None or event.level == "none" or channel not in (None, event.channel) or not self.may_answer(event, device):
            meant = [channel] if channel else [name for name in self.channels if device in self.channels[name].members]
            is_gone = any(name in self.channels and id <= self.channels[name].gone for name in meant) and (event is None or event.channel not in meant)
            return "", "gone" if is_gone else "unknown"
        told = event.told[device]
        member = self.channels[event.channel].members.get(device)
        if member is not None:
            member.answered = self.now
        told.state, outcome = answered(told.state, word, event.level)
        if outcome in ("accepted", "late"):
            told.late = told.late or outcome == "late"
            told.status = told.status if status is None else status
            told.latency = self.now - event.time if told.latency is None else told.latency
        event.is_satisfied = event.is_satisfied or self.good(event) >= event.need
        return told.state, outcome

    def good(self, event: Event) -> int:
        """How many devices have it, by what the push asked for."""
        enough = ("processed", "delivered") if event.level == "delivered" else ("processed",)
        return sum(told.state in enough for told in event.told.values())

    def remove(self, device: str) -> bool:
        """Whether there was such a device."""
        known = device in self.wishes or any(device in channel.members for channel in self.channels.values())
        for feed in [feed for feed in self.feeds if feed.device == device]:
            self.end(feed, "kicked")
        for channel in self.channels.values():
            self.leave(channel, device)
        self.wishes.pop(device, None)
        if known:
            self.removed[device] = self.now
        return known

    def leave(self, channel: Channel, device: str) -> None:
        if device in channel.members:
            for event in channel.events:
                told = self.owing(event, device)
                if told is not None:
                    told.state = "cancelled"
            del channel.members[device]

    # Time, and room

    def wait(self, seconds: int) -> None:
        self.now += seconds
        for feed in list(self.feeds):
            if feed.full_since is not None and self.now - feed.full_since >= self.limits.stuck_after:
                self.end(feed, "slow")
        # Who is away for too long when an event's time is over: a file finds the one first, and memory the other.
        for end in (self._expire, self._leave) if self.limits.per_channel is not None else (self._leave, self._expire):
            end()
        self.make_room(is_swept=True)
        for channel in self.channels.values():
            for member in channel.members.values():
                # When it last answered is kept by the hour: a device is gone after days.
                member.safe = (member.position, max(member.seen, member.answered // 3600 * 3600))

    def _expire(self) -> None:
        for event in self.events():
            if event.expires <= self.now:
                for told in event.told.values():
                    if owes(told.state, event.level):
                        told.state = "expired"

    def _leave(self) -> None:
        for channel in self.channels.values():
            for member in list(channel.members.values()):
                is_there = any(feed.device == member.device and channel.name in feed.at for feed in self.feeds)
                if not is_there and max(member.seen, member.answered) < self.now - self.limits.device_ttl:
                    self.leave(channel, member.device)
                    if not self.is_online(member.device) and not any(member.device in other.members for other in self.channels.values()):
                        self.wishes.pop(member.device, None)
        for device in list(self.wishes):
            # It wanted channels that never came.
            is_registered = any(device in channel.members for channel in self.channels.values())
            if not self.is_online(device) and not is_registered and self.seen[device] < self.now - self.limits.device_ttl:
                del self.wishes[device]

    def make_room(self, is_swept: bool = False) -> None:
        """What is over for long goes when it `is_swept`; what there is no room for, at once."""
        limits, events = self.limits, self.events()
        old = {event.id for event in events[: max(0, len(events) - limits.overall)]}
        old |= {event.id for event in events if event.time < self.now - limits.age}
        for channel in self.channels.values():
            over = [event for event in channel.events if event.id in old]
            if limits.per_channel is not None:
                over = channel.events[: max(0, len(channel.events) - limits.per_channel)]
            past = [event for event in channel.events if is_swept and event.expires + limits.keep_expired <= self.now]
            if any(not event.is_noticed for event in past):
                # From the front only: one that an older, longer-lived event stands before goes together with that one.
                over += [event for place, event in enumerate(channel.events) if event not in over and set(channel.events[: place + 1]) <= {*past, *over}]
            for event in past:
                event.is_noticed = True
            for event in over:
                channel.events.remove(event)
                channel.first, channel.gone = event.ordinal + 1, event.id
            self._wait_on(channel)

    def _wait_on(self, channel: Channel) -> None:
        for device, ordinal in list(channel.waiting.items()):
            if ordinal < channel.first:
                del channel.waiting[device]
                later = [event.ordinal for event in channel.events if device in event.to]
                if later:
                    channel.waiting[device] = later[0]

    def forget(self, name: str) -> bool:
        """A channel of which nothing is left may be forgotten: whether it is one."""
        channel = self.channels[name]
        return not channel.events and not channel.members and not any(name in feed.at for feed in self.feeds) and self.channels.pop(name) is channel

    def restart(self) -> None:
        """The process ends, and another one goes on with what is on the disk."""
        for feed in list(self.feeds):
            self.end(feed, "drain")
        self.removed.clear()

    def reload(self, knows_who_waits: bool) -> None:
        """Who is waited for is found in the events again, where it is not kept, nobody counts as quiet, and what is over is looked at again."""
        self.seen = dict.fromkeys(self.wishes, self.now)
        for event in self.events():
            event.is_noticed = False
        if knows_who_waits:
            return
        for channel in self.channels.values():
            channel.waiting = {}
            for event in channel.events:
                for device in event.to if event.expires > self.now else ():
                    if device not in channel.members:
                        channel.waiting.setdefault(device, event.ordinal)

    # What is told

    def status(self, event: Event) -> dict[str, Any]:
        states = [self.state(event, device) for device in event.told]
        return {
            "counts": {state: states.count(state) for state in ("pending", "sent", "delivered", "expired", "cancelled", "processed", "failed")},
            "audience": len(states),
            "outstanding": sum(owes(told.state, event.level) for told in event.told.values()),
            "need": event.need,
            "recalled": event.recalled,
            "satisfied": event.is_satisfied,
            "complete": self.good(event) + states.count("failed") == len(states),
        }

    def state(self, event: Event, device: str) -> str:
        told = event.told[device]
        return "sent" if told.state == "pending" and self.is_sent(event, device) else told.state

    def is_sent(self, event: Event, device: str) -> bool:
        """Who was let go and came back has another registration, and was sent nothing of before, though its position is past that."""
        member = self.channels[event.channel].members.get(device)
        return member is not None and self.may_answer(event, device) and member.position >= event.ordinal

    def is_online(self, device: str) -> bool:
        return any(feed.device == device for feed in self.feeds)
