"""Who comes to speak TLS, before a word of it is said; and who comes in a crowd, before it is a connection.

A handshake costs as much as ten requests, so who cannot stay is cut before it: no answer could be read anyway. One client has only so many
under way, for they may all say at once what is to be computed; its others wait, and each has `--head-timeout` from when it is begun. Who
comes in a crowd (see `listening.py`) and speaks plainly is told why.
"""

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from pere.door import Door
from pere.http1 import Connection
from pere.limits import Account
from pere.peers import of_socket


class Handshakes:
    """`meet` makes what somebody meets who comes this way, `secured` is what the loop is told of TLS, and is empty where that is not spoken."""

    def __init__(self, door: Door, meet: Callable[[], Connection], secured: dict[str, Any]):
        self._door = door
        self._meet = meet
        self._secured = secured
        self._waiting: dict[Account, deque[socket.socket]] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself holds no task

    def take(self, visitor: socket.socket, address: Any) -> None:
        """Somebody has connected."""
        door, gate = self._door, self._door.gate
        account, refusal = gate.enter(of_socket(address), len(door.connections) + door.handshakes)
        if refusal is not None:
            gate.note(refusal)
            if not self._secured:
                with contextlib.suppress(OSError):
                    visitor.send(door.goodbye(refusal), socket.MSG_DONTWAIT)
            visitor.close()
            return
        door.handshakes += 1
        if account is not None and account.handshakes >= door.config.max_handshakes_per_peer:
            self._waiting.setdefault(account, deque()).append(visitor)
        else:
            self._begin(visitor, account)

    def _begin(self, visitor: socket.socket, account: Account | None) -> None:
        if account is not None:
            account.handshakes += 1
        task = asyncio.get_running_loop().create_task(self._shake_hands(visitor, account))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _shake_hands(self, visitor: socket.socket, account: Account | None) -> None:
        connection = self._meet()
        connection.account, connection.is_expected = account, True
        is_made = False
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, visitor, **self._secured)
            is_made = True
        except Exception:  # nosec B110 # whatever a stranger said instead
            pass
        finally:
            self._done(account, is_made)

    def _done(self, account: Account | None, is_made: bool) -> None:
        self._door.handshakes -= 1
        if account is None:
            return
        account.handshakes -= 1
        account.connections -= not is_made
        waiting = self._waiting.get(account)
        if waiting:
            self._begin(waiting.popleft(), account)
        else:
            self._waiting.pop(account, None)

    def close(self) -> None:
        """Nobody else is let in: who waits has said nothing yet."""
        for account, waiting in self._waiting.items():
            account.connections -= len(waiting)
            self._door.handshakes -= len(waiting)
            for visitor in waiting:
                visitor.close()
        self._waiting.clear()
