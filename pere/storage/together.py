"""Receipts that were said together, and are answered together, though they are kept apart."""

from collections.abc import Callable
from typing import Any

from pere.errors import Refusal


class Together:
    """The answers to receipts that were said together; `then` is told all of them when the last is there."""

    __slots__ = ("answers", "then", "_left")

    def __init__(self, count: int, then: Callable[[list[Any]], None]):
        self.answers: list[Any] = [None] * count
        self.then = then
        self._left = count

    def answer(self, places: list[int], answers: list[Any]) -> None:
        """Those in these places are answered so."""
        for place, answer in zip(places, answers, strict=True):
            self.answers[place] = answer
        self._left -= len(places)
        if not self._left:
            self.then(self.answers)

    def told(self, place: int, state: int, outcome: int) -> None:
        self.answer([place], [(state, outcome)])

    def refused(self, place: int, refusal: Refusal) -> None:
        self.answer([place], [refusal])


class Part:
    """Those of them that are for one channel: they go into one commit, so they are answered in their order, or refused. One object for
    them all, because one for each would cost as much as to enter it."""

    __slots__ = ("answers", "places", "_together")

    def __init__(self, together: Together):
        self.places: list[int] = []
        self.answers: list[Any] = []
        self._together = together

    def answer(self) -> None:
        """Some have their answers."""
        if len(self.answers) == len(self.places):
            self._together.answer(self.places, self.answers)

    def refused(self, refusal: Refusal) -> None:
        self.answers.append(refusal)
        self.answer()
