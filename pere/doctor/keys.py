"""Tokens, certificates, and settings that contradict each other: what can be known without asking anybody but the keeper of keys."""

import asyncio
import os
import stat
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import orjson
from cryptography import x509

from pere.auth import Verifier
from pere.config import Config, is_loopback, strangers, words
from pere.doctor import Finding, Findings, advice, ok, wrong
from pere.errors import BadRequest, ConfigError, Refusal
from pere.jwks import MAX_BYTES, PATIENCE, check_url
from pere.keys import Key, of_jwks
from pere.names import channel_name
from pere.parts import verifier_of
from pere.tls import Certificate

SOON = 14  # days before the end of a certificate
PROXIES_WAIT = 60.0  # seconds of silence after which the usual ones cut a connection


def tokens(config: Config, token: str | None) -> Findings:
    """The keys, and whether a token that is given holds by them."""
    if not config.has_keys:
        yield advice("tokens", "there are no keys: whoever reaches this server may do everything", "--jwt-secret, --jwt-public-key or --jwt-jwks; `pere token` makes the tokens") \
            if config.exposed else ok("tokens", "there are no keys, and only this machine reaches the server")
        return
    try:
        verifier = verifier_of(config)
        assert verifier is not None
        if config.jwt_jwks:
            check_url(config.jwt_jwks)
    except ConfigError as error:
        yield wrong("tokens", str(error), "a secret: `openssl rand -base64 32`; a public key out of a private one: `openssl pkey -in key.pem -pubout`")
        return
    if config.jwt_jwks:
        keys, finding = fetched(config.jwt_jwks)
        verifier.fetch(keys)
        yield finding
    if config.jwt_secret or config.jwt_public_key:
        yield ok("tokens", "the keys can be taken")
    if token:
        yield _held(verifier, token)


def fetched(url: str) -> tuple[list[Key], Finding]:
    """The keys at a URL, and what is to be said of it."""
    why = "let this machine reach it (DNS, firewall), and look at what it answers: curl -i"
    try:
        status, document = asyncio.run(_asked(url))
        if status != 200:
            return [], wrong("tokens", f"--jwt-jwks {url} answers {status}", why)
        keys = of_jwks(orjson.loads(document))
    except (aiohttp.ClientError, OSError) as error:
        return [], wrong("tokens", f"--jwt-jwks {url} cannot be fetched: {str(error) or type(error).__name__}", why)
    except ValueError as error:
        return [], wrong("tokens", f"--jwt-jwks {url} is no document of keys that can be taken: {error}", "it is a JWKS document (RFC 7517) with RSA, P-256 or Ed25519 keys")
    return keys, ok("tokens", f"--jwt-jwks has {len(keys)} keys ({', '.join(sorted({key.algorithm for key in keys}))})")


async def _asked(url: str) -> tuple[int, bytes]:
    """As a server asks for them (`jwks.py`)."""
    async with asyncio.timeout(PATIENCE), aiohttp.ClientSession() as session, session.get(url, headers={"Accept": "application/jwk-set+json, application/json"}, allow_redirects=False) as answer:
        return answer.status, await answer.content.read(MAX_BYTES)


def _held(verifier: Verifier, token: str) -> Finding:
    try:
        grant = verifier.grant(token.encode(), time.time())
    except Refusal as refusal:
        return wrong("tokens", f"the token does not hold: {refusal.message}", "`pere token inspect` says what is in it, and `pere token` makes another")
    return ok("tokens", f"the token holds, for {grant.subject or 'nobody in particular'}")


def certificate(config: Config) -> Findings:
    if not config.tls_cert:
        return
    try:
        Certificate(config.tls_cert, config.tls_key)
    except ConfigError as error:
        yield wrong("certificate", str(error), "name a certificate and its key in PEM, the key without a passphrase: openssl pkey -in key.pem -out open.pem")
        return
    found = x509.load_pem_x509_certificates(Path(config.tls_cert).read_bytes())[0]
    yield ended(found.not_valid_before_utc, found.not_valid_after_utc, datetime.now(UTC), f"--tls-cert {config.tls_cert}")
    key = config.tls_key or config.tls_cert
    if os.stat(key).st_mode & (stat.S_IROTH | stat.S_IWOTH):
        yield advice("certificate", f"every user of this machine may read the key in {key}", f"chmod 600 {key}")


def ended(begins: datetime, ends: datetime, now: datetime, what: str) -> Finding:
    """What is to be said of the time for which a certificate holds."""
    left = (ends - now).days
    if now >= ends:
        return wrong("certificate", f"{what} has ended, {ends:%Y-%m-%d}", "renew it, and have the server read it again: kill -HUP")
    if now < begins:
        return wrong("certificate", f"{what} begins only {begins:%Y-%m-%d %H:%M} UTC", "set the clock right, or wait")
    if left < SOON:
        return advice("certificate", f"{what} ends in {left} days, {ends:%Y-%m-%d}", "renew it, and have the server read it again: kill -HUP")
    return ok("certificate", f"{what} holds until {ends:%Y-%m-%d}")


def contradictions(config: Config) -> Findings:
    """Settings of which one makes the other pointless, or dangerous."""
    found = list(_contradictions(config))
    yield from found or [ok("settings", "none contradicts another")]


def _contradictions(config: Config) -> Findings:
    networks, unix = config.proxies
    for network in networks:
        if not network.prefixlen:
            yield wrong("settings", f"--trusted-proxies {network} believes everybody's X-Forwarded-For: whoever wants no limits names another address each time", "name the network of the proxy alone")
    if unix and not config.unix:
        yield advice("settings", "--trusted-proxies names `unix`, and there is no Unix socket", "--unix PATH, or leave it out")
    if networks and not config.tcp:
        yield advice("settings", "--trusted-proxies names networks, and --no-tcp lets nobody come from one", "--trusted-proxies unix")
    if config.host_names and (config.has_keys or config.exposed):
        yield advice("settings", "--host-names only matters on loopback without keys", "leave it out")
    if {"*"} < config.origins:
        yield advice("settings", "--cors-origins has `*`, which is everybody, and names some besides: these may send cookies, all others read what needs none", "leave out one or the other, unless that is meant")
    if config.tls_cert and not config.tcp and config.admin_port < 0:
        yield advice("settings", "--tls-cert is for --port, and --no-tcp leaves that out", "leave out one or the other")
    if config.has_keys and config.exposed and not config.tls_cert and not networks:
        yield advice("settings", f"tokens come to {config.exposed} in the plain, for everybody on the way to read", "--tls-cert, or a proxy that speaks TLS, named by --trusted-proxies")
    if config.admin_port >= 0 and not is_loopback(config.admin_host) and not config.tls_cert:
        yield advice("settings", f"administration comes to --admin-host {config.admin_host} in the plain", "--admin-host 127.0.0.1, or --tls-cert")
    if config.heartbeat >= PROXIES_WAIT:
        yield advice("settings", f"--heartbeat is {config.heartbeat:g} s, and proxies cut what is silent for {PROXIES_WAIT:g} s, some for 30", "--heartbeat 20")
    if config.insecure and not config.exposed:
        yield advice("settings", "--insecure allows what nobody asks for: only this machine reaches the server", "leave it out")
    if config.metrics_channels and len(words(config.metrics_channels)) > 100:
        yield advice("settings", "--metrics-channels names more than 100 channels, and each is a series of its own in Prometheus", "name those that are watched")
    for name in sorted(words(config.metrics_channels)):
        try:
            channel_name(name)
        except BadRequest as refusal:
            yield advice("settings", f"--metrics-channels: {refusal.message}", "each is the whole name of a channel")


def misspelt(environ: Mapping[str, str]) -> Findings:
    """Variables that look like settings and are none."""
    for name, meant in strangers(environ):
        yield advice("settings", f"{name} is no setting", f"{meant}, if that is meant" if meant else f"unset {name}")
