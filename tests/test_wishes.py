"""Which patterns mean a channel that is born, found without a look at each."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pere.names import pattern
from pere.wishes import Wishes, means

NAMES = st.text("ab.", min_size=1, max_size=12)
PATTERNS = st.tuples(st.text("ab.*", min_size=0, max_size=12).filter(lambda text: "**" not in text), st.sampled_from(["", "**", "*"])).map("".join).filter(
    lambda text: text and "**" not in text[:-2])


@given(PATTERNS, NAMES)
def test_a_pattern_means_what_it_means_everywhere(text, name):
    assert means(text, name) == bool(pattern(text)(name))


@given(st.lists(st.tuples(st.booleans(), PATTERNS, st.integers(0, 2)), max_size=60), st.lists(NAMES, min_size=1, max_size=5))
def test_those_who_want_a_channel_are_found_whoever_came_and_went(deeds, names):
    wishes, plain = Wishes(), {}
    for is_new, text, who in deeds:
        if is_new:
            wishes.setdefault(text, set()).add(who)
            plain.setdefault(text, set()).add(who)
        elif text in plain:
            del plain[text], wishes[text]
    assert wishes == plain
    for name in names:
        assert Counter(map(frozenset, wishes.meaning(name))) == Counter(frozenset(found) for text, found in plain.items() if pattern(text)(name))
    for text in plain:
        del wishes[text]
    assert not wishes and not wishes._by_piece


class Watched(dict):
    """Counts which of them are looked at."""

    looks = 0

    def __iter__(self):
        for each in super().__iter__():
            self.looks += 1
            yield each


def test_patterns_that_cannot_mean_a_name_are_not_looked_at():
    wishes = Wishes()
    for n in range(5_000):
        wishes[f"*a{n}*.x"] = n
        wishes[f"till-{n}.*"] = n
    wishes["**"] = "all"
    wishes._by_piece = {piece: Watched(found) for piece, found in wishes._by_piece.items()}
    assert set(wishes.meaning("till-77.a")) == {77, "all"}
    assert list(wishes.meaning("till-77.a77.x")) == ["all"]
    assert sum(found.looks for found in wishes._by_piece.values()) < 50
