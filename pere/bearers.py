"""Whose requests are, that were recognised and all have a token: many at once, as they come when ten thousand devices answer one event.

A token that is known costs one look into what is remembered. What that cannot tell for certain is left to the guard: the token is not known,
is that of another device, has expired, or was last found good for something else; or its subject has asked for too much.
"""

from collections.abc import Callable

from pere.auth import Verifier
from pere.gate import Gate


class Bearers:
    """`kind` is what limits count the requests as, `clock` is that of the store, by which tokens expire."""

    def __init__(self, verifier: Verifier, gate: Gate, kind: int, clock: Callable[[], float]):
        self._verifier = verifier
        self._gate = gate
        self._kind = kind
        self._clock = clock

    def of(self, channel: str) -> Callable[[list[tuple[bytes, ...]]], tuple[list[str | None], list[int]]]:
        """What tells of requests on this channel, each (device, event, token, ...), whose they are, and which of that is not certain."""
        known, clock, admits, kind, rate, time = (
            self._verifier.known.get, self._clock, self._gate.admits_subject, self._kind, self._gate.subjects.rates[self._kind], self._gate.time)

        def who(requests: list[tuple[bytes, ...]]) -> tuple[list[str | None], list[int]]:
            # This loop runs once for every receipt, so what is the same for all of a turn is looked up once.
            names: list[str | None] = []
            uncertain: list[int] = []
            now, here = clock(), time()
            interval, window = (rate.interval, rate.window) if rate is not None else (0.0, 0.0)
            taken, last = here + interval, here + window - interval
            for device, _, token, _, _ in requests:
                grant = known(token)
                # Whoever may listen to the channel has been found to, when the token had begun to hold.
                if grant is None or grant.name != device or grant.fed != channel or now >= grant.expires:  # type: ignore[operator]
                    uncertain.append(len(names))
                    names.append(None)
                    continue
                if rate is not None:
                    # As `Rate.take` has it, for a bucket that is full, and for one that has enough in it.
                    buckets = grant.buckets
                    if buckets is not None and (full := buckets[kind]) <= last:
                        buckets[kind] = taken if full <= here else full + interval
                    elif not admits(grant, kind):
                        uncertain.append(len(names))
                        names.append(None)
                        continue
                names.append(grant.subject)
            return names, uncertain

        return who
