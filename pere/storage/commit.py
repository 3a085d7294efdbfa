"""One commit: what is on its way to the disk, and who is told what becomes of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

from pere.audience import Member
from pere.entry import Entry
from pere.errors import Refusal
from pere.event import Draft, Event
from pere.ledger import Row
from pere.storage import Accepted
from pere.storage.reading import DiskShelf
from pere.storage.together import Part

Told = Callable[[int, int], None]
Refused = Callable[[Refusal], None]
Assured = Callable[[Refusal | None], None]
Change = tuple[Row, "Part | Asker | None"]  # and who is told what becomes of it


class Asker(NamedTuple):
    """Who is told of another change: which state it came to, on how many devices; or why it could not be kept."""

    told: Told
    refused: Refused


class Commit:
    """What is on its way to the disk, and what is to be done when it is there."""

    def __init__(self, newest: int) -> None:
        self.newest = newest  # the id of the newest event before those that are in it
        self.newest_record = 0
        self.events: list[tuple[DiskShelf, Event, Draft, int, bytes, Callable[[Accepted | Refusal], None]]] = []
        self.changes: list[tuple[int, list[Change]]] = []
        self.shelves: list[DiskShelf] = []
        self.answers: list[Callable[[], None]] = []
        self.recalls: list[tuple[int, Told, Refused]] = []
        self.documents: list[tuple[str, str, bytes | None, Assured]] = []
        self.saved: dict[Entry, int] = {}
        self.members: dict[Member, DiskShelf] = {}
        self.fresh: dict[str, list[Assured]] = {}
        self.left: list[tuple[Any, ...]] = []
        self.wishes: list[tuple[str, tuple[Any, ...]]] = []
        self.is_pruning = False
