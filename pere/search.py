"""Which channels a feed asks for by patterns: of those that there are, the ones that a pattern means.

There may be a hundred thousand channels, and a hundred patterns in one request, so who looks does so piece by piece. A channel may come into
being meanwhile, or be forgotten: what is found is true at the moment at which it is asked for, and nothing may await between that and the opening.
"""

from collections.abc import Iterable

from pere.names import pattern
from pere.storage import Store

PIECE = 1_000  # looks at a name, in one piece of work: half a millisecond


class Search:
    """`looks` is how many there will be: each pattern at each channel, at worst."""

    def __init__(self, store: Store, channels: Iterable[str], patterns: Iterable[str]):
        self._store = store
        self._found = dict.fromkeys(channels, True)  # and whether they were named, or only meant
        self._tests = [pattern(each) for each in patterns]
        self._names = list(store.channels()) if self._tests else []
        self._seen: set[str] = set()
        self.looks = len(self._names) * len(self._tests)

    def step(self) -> bool:
        """Look at some more. Returns whether there are others left."""
        start = len(self._seen)
        some = self._names[start : start + max(1, PIECE // max(1, len(self._tests)))]
        self._seen.update(some)
        self._look(some)
        return len(self._seen) < len(self._names)

    def found(self) -> list[str]:
        """All channels that are meant, now that each was looked at: those that were born meanwhile too, and none that was forgotten."""
        if self._tests:
            self._look([name for name in self._store.channels() if name not in self._seen])
        return [name for name, is_named in self._found.items() if is_named or self._store.has(name)]

    def _look(self, names: list[str]) -> None:
        for name in names:
            if any(test(name) for test in self._tests):
                self._found.setdefault(name, False)
