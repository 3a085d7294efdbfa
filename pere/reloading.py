"""SIGHUP: what is read again while the server runs, what of it holds at once, and what asks for a restart.

Files are read anew: the certificate and its key, the keys of tokens, and the file of settings (`--config`). First all that is new is looked at, and
then all of it is taken, or where anything is wrong nothing is: a slip of the pen must not take a running server down, nor leave it half changed.
Flags and the environment of a process do not change, so a setting that they give stays as it is whatever the file says.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

from pere.config import Config, flag
from pere.errors import ConfigError
from pere.layers import Layers
from pere.limits import WORDS

log = logging.getLogger("pere")

KEYS = frozenset(("jwt_secret", "jwt_public_key"))

# The settings that hold at once. What is kept, and what nodes must agree on, is not among them, nor is what was told to devices when they came.
LIVE = KEYS | {
    "max_feeds", "max_feeds_per_device", "max_feed_channels", "max_connections", "max_connections_per_peer", "max_feeds_per_peer", "cors_origins", "trusted_proxies",
    "limits_exempt", *(f"{whose}_{word}" for whose in ("peer", "subject") for word in WORDS),
    "ttl", "max_event_bytes", "max_batch_bytes", "max_batch", "max_to", "max_wait", "max_status_bytes", "max_devices", "max_channels", "max_channels_per_device", "max_channels_per_subject",
    "retention_age", "retention_events", "retention_bytes", "max_webhooks", "heartbeat", "stuck_after", "idle_timeout", "head_timeout", "body_timeout",
    "max_held_bytes", "max_pipeline", "drain_delay", "drain_seconds", "watchdog", "metrics_channels", "log_level", "log_format",
}

# Looks at what it is to become, and returns what makes it so. Raises ConfigError where that cannot be, and then has changed nothing.
Renew = Callable[[Config], Callable[[], None]]


class Reloading:
    """`config` is what all parts of the server have; `layers` says what the settings are by now, where they may have changed. `parts` are those that have made something of them."""

    def __init__(self, config: Config, layers: Layers | None, parts: Sequence[Renew]):
        self._config = config
        # As they were said, which is not what they became: a worker has another port, and who is handed a socket another address.
        self._said = layers.config if layers is not None else replace(config)
        self._layers = layers
        self._parts = parts

    def reload(self) -> None:
        """Says in one line what has changed, and what asks for a restart."""
        try:
            said = self._layers.read() if self._layers is not None else self._said
            changed = [each.name for each in fields(Config) if getattr(said, each.name) != getattr(self._said, each.name)]
            live = LIVE if said.has_keys == self._said.has_keys else LIVE - KEYS
            now = {name: getattr(said, name) for name in changed if name in live}
            wanted = self._config.but(now)
            renewed = [renew(wanted) for renew in self._parts]
        except ConfigError as error:
            log.error("not reloaded", extra={"facts": {"error": str(error)}})
            return
        self._config.become(wanted)
        self._said = self._said.but(now)
        for renew in renewed:
            renew()
        facts = {"changed": now, "needs_restart": [name for name in changed if name not in now]}
        log.info("reloaded", extra={"facts": {word: ",".join(map(flag, names)) for word, names in facts.items() if names}})
