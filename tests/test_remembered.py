"""What a function has answered is not asked of it again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pere.remembered import remembered


@given(st.lists(st.integers(0, 12)), st.integers(1, 8))
def test_whatever_is_asked_is_answered_as_the_function_does_and_so_many_answers_are_kept(asked, most):
    kept: set[int] = set()
    done: list[int] = []

    def square(number: int) -> int:
        done.append(number)
        return number * number

    answer = remembered(most)(square)
    for number in asked:
        done.clear()
        assert answer(number) == number * number
        assert done == ([] if number in kept else [number])
        if number not in kept and len(kept) >= most:
            kept.clear()
        kept.add(number)


def test_what_is_raised_is_not_remembered():
    answers = {}
    answer = remembered(2)(lambda word: answers[word])
    for _ in range(2):
        with pytest.raises(KeyError):
            answer("a")
    answers["a"] = None
    assert answer("a") is None
    answers["a"] = 1
    assert answer("a") is None
