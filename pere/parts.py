"""Parts of a server that its settings name, or leave out: the store, the keys of tokens, where webhooks may go, where spans are sent.

What only some servers need is loaded where it is asked for, so that the others start without it.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pere.auth import Verifier
from pere.config import Config, networks, without_password
from pere.errors import ConfigError, installing
from pere.outside import Outside
from pere.storage import Store
from pere.storage.memory import MemoryStore
from pere.storage.sqlite import SqliteStore

if TYPE_CHECKING:  # to import what verifies takes a sixth of a start, and most who try a server have no keys
    from pere.jwks import Jwks
    from pere.keys import Key


def outside_of(config: Config) -> Outside:
    """Where webhooks may go. Raises ConfigError for networks that are none."""
    try:
        return Outside(networks(config.webhook_allow_networks), config.webhook_allow_http)
    except ConfigError as error:
        raise ConfigError(f"--webhook-allow-networks: {error}") from None


def spans_to(url: str) -> Any:
    """What sends spans there; None if they are not wanted. Raises ConfigError where it is not installed."""
    if not url:
        return None
    try:
        from pere.spans import Spans
    except ImportError as error:
        raise ConfigError(f"--otlp needs what `{installing('otel')}` installs ({error})") from None
    return Spans.to(url)


def verifier_of(config: Config) -> Verifier | None:
    """What tells whose a token is; None where there are no keys. Raises ConfigError for keys that cannot be."""
    if not config.has_keys:
        return None
    return Verifier(keys_of(config), config.jwt_audience, config.jwt_leeway, config.jwt_max_age, () if config.jwt_jwks else None)


def jwks_of(config: Config, verifier: Verifier | None) -> "Jwks | None":
    """The document whose keys come and go, if there is one."""
    if verifier is None or not config.jwt_jwks:
        return None
    from pere.jwks import Jwks

    return Jwks(config.jwt_jwks, verifier.fetch)


def keys_of(config: Config) -> list["Key"]:
    """The keys that stand, read out of their file. Raises ConfigError for what is none."""
    if not (config.jwt_secret or config.jwt_public_key):
        return []
    from pere.keys import of_pem, of_secret

    keys = []
    try:
        if config.jwt_secret:
            keys.append(of_secret(config.jwt_secret))
    except ValueError as error:
        raise ConfigError(f"--jwt-secret: {error}") from None
    try:
        if config.jwt_public_key:
            keys += of_pem(Path(config.jwt_public_key).read_bytes())
    except (ValueError, OSError) as error:
        raise ConfigError(f"--jwt-public-key {config.jwt_public_key}: {getattr(error, 'strerror', None) or error}") from None
    return keys


def early_store(config: Config) -> SqliteStore:
    """The store that `--store` names, while another process has it. Raises ConfigError where nothing can be had of it before."""
    kind, _, path = config.store.partition(":")
    if kind != "sqlite" or not path:
        raise ConfigError(f"of --store {kind}: nothing is there before it is free")
    return SqliteStore(config, time.time, path, is_early=True)


def open_store(config: Config, left: Mapping[str, int] = {}) -> Store:
    """The store that `--store` names; where another process had it, with what that has `left`. Raises ConfigError for one that there is not."""
    if config.store == "memory:":
        return MemoryStore(config)
    kind, _, path = config.store.partition(":")
    if kind == "sqlite" and path:
        return SqliteStore(config, time.time, path, left=left)
    if config.is_shared:
        try:
            from pere.storage.redis import RedisStore
        except ImportError as error:
            raise ConfigError(f"--store {kind}: needs what `{installing('redis')}` installs ({error})") from None
        return RedisStore(config, time.time, config.store)
    raise ConfigError(f"--store is memory:, sqlite:PATH or redis://HOST, not {without_password(config.store)!r}")
