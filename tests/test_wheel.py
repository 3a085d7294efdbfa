"""The timing wheel, turned by hand: nobody's turn comes early, and nobody's more than a tick late."""

import asyncio

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pere.wheel import Wheel

TICK = 0.1


class Hand:
    """A loop whose time goes on when the test says so."""

    def __init__(self, now: float = 1000.0):
        self.now = now
        self.called = None

    def time(self) -> float:
        return self.now

    def call_later(self, delay, callback, *args):
        self.called = self.now + delay, callback, args
        return self

    def cancel(self) -> None:
        self.called = None

    def turn(self, late: float = 0.0) -> None:
        """Let happen what is next, so many seconds late."""
        (due, callback, args), self.called = self.called, None
        self.now = due + late
        callback(*args)


class Item:
    """Notes when its turn came; comes again after each of these pauses."""

    def __init__(self, *pauses: float):
        self.turns = []
        self.pauses = list(pauses)

    def due(self, now: float) -> float:
        self.turns.append(now)
        return self.pauses.pop(0) if self.pauses else 0.0


def wheel_of(slots: int = 16, now: float = 1000.0) -> tuple[Hand, Wheel]:
    hand = Hand(now)
    return hand, Wheel(hand.time, hand.call_later, TICK, slots)


@given(start=st.floats(0, 1e6), delays=st.lists(st.floats(0, 5), max_size=10),
       steps=st.lists(st.floats(0.001, 0.5) | st.floats(0.5, 6) | st.just(TICK), max_size=60))
@example(start=0.0, delays=[0.0], steps=[TICK] * 3)
def test_a_turn_is_never_early_and_comes_within_a_tick(start, delays, steps):
    hand, wheel = wheel_of(now=start)
    waiting = {start + delay: Item() for delay in delays}
    for deadline, item in waiting.items():
        wheel.add(item, deadline - start)
    for step in steps:
        hand.now += step
        wheel.advance(hand.now)
        assert wheel.now == hand.now
        for deadline, item in list(waiting.items()):
            if item.turns:
                assert item.turns == [hand.now]
                assert hand.now >= deadline - 1e-9
                del waiting[deadline]
            else:
                assert hand.now < deadline + TICK + 1e-9


@given(st.lists(st.floats(0.01, 4), min_size=1, max_size=8))
def test_an_item_that_wants_to_come_again_does(pauses):
    hand, wheel = wheel_of()
    item = Item(*pauses)
    wheel.add(item, 0.0)
    for _ in range(350):
        hand.now += TICK
        wheel.advance(hand.now)
    others = item.turns[1:]
    assert item.turns[0] <= 1000.0 + 2 * TICK
    # The wheel is turned once per tick here, which may be most of a tick after the one in which the item became due.
    for pause, one, other in zip(pauses, item.turns[:-1], others, strict=True):
        assert pause - 1e-9 <= other - one <= pause + 2 * TICK + 1e-9


def test_an_item_that_is_done_does_not_come_again():
    hand, wheel = wheel_of()
    item = Item()
    wheel.add(item, 0.05)
    for _ in range(100):
        hand.now += TICK
        wheel.advance(hand.now)
    assert len(item.turns) == 1


def test_a_deadline_beyond_the_wheel_is_met_by_coming_round_again():
    hand, wheel = wheel_of(slots=4)
    item = Item()
    wheel.add(item, 3.05)
    for _ in range(30):
        hand.now += TICK
        wheel.advance(hand.now)
    assert item.turns == []
    hand.now += TICK
    wheel.advance(hand.now)
    assert item.turns == [hand.now]


def test_after_a_long_sleep_everybody_has_one_turn():
    hand, wheel = wheel_of(slots=16)
    items = [Item() for _ in range(40)]
    for number, item in enumerate(items):
        wheel.add(item, number * TICK)
    hand.now += 1e6
    wheel.advance(hand.now)
    assert [item.turns for item in items] == [[hand.now]] * 40
    again = Item()
    wheel.add(again, TICK)
    hand.now += 2 * TICK
    wheel.advance(hand.now)
    assert again.turns == [hand.now]


def test_a_clock_that_stands_still_gives_nobody_a_turn():
    hand, wheel = wheel_of()
    item = Item()
    wheel.add(item, 0.0)
    wheel.advance(hand.now)
    assert item.turns == []
    assert wheel.now == hand.now


def test_an_item_may_put_others_on_the_wheel_in_its_turn():
    hand, wheel = wheel_of()
    other = Item()

    class Parent:
        def due(self, now: float) -> float:
            wheel.add(other, 0.0)
            return 0.0

    wheel.add(Parent(), 0.0)
    for _ in range(3):
        hand.now += TICK
        wheel.advance(hand.now)
    assert len(other.turns) == 1


@given(steps=st.lists(st.tuples(st.floats(0.001, 0.5) | st.floats(0.5, 6) | st.just(TICK), st.lists(st.sampled_from([0.0, TICK, 0.35, 1.0, 3.0]), max_size=4)), max_size=40))
@example(steps=[(6.0, [0.0, 1.0])] * 4)
def test_those_who_wait_equally_long_from_the_newest_tick_on_have_each_their_turn(steps):
    """Whether they come between two turns of the wheel or in the middle of one, as from `due`."""
    hand, wheel = wheel_of()
    waiting: list[tuple[float, Item]] = []

    class Comes(Item):
        delays: list[float] = []

        def due(self, now: float) -> float:
            for delay in self.delays:
                wait(delay)
            return super().due(now)

    def wait(delay: float) -> None:
        waiting.append((wheel.now + delay, Item()))
        wheel.add_alike(waiting[-1][1], delay)

    for step, delays in steps:
        door = Comes()
        door.delays = delays
        wheel.add(door, 0.0)
        for delay in delays:
            hand.now += TICK / 10  # of which the wheel has not heard
            wait(delay)
        hand.now += step
        wheel.advance(hand.now)
        for deadline, item in tuple(waiting):
            if item.turns:
                assert item.turns == [hand.now] and hand.now >= deadline - 1e-9
                waiting.remove((deadline, item))
            else:
                assert hand.now < deadline + TICK + 1e-9
    hand.now += 10
    wheel.advance(hand.now)
    hand.now += 10
    wheel.advance(hand.now)
    assert all(len(item.turns) == 1 for _, item in waiting)


def test_the_mistake_of_one_item_does_not_stop_the_others(caplog):
    class Mistaken:
        def due(self, now: float) -> float:
            raise RuntimeError("mistaken")

    hand, wheel = wheel_of()
    before, after = Item(0.5), Item()
    for item in (before, Mistaken(), after):
        wheel.add(item, 0.05)
    hand.now += 2 * TICK
    wheel.advance(hand.now)
    assert before.turns == after.turns == [hand.now]
    hand.now += 1
    wheel.advance(hand.now)
    assert [record.exc_info[0] for record in caplog.records] == [RuntimeError]
    caplog.clear()


# On a loop


def test_a_wheel_turns_once_per_tick_until_it_is_stopped():
    hand, wheel = wheel_of()
    item = Item()
    wheel.add(item, 0.25)
    wheel.start()
    for _ in range(4):
        hand.turn()
    assert len(item.turns) == 1
    wheel.stop()
    assert hand.called is None
    wheel.stop()


def test_a_wheel_tells_how_late_it_turned():
    hand, wheel = wheel_of()
    lags = []
    wheel.on_turn = lags.append
    wheel.start()
    for late in (0.0, 2.5, 0.0):
        hand.turn(late)
        assert wheel.lag == lags[-1]
    assert lags == pytest.approx([0.0, 2.5, 0.0])


async def test_a_wheel_turns_on_a_real_loop():
    loop = asyncio.get_running_loop()
    wheel = Wheel(loop.time, loop.call_later, tick=0.001, slots=8)
    came = asyncio.Event()

    class Waiting:
        def due(self, now: float) -> float:
            came.set()
            return 0.0

    wheel.add(Waiting(), 0.02)
    wheel.start()
    await came.wait()
    wheel.stop()
