"""Every setting of the server: its name, unit, default, reason and limits, in one place.

One field here is one flag of `pere serve`, one `PERE_*` variable and one row of the README's table; nothing is
listed twice. What wins over what is said in `layers.py`. Durations are seconds, sizes are bytes.
"""

import ipaddress
import os
import re
import typing
from collections.abc import Container, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any

from pere.errors import ConfigError

KIB, MIB = 1024, 1024 * 1024
DAY = 86_400

SHARED = ("redis://", "rediss://", "unix://", "redis+sentinel://")  # how the address of a store begins that several nodes share

ORIGIN = re.compile(r"(?!https://.*:443$|http://.*:80$)[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[^\s/?#@,:*\[\]A-Z]+)(:[0-9]{1,5})?")
UNIX_MODE = re.compile("0?[0-7]{3}")
# Between the user's name and the last @, and what redis-py takes from the query.
PASSWORDS = re.compile(r"(?<=://)([^/@:]*:).*(?=@)|([?&]password=)[^&]*")

SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False, "": False}
# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
LINKS = ": Kubernetes sets it so for a service of this name (say `enableServiceLinks: false` in the pod)"
VISITORS = ("PERE_URL", "PERE_TOKEN", "PERE_WEBHOOK_SECRET")  # variables of those who visit a server, and of those whom it visits
LINKED = re.compile(r"PERE_(SERVICE|PORT_[0-9]+)_\w+")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def setting(default: Any, help: str, *, low: float | None = None, high: float | None = None,
            choices: tuple[str, ...] = (), hidden: tuple[str, ...] = (), secret: bool = False) -> Any:
    """A field of Config: `low` and `high` are the limits that a number must keep, `choices` the words that are allowed, and
    `hidden` those that are too, but that nobody should want outside of a test. What is `secret` is not shown."""
    return field(default=default, repr=not secret, metadata={"help": help, "low": low, "high": high, "choices": choices, "hidden": hidden})


@dataclass(frozen=True, kw_only=True)
class Config:
    """What a server is told before it starts. Raises ConfigError where a value cannot be."""

    config: str = setting("", "a file of TOML with any of these settings, each under its name (`max_feeds = 500`); a variable or a flag wins over it. SIGHUP reads it again")

    # where
    host: str = setting("127.0.0.1", "address to listen on; any other than loopback needs keys, or --insecure")
    port: int = setting(4567, "port to listen on; 0 takes a free one and says which", low=0, high=65_535)
    reuse_port: bool = setting(False, "let other nodes on this machine listen on the same port, each for its share of the connections (SO_REUSEPORT)")
    workers: int = setting(1, "processes that serve, each a node of its own, on one port and one Redis; for more than one processor", low=1, high=256)
    insecure: bool = setting(False, "serve beyond loopback without keys: whoever reaches the port may push, read and administer")
    store: str = setting("sqlite:pere.db", "where events and receipts are kept: `sqlite:PATH` in a file, `memory:` only as long as the process lives, `redis://HOST:PORT/DB` in Redis, for several nodes that behave as one")
    redis_wait: int = setting(0, "replicas of Redis that must have a push or a receipt before it is answered; while there are fewer, 503", low=0, high=16)
    sync: str = setting("full", "how a commit gets to the disk: `full` waits for it each time, `normal` may lose the last moments in a power cut, but nothing when the process ends", choices=("full", "normal"), hidden=("off",))
    retention_age: int = setting(30 * DAY, "how long events and receipts are kept in the file (this and the next two are for `sqlite:` only)", low=60)
    retention_events: int = setting(10_000_000, "events kept in the file over all channels; older ones make way", low=1)
    retention_bytes: int = setting(16 * 1024 * MIB, "bytes in use in the file; beyond, the oldest events make way", low=MIB)

    # listening
    tcp: bool = setting(True, "listen on --host and --port; --no-tcp leaves only the Unix socket")
    unix: str = setting("", "a Unix socket to listen on too, by its path; it is removed at the end, and one that a process left behind is replaced")
    unix_mode: str = setting("660", "who may connect to the Unix socket, as chmod has it in octal digits")
    tls_cert: str = setting("", "a certificate in PEM, and behind it those that it was signed by: --port then speaks TLS 1.2 and 1.3; SIGHUP reads it again")
    tls_key: str = setting("", "its key in PEM, without a passphrase; none is that it is in the file of the certificate")
    admin_port: int = setting(-1, "port of a listener of its own for `/admin`, `/metrics` and `/webhooks`, which --port then has not; 0 takes a free one, -1 is none", low=-1, high=65_535)
    admin_host: str = setting("127.0.0.1", "address of that listener; it speaks plain HTTP on loopback, elsewhere as --port does")
    handover: str = setting("", "a Unix socket, by its path, at which the next process that is started with the same takes over from this one: what listens, what is connected, what is open")
    trusted_proxies: str = setting("", "networks, separated by commas, whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed, such as `10.0.0.0/8`; `unix` is whoever comes by the Unix socket")

    # who may do what
    jwt_secret: str = setting("", "the secret that tokens are signed with by HS256, at least 32 bytes; rather a variable than a flag, which every user of the machine can read", secret=True)
    jwt_public_key: str = setting("", "a file with the public key that tokens are verified with, in PEM; RSA (RS256), P-256 (ES256) or Ed25519 (EdDSA), or several of them")
    jwt_jwks: str = setting("", "a URL of public keys as JWKS, https unless it is on loopback; fetched every 10 min, and when a token names a key that is not there")
    jwt_audience: str = setting("", "who we are: tokens must name it in `aud`; without it, tokens that name anybody are refused")
    jwt_leeway: float = setting(5.0, "by how much the clocks of those who mint tokens may be wrong", low=0, high=300)
    jwt_max_age: float = setting(0.0, "longest that a token may hold, from its `iat` to its `exp`, which then it must have; 0 is any length", low=0)
    host_names: str = setting("", "names with a dot, separated by commas, that a server without keys answers to on loopback, such as that of the proxy before it")

    # feeds
    heartbeat: float = setting(20.0, "a comment line after so much silence on a feed; proxies cut connections that are quiet for 30 to 60 s", low=0.1, high=3600)
    retry: float = setting(3.0, "what `retry:` asks of a device that loses its feed; browsers wait about as long by themselves", low=0.1, high=3600)
    stuck_after: float = setting(60.0, "cut a feed off when its socket took nothing for so long; it resumes from the backlog when it returns", low=1, high=3600)
    max_feeds: int = setting(100_000, "open feeds in all; the limit on open files is usually reached first", low=1)
    max_feeds_per_device: int = setting(8, "open feeds of one device; one more replaces the oldest, which is usually a connection that died unnoticed", low=1)
    max_feed_channels: int = setting(100, "channels and patterns on one feed", low=1, high=1000)
    max_connections_per_peer: int = setting(0, "open connections of one address (of IPv6: one /64), feeds included; with 0 none may have more than are left for all others, which is half of them for one that takes all it can", low=0)
    max_feeds_per_peer: int = setting(0, "the same for feeds", low=0)
    max_handshakes_per_peer: int = setting(64, "TLS handshakes of one address that are under way at once; more of them wait", low=1)
    cors_origins: str = setting("", "origins whose pages may call from a browser, separated by commas; with a cookie too, which `*`, any page, may not; empty is none")

    # events
    ttl: int = setting(DAY, "how long an event is still sent, where its push does not say", low=0)
    max_ttl: int = setting(30 * DAY, "the longest ttl that a push may ask for", low=1)
    max_event_bytes: int = setting(64 * KIB, "largest event that a publisher may push; Centrifugo takes 64 KB too", low=1, high=16 * MIB)
    max_batch_bytes: int = setting(4 * MIB, "largest body of POST /push and POST /feedback, which carry many", low=KIB, high=256 * MIB)
    max_batch: int = setting(1_000, "most items in one POST /push or POST /feedback", low=1, high=100_000)
    max_to: int = setting(1_000, "most devices that one push may address by `to`", low=1, high=100_000)
    backlog_events: int = setting(1_000, "events kept per channel; older ones make way", low=1)
    backlog_bytes: int = setting(4 * MIB, "bytes of events kept per channel", low=KIB)
    backlog_total_bytes: int = setting(256 * MIB, "bytes of events at hand over all channels, with what devices say of them; the channel that was quiet longest makes way first. In Redis what they say may take as much again, and further statuses are dropped", low=KIB)
    keep_expired: int = setting(3600, "how long an expired event can still be asked for in `memory:` and Redis, as far as the backlog reaches; in a file the retention decides", low=0)
    idempotency_window: int = setting(600, "how long an Idempotency-Key is remembered", low=1, high=DAY)

    # receipts
    device_ttl: int = setting(30 * DAY, "a device that was not seen for so long leaves the audience of its channels", low=1)
    max_devices: int = setting(1_000_000, "registered devices in all, counted once for each channel and each pattern; a channel that devices want by their patterns comes into being only where there is room for all of them", low=1)
    max_channels_per_device: int = setting(10_000, "channels and patterns that one device may register on; those that are born later and meant by its patterns come in addition", low=1)
    max_channels: int = setting(1_000_000, "channels of which anything is kept, some 2 KB each in memory", low=1)
    max_channels_per_subject: int = setting(0, "channels that one subject of tokens has brought into being and that are kept; with 0 none may have more than are left for all others, which is half of them for one that takes all it can", low=0)
    max_wait: int = setting(300, "longest that a push with `Prefer: wait`, or a `?wait` for a delivery status, may take", low=1, high=3600)
    max_attempts: int = setting(5, "sends of one event to one device before it is given up as `expired`", low=1, high=15)
    max_status_bytes: int = setting(KIB, "largest `status` of a receipt that is kept; more is refused", low=0, high=64 * KIB)
    max_event_status_bytes: int = setting(MIB, "bytes of different statuses kept per event; further ones are counted and dropped", low=0)
    receipts_kept: int = setting(100_000, "receipts that `memory:` and Redis keep for `GET /receipts` over all channels, some 200 bytes each; a file has them as long as their events", low=1)
    receipt_jitter: float = setting(0.0, "ask devices to spread their receipts over so much time, against ten thousand answers at once", low=0, high=60)

    # webhooks
    max_webhooks: int = setting(100, "endpoints that notices may be sent to", low=0, high=10_000)
    webhook_timeout: float = setting(20.0, "time for an endpoint to answer; Standard Webhooks recommends 15 to 30 s", low=0.1, high=300)
    webhook_allow_networks: str = setting("", "networks, separated by commas, that webhooks may reach beside the public ones, such as `10.0.0.0/8`")
    webhook_allow_http: bool = setting(False, "let webhooks go to http:// addresses too, unencrypted")

    # HTTP
    max_line_bytes: int = setting(8 * KIB, "longest request line; nginx takes 8 KiB too", low=256, high=64 * KIB)
    max_header_bytes: int = setting(16 * KIB, "longest headers of a request, all together", low=1 * KIB, high=256 * KIB)
    max_held_bytes: int = setting(256 * MIB, "bytes of bodies that are still arriving, or wait behind another request, over all connections; beyond, those that come in pieces are refused", low=MIB)
    max_pipeline: int = setting(64, "requests that may wait behind the one being answered, per connection; then nothing more is read", low=1, high=10_000)
    idle_timeout: float = setting(75.0, "close a connection that asks nothing for so long; nginx keeps it as long", low=0.1)
    head_timeout: float = setting(10.0, "time for the request line and headers to arrive, from the first byte", low=0.1)
    body_timeout: float = setting(30.0, "time for the body to arrive, from the end of the headers", low=0.1)
    drain_delay: float = setting(0.0, "at the end, how long all goes on as before after `/readyz` has turned 503, for a balancer to notice", low=0, high=3600)
    drain_seconds: float = setting(5.0, "at the end, over how long feeds are let go where other nodes are there to take them, and how long requests and webhooks under way may take", low=0, high=3600)

    # limits
    max_connections: int = setting(0, "open connections in all, feeds included; 0 is what the limit on open files leaves", low=0)
    limits_exempt: str = setting("127.0.0.0/8,::1/128,unix", "networks, separated by commas, that have no limits of their own; `unix` is whoever comes by the Unix socket. What is on this machine is most often a proxy: limits on it would be limits on everybody behind it")
    peer_connects: str = setting("1000/30000", "connections accepted and feeds opened of one address (of IPv6: one /64), as RATE/BURST: so many a second and so many at once; 0 is no limit. Ten thousand devices behind one address that all come back at once take 30000: two connections each, and a feed")
    peer_pushes: str = setting("1000/10000", "events pushed by one address, as RATE/BURST")
    peer_receipts: str = setting("20000/100000", "receipts given by one address, as RATE/BURST; the rate is about a fifth of what one processor takes")
    peer_requests: str = setting("200/5000", "all other requests of one address, as RATE/BURST; they cost the most each")
    peer_registrations: str = setting("100/50000", "devices that one address registers, counted as in --max-devices, as RATE/BURST; so many at once are ten thousand devices that come for the first time, on five channels each")
    peer_channels: str = setting("100/20000", "channels that one address brings into being, as RATE/BURST: by a push, or by a feed")
    subject_connects: str = setting("10/1000", "feeds opened with the tokens of one subject, as RATE/BURST: a subject is one device or one publisher, whatever addresses it has")
    subject_pushes: str = setting("1000/10000", "events pushed by one subject, as RATE/BURST")
    subject_receipts: str = setting("1000/10000", "receipts given by one subject, as RATE/BURST")
    subject_requests: str = setting("200/5000", "all other requests of one subject, as RATE/BURST")
    subject_registrations: str = setting("20/10000", "channels and patterns that one subject registers on, as RATE/BURST")
    subject_channels: str = setting("100/10000", "channels that one subject brings into being, as RATE/BURST")

    # watching
    watchdog: float = setting(30.0, "a loop that does not turn, or a commit that does not end, for so long is stuck: that is logged, counted and told to whoever started the server; 0 is never", low=0, high=3600)
    otlp: str = setting("", "where spans are sent by OTLP over HTTP, such as `http://localhost:4318/v1/traces`; needs what `pip install 'pere[otel]'` installs")
    log_level: str = setting("info", "least level that is logged; `debug` adds a line for each feed, event and refusal", choices=("debug", "info", "warning", "error"))
    log_format: str = setting("text", "`json` writes a line as one object, for machines", choices=("text", "json"))
    metrics_channels: str = setting("", "channels, separated by commas, that metrics may name; all others are counted together")

    def __post_init__(self) -> None:
        for each in fields(self):
            check(each, getattr(self, each.name))
        if self.ttl > self.max_ttl:
            raise ConfigError(f"--ttl is at most --max-ttl ({self.max_ttl}), not {self.ttl}")
        if self.max_event_bytes > self.backlog_bytes:
            raise ConfigError(f"--backlog-bytes ({self.backlog_bytes}) must hold one event of --max-event-bytes ({self.max_event_bytes})")
        if self.backlog_bytes > self.backlog_total_bytes:
            raise ConfigError(f"--backlog-total-bytes ({self.backlog_total_bytes}) must hold one channel of --backlog-bytes ({self.backlog_bytes})")
        if self.workers > 1:
            self._check_workers()
        if self.handover and self.workers > 1:
            raise ConfigError(f"--handover {self.handover} is of one process, and --workers {self.workers} are several")
        if self.handover and self.store == "memory:":
            raise ConfigError(f"--handover {self.handover} asks for a store that outlives the process, and --store memory: does not")
        if self.redis_wait and not self.is_shared:
            raise ConfigError(f"--redis-wait {self.redis_wait} is for a store in Redis, --store redis://HOST:PORT/DB, not {self.store}")
        if not self.tcp and not self.unix:
            raise ConfigError("--no-tcp leaves nothing to listen on: name a Unix socket, --unix PATH")
        if self.tls_key and not self.tls_cert:
            raise ConfigError("--tls-key is the key of a certificate: name that too, --tls-cert PATH")
        if not UNIX_MODE.fullmatch(self.unix_mode):
            raise ConfigError(f"--unix-mode is three octal digits such as 660, not {self.unix_mode!r}")
        if self.insecure and self.has_keys:
            raise ConfigError("--insecure means without keys, and there are some: leave out one or the other")
        for origin in sorted(self.origins - {"*"}):
            # `null` is what every page out of a file or a sandbox calls itself, so to name it is to name strangers.
            if not ORIGIN.fullmatch(origin):
                raise ConfigError(f"--cors-origins are as browsers send them, such as https://app.example or http://localhost:3000 (no path, no slash at the end, no capitals), or `*`, not {origin!r}")
        if not self.insecure and not self.has_keys and self.exposed:
            raise ConfigError(
                f"{self.exposed} can be reached from other machines, and no keys are set: anybody there could push, read and "
                "administer. Set --jwt-secret, --jwt-public-key or --jwt-jwks, keep to 127.0.0.1, or accept it with --insecure")

    def _check_workers(self) -> None:
        """Each worker is a node, and has the next port for administration."""
        if not self.is_shared:
            raise ConfigError(f"--workers {self.workers} are nodes that share what they know by Redis: --store redis://HOST:PORT/DB, not {self.store}")
        if self.unix:
            raise ConfigError(f"--workers {self.workers} cannot share a Unix socket: leave out --unix")
        ports = range(self.admin_port, self.admin_port + self.workers)
        if self.admin_port > 0 and (ports[-1] > 65_535 or self.port in ports):
            raise ConfigError(f"--admin-port {self.admin_port} is that of the first of {self.workers} workers, and the others have those up to {ports[-1]}: none of "
                              f"them may be --port ({self.port}), or above 65535")

    @property
    def is_shared(self) -> bool:
        """Whether the store is one that several nodes share."""
        return self.store.startswith(SHARED)

    def become(self, other: "Config") -> None:
        """Take the settings of another one: whoever has this one sees them at once. Only a reload may do that, on the loop."""
        for each in fields(self):
            object.__setattr__(self, each.name, getattr(other, each.name))

    def but(self, said: Mapping[str, Any]) -> "Config":
        """The same with these settings instead. Raises ConfigError as this does."""
        return replace(self, **said)

    @property
    def exposed(self) -> str:
        """The addresses that other machines can reach, as flags; "" if there are none. Who reaches a Unix socket is on this machine, and
        its mode decides who may."""
        return " and ".join(f"{flag(name)} {host}" for name, host, is_open in (("host", self.host, self.tcp), ("admin_host", self.admin_host, self.admin_port >= 0))
                            if is_open and not is_loopback(host))

    @property
    def proxies(self) -> tuple[tuple[Network, ...], bool]:
        """Whose word on a client is believed: these networks, and whether who comes by a Unix socket. Raises ConfigError for what is neither."""
        return _peers("trusted_proxies", self.trusted_proxies)

    @property
    def exempt(self) -> tuple[tuple[Network, ...], bool]:
        """The same for those that have no limits of their own."""
        return _peers("limits_exempt", self.limits_exempt)

    @property
    def is_open_to_this_machine(self) -> bool:
        """Whether everybody on this machine may do everything, and nobody else can reach it."""
        return not self.has_keys and not self.exposed

    @property
    def has_keys(self) -> bool:
        """Whether who asks must have a token."""
        return bool(self.jwt_secret or self.jwt_public_key or self.jwt_jwks)

    @property
    def origins(self) -> frozenset[str]:
        return words(self.cors_origins)


def check(setting: Field[Any], value: Any) -> None:
    """Raises ConfigError where one value cannot be, whatever the others are."""
    meta = setting.metadata
    if meta["choices"] and value not in meta["choices"] + meta["hidden"]:
        raise ConfigError(f"{flag(setting.name)} is one of {', '.join(meta['choices'])}, not {value!r}")
    # Turned round, so that "nan" from the environment, of which neither is true, is refused too.
    if meta["low"] is not None and not value >= meta["low"]:
        raise ConfigError(f"{flag(setting.name)} is at least {meta['low']}, not {value}")
    if meta["high"] is not None and not value <= meta["high"]:
        raise ConfigError(f"{flag(setting.name)} is at most {meta['high']}, not {value}")


def flag(name: str) -> str:
    """`max_ttl` is `--max-ttl` on the command line."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """`max_ttl` is `PERE_MAX_TTL` in the environment."""
    return "PERE_" + name.upper()


def words(text: str) -> frozenset[str]:
    return frozenset(word for word in (part.strip() for part in text.split(",")) if word)


def networks(text: str) -> tuple[Network, ...]:
    """The networks of a setting such as `10.0.0.0/8,127.0.0.0/8`. Raises ConfigError, which does not know the flag's name."""
    try:
        return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(f"networks are like 10.0.0.0/8,fd00::/8, not {text!r}: {error}") from None


def _peers(name: str, text: str) -> tuple[tuple[Network, ...], bool]:
    named = words(text)
    try:
        return networks(",".join(sorted(named - {"unix"}))), "unix" in named
    except ConfigError as error:
        raise ConfigError(f"{flag(name)}: {error}") from None


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def types() -> dict[str, type]:
    """Each setting's type: str, int, float or bool."""
    return typing.get_type_hints(Config)


def from_environment(environ: Mapping[str, str] = os.environ, but: Container[str] = ()) -> dict[str, Any]:
    """The settings that the environment gives, as far as it gives any, `but` for those that were said otherwise. Raises ConfigError for
    a value of the wrong type."""
    return {name: parsed(name, text) for name in types() if name not in but and (text := environ.get(variable(name))) is not None}


def parsed(name: str, text: str) -> Any:
    """The value of a variable in its setting's type. Raises ConfigError where it has none."""
    kind = types()[name]
    if kind is bool:
        if text.lower() not in SWITCH:
            raise ConfigError(f"{variable(name)} is true or false, not {text!r}")
        return SWITCH[text.lower()]
    try:
        return kind(text)
    except ValueError:
        hint = LINKS if text.startswith("tcp://") else ""
        raise ConfigError(f"{variable(name)} is a number, not {text!r}{hint}") from None


def strangers(environ: Mapping[str, str] = os.environ) -> list[tuple[str, str | None]]:
    """Variables that look like settings and are none, each with the one that is most likely meant: a slip of the pen is silent otherwise."""
    known = {*map(variable, types()), *VISITORS}
    alike = {name.removeprefix("PERE_"): name for name in known}  # which is like itself in all of them
    return [(name, next((alike[word] for word in get_close_matches(name.removeprefix("PERE_"), alike, 1)), None))
            for name in sorted(environ) if name.startswith("PERE_") and name not in known and not LINKED.fullmatch(name)]


def without_password(url: str) -> str:
    """A store or a proxy as it may be shown and logged."""
    return PASSWORDS.sub(r"\1\2***", url)
