"""Whose tokens are not good any more, and since when: told to the verifier, and kept over every end of the server.

A revocation is forgotten when no token that it is about can hold any longer. That is known where tokens have a longest age
(`--jwt-max-age`), and else never is, so that a revocation is kept for good.
"""

import logging
from collections.abc import Callable

import orjson

from pere.auth import Verifier
from pere.errors import Refusal
from pere.storage import Store

log = logging.getLogger("pere.admin")

KIND = "revoked"
SWEEP = 60.0  # seconds


class Revocations:
    """Those that there are, in the store and in the verifier; `end` ends the feeds that somebody has here."""

    def __init__(self, store: Store, verifier: Verifier, end: Callable[[str], None]):
        self._store = store
        self._verifier = verifier
        self._end = end

    def look(self) -> None:
        """The store has read all that is kept, at the start or anew: nobody tells of what is in there one by one."""
        for subject, document in self._store.documents(KIND).items():
            self.heard(subject, document)

    def revoke(self, subject: str, then: Callable[[Refusal | None], None]) -> None:
        """Refuse every token of this subject that was issued up to now, from now on; `then` is told when that is kept, or why it is not:
        then it holds as long as this process lives."""
        at = self._store.clock()
        self._verifier.revoke(subject, at)
        self._store.put_away(KIND, subject, orjson.dumps({"at": at}), then)

    def heard(self, subject: str, document: bytes | None) -> None:
        """Another node has done so, or knows that it is of no more use."""
        at = orjson.loads(document)["at"] if document is not None else 0.0
        if at > self._verifier.revoked.get(subject, 0.0):
            self._verifier.revoke(subject, at)
            self._end(subject)

    def due(self, now: float) -> float:
        """Its turn on the wheel has come."""
        for subject in self._verifier.outlived(self._store.clock()):
            self._store.put_away(KIND, subject, None, lambda refusal: None)
        return SWEEP
