"""`GET /receipts/{channel}`: a connection becomes a feed of receipts."""

import re
from collections.abc import Callable

from pere.config import Config
from pere.cors import Cors
from pere.door import Ask
from pere.errors import BadRequest
from pere.followers import Followers
from pere.gate import Gate
from pere.handlers.base import NO_QUERY, Query, channel_of
from pere.handlers.feed import Opening, cursor_of, start_of
from pere.handlers.reaching import Reaching
from pere.names import shown
from pere.storage import Store

NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")  # fits 63 bits


def parse_number(text: str) -> int:
    """The id of a receipt; raises BadRequest if it is none."""
    if NUMBER.fullmatch(text):
        return int(text)
    raise BadRequest("bad_receipt_id", f"the id of a receipt is a whole number, as `id:` told it, not {shown(text)}")


class OpenReceipts:
    """Checks what a follower asks for, then hands it the connection."""

    def __init__(self, store: Store, followers: Followers, config: Config, cors: Cors, gate: Gate, look_again: Callable[[Ask], None]):
        self._reaching = Reaching(store)
        self._followers = followers
        self._gate = gate
        self._look_again = look_again
        self._opening = Opening(config.retry, cors)

    def one(self, ask: Ask) -> None:
        """`GET /receipts/{channel}`."""
        channel = channel_of(ask.path)
        query = Query(ask.query) if ask.query else NO_QUERY
        cursor = cursor_of(ask, query, parse_number)
        start = start_of(query, parse_number)
        is_later = False

        def begin() -> None:
            if is_later:
                self._look_again(ask)
            account = ask.account
            self._gate.check_feeds(account, self._followers.subjects[ask.grant.subject])
            greeting, form = self._opening.greet(ask)
            self._followers.open(ask.outlet(), form, channel, cursor if cursor is not None else start, greeting, ask.grant).count_for(account)

        # Which receipts are new depends on which there were.
        self._reaching.first(ask, 0, (channel,), begin)
        is_later = True
