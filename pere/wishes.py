"""Who wants a channel that is born: patterns, and for each those who have it, found by a name without a look at all patterns.

Whoever may listen can leave ten thousand patterns here, and every push to a channel that nobody knows asks which of them mean it. So each pattern lies
under one piece of it that is no star, the one under which the fewest lie: only a name with this piece in it can be meant. (Measured with 50,000 patterns of 5,000 devices: 11 s of the
loop where each was tried, as a regular expression that had to be compiled again; now 3 us, and
1.3 ms for a name of 128 letters. Where somebody chose them so that all lie under pieces of the name, two microseconds each: 0.1 s.)
"""

from collections.abc import Iterator
from typing import TypeVar

Whose = TypeVar("Whose")


class Wishes(dict[str, Whose]):
    """Patterns, and whose they are."""

    def __init__(self) -> None:
        super().__init__()
        self._by_piece: dict[str, dict[str, None]] = {}

    def __setitem__(self, pattern: str, whose: Whose) -> None:
        if pattern not in self:
            lying = self._by_piece
            rarest = min(_pieces(pattern), key=lambda piece: (len(lying.get(piece, ())), -len(piece)))
            lying.setdefault(rarest, {})[pattern] = None
        super().__setitem__(pattern, whose)

    def __delitem__(self, pattern: str) -> None:
        super().__delitem__(pattern)
        piece = next(piece for piece in _pieces(pattern) if pattern in self._by_piece.get(piece, ()))
        del self._by_piece[piece][pattern]
        if not self._by_piece[piece]:
            del self._by_piece[piece]

    def setdefault(self, pattern: str, whose: Whose) -> Whose:
        if pattern not in self:
            self[pattern] = whose
        return self[pattern]

    def meaning(self, channel: str) -> Iterator[Whose]:
        """Whose is each pattern that means the channel."""
        if not self:
            return
        by_piece, length = self._by_piece, len(channel)
        if len(by_piece) <= length * (length + 1) // 2:
            found = [piece for piece in by_piece if piece in channel]
        else:
            runs = {channel[start:end] for start in range(length) for end in range(start + 1, length + 1)}
            found = [run for run in ("", *runs) if run in by_piece]
        for piece in found:
            for pattern in by_piece[piece]:
                if means(pattern, channel):
                    yield self[pattern]


def _pieces(pattern: str) -> set[str]:
    """What must stand in every name that it means; "" where that is nothing."""
    return set(pattern.split("*")) - {""} or {""}


def means(pattern: str, channel: str) -> bool:
    """As `names.pattern` has it, for one look: to compile what is looked at once takes a hundred times as long."""
    head, is_open = (pattern[:-2], True) if pattern.endswith("**") else (pattern, False)
    globs = head.split(".")
    parts = channel.split(".", len(globs) - 1 if is_open else -1)
    if len(parts) != len(globs):
        return False
    *globs, last = globs
    return (_ends if is_open else _is)(last, parts[-1]) and all(map(_is, globs, parts))


def _is(glob: str, part: str) -> bool:
    """Each piece between stars is taken where it first fits: if the rest does not fit behind that, it does not behind a later one."""
    first, *pieces = glob.split("*")
    if not pieces:
        return first == part
    *middle, last = pieces
    end = len(part) - len(last)
    return len(first) <= end and part.startswith(first) and part.endswith(last) and _stand(middle, part, len(first), end)


def _ends(glob: str, rest: str) -> bool:
    """The last part of a pattern with any rest behind it; its stars mean no dot."""
    first, *pieces = glob.split("*")
    return rest.startswith(first) and _stand(pieces, rest.partition(".")[0] if pieces else rest, len(first), len(rest))


def _stand(pieces: list[str], text: str, start: int, end: int) -> bool:
    for piece in pieces:
        place = text.find(piece, start, end)
        if place < 0:
            return False
        start = place + len(piece)
    return True
