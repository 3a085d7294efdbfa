"""Certificates for tests: an authority of their own, and what it has signed, as files."""

import ssl
from pathlib import Path

import trustme


class Authority:
    """Somebody whom clients believe: `context` is for them. `sign` writes a certificate for this machine and its key."""

    def __init__(self, folder: Path):
        self._authority = trustme.CA()
        self._folder = folder
        self.path = str(folder / "authority.pem")
        self._authority.cert_pem.write_to_path(self.path)
        self.context = ssl.create_default_context(cafile=self.path)

    def sign(self, name: str) -> tuple[str, str]:
        """The paths of a certificate, with all that signed it, and of its key."""
        signed = self._authority.issue_cert("localhost", "127.0.0.1", common_name=name)
        cert, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        cert.write_bytes(b"".join(each.bytes() for each in signed.cert_chain_pems))
        key.write_bytes(signed.private_key_pem.bytes())
        return str(cert), str(key)
