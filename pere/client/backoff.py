"""How long to wait before the next try: more and more, anywhere between nothing and the whole, until something worked."""

import random

# Full jitter (a wait is anywhere between nothing and the whole) spreads a fleet that lost its server at one moment.
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
# What a server may wish for, in `retry:`, in Retry-After and in `pere.bye`: no busy loop, and no farewell for ever.
SHORTEST_WISH, LONGEST_WISH = 0.1, 3600.0


class Backoff:
    """The waits of one who tries, in seconds."""

    def __init__(self) -> None:
        self._first = self._whole = FIRST_WAIT
        self._wish: float | None = None

    def reset(self, first: float | None = None) -> None:
        """Something worked. `first` is the whole of the next wait, if the server has a wish."""
        if first is not None:
            self._first = min(max(first, SHORTEST_WISH), LONGEST_WISH)
        self._whole = self._first

    def come_back(self, seconds: float) -> None:
        """The server said goodbye, and when to come back: it spreads its feeds itself, so that is the next wait."""
        self._wish = min(max(seconds, SHORTEST_WISH), LONGEST_WISH)

    def next(self, error: Exception | None = None) -> float:
        """How long to wait after this error; what its `retry_after` says comes first."""
        if self._wish is not None:
            wait, self._wish = self._wish, None
            return wait
        wait = random.uniform(0, self._whole)
        self._whole = min(2 * self._whole, max(LONGEST_WAIT, self._first))
        return wait + min(getattr(error, "retry_after", None) or 0, LONGEST_WISH)
