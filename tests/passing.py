"""Time is handed in: so much of it passes for all deadlines, and no more than a moment for anybody else."""

from pere.wheel import Wheel


def passes(wheel: Wheel, seconds: float) -> None:
    """What is due within so many seconds has its turn."""
    now = wheel.time
    wheel.time = lambda: now() + seconds
    wheel.advance(wheel.time())
