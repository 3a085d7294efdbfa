"""A conversation in which a request that is like the last one needs no parser.

What it takes to know one is in `alike.py`, and with whom it is answered in `crowd.py`. Here is what stands around that: when nobody may recognise
anything, what is read after all, and how what was recognised is answered where it is not as most are. Whoever reads the bytes says `_read`, and which request
may be learned from is its `_model`.
"""

from pere.alike import Alike, Lessons
from pere.conversation import Conversation
from pere.crowd import AGAIN
from pere.door import Ask, Route
from pere.errors import Refusal

LAST_AGAIN = object()  # as AGAIN, where it is the last on its connection, because the server ends


class Recognising(Conversation):
    """One client's connection, and what its last request has taught."""

    __slots__ = ("_lessons", "_model", "fd")

    _alike: Alike | None
    _model: Ask | None  # what may be learned from, until it is, or is not to be
    _lessons: Lessons | None

    def _read(self, data: bytes) -> None:
        raise NotImplementedError

    def forget(self) -> None:
        """What recognises the next request was learned under other settings."""
        self._alike = self._model = None

    def data_received(self, data: bytes) -> None:
        """Between two requests, one that is like the last one is known at once; all else is read."""
        alike = self._alike
        if alike is not None:
            if self.busy is None:
                match = alike.match(data)
                if match is not None and not self.door.draining:
                    values = match.group(*alike.order)
                    if int(values[-2]) == len(values[-1]) <= alike.max_body:
                        self.busy = AGAIN
                        asked = alike.crowd.asked
                        if not asked:
                            self.door.crowds.gather(alike.crowd)
                        asked.append((self, values, data))
                        return
            else:
                self._settle()
        self._read(data)

    def _settle(self) -> None:
        """The client goes on before what was recognised is answered; and perhaps that is to be read first."""
        if self.busy is AGAIN or self.busy is LAST_AGAIN:
            self.door.crowds.answer()

    def eof_received(self) -> bool:
        self._settle()
        return super().eof_received()

    def read_again(self, data: bytes) -> None:
        """What was recognised may not be what it seems, so it is read as if nothing had been."""
        if self.busy is AGAIN or self.busy is LAST_AGAIN:
            self.busy = None
            self._read(data)

    def pays(self) -> bool:
        """Whether there is room for what was recognised in the account of whoever pays for it."""
        return self._alike is None or self._alike.pays is None or self._alike.pays()

    def answer_again(self, route: Route, answer: bytes | Refusal) -> None:
        """A recognised request that cannot be answered as most are: it is answered as if it had been parsed."""
        if self.busy is not AGAIN and self.busy is not LAST_AGAIN:
            return  # the client went away before its answer was ready
        self.busy = ask = Ask(self, b"", b"", b"", "1.1", self.busy is AGAIN, {}, [], route)
        if isinstance(answer, Refusal):
            ask.refuse(answer)
        else:
            ask.answer(200, answer)

    def _learn(self, data: bytes) -> None:
        """Recognise the next request, if this one was alone and whole in what arrived: then the parser is between two requests."""
        model, self._model = self._model, None
        assert model is not None
        if model.route.is_first:
            self.door.newcomers.learn(model, data)
            return
        if self._closing or self._in_line:
            return
        if self._lessons is None:
            self._lessons = Lessons()
        self._alike = self._lessons.learn(self.door, model, data, self.account)
        if self._alike is not None:
            # What is written to a descriptor does not get encrypted: with none that is one, the door leaves it to the transport.
            self.fd = self.transport.get_extra_info("socket").fileno() if not self.is_secured else -1
