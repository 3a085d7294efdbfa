"""TLS: a certificate out of files, and the same read again while connections are open.

The library of the system does the work; here is only what it is told. Versions and ciphers are those of Mozilla's intermediate
configuration, which every browser and device of the last ten years can speak.
"""

import ssl
from collections.abc import Callable
from typing import Any

from pere.errors import ConfigError

# TLS 1.2 with forward secrecy and authenticated encryption only; TLS 1.3 has nothing else.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM"


class Certificate:
    """What new connections are shown: `context` is for the loop. Raises ConfigError where the files do not make a certificate with its
    key and, so that a browser believes it, those that it was signed by."""

    def __init__(self, cert: str, key: str):
        self._cert = cert
        self._key = key or cert
        self.context = self._newest = self._read()
        # Called with the first words of each handshake, whether or not they name a server.
        self.context.sni_callback = self._show_newest

    def renew(self) -> Callable[[], None]:
        """Read the files again. What is open stays as it is."""
        newest = self._read()

        def renewed() -> None:
            self._newest = newest

        return renewed

    def _show_newest(self, connection: Any, name: str | None, context: ssl.SSLContext) -> None:
        if self._newest is not context:
            connection.context = self._newest

    def _read(self) -> ssl.SSLContext:
        for flag, path in (("--tls-cert", self._cert), ("--tls-key", self._key)):
            try:
                with open(path, "rb"):
                    pass
            except OSError as error:
                raise ConfigError(f"{flag} {path} cannot be read: {error.strerror}") from None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(CIPHERS)
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.set_alpn_protocols(["http/1.1"])  # RFC 7301
        try:
            context.load_cert_chain(self._cert, self._key, self._ask_nobody)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise ConfigError(f"--tls-key {self._key} is not the key of --tls-cert {self._cert}") from None
            raise ConfigError(f"--tls-cert {self._cert} and --tls-key {self._key} hold no certificate and key in PEM "
                              f"({error.reason or error})") from None
        return context

    def _ask_nobody(self) -> str:
        """Else OpenSSL would ask whoever sits at the terminal, and wait."""
        raise ConfigError(f"--tls-key {self._key} is locked by a passphrase, and nobody is there to type it in when the server starts")
