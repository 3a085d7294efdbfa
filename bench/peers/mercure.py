"""The Mercure hub, as its documentation has it (mercure.rocks/docs/hub/config, 0.17 and later).

    python -m bench.peers.mercure PORT FOLDER VERSION

It listens without TLS, logs errors only, has no time after which a feed is ended, and keeps nothing (`transport local`), which is the cheapest that it can.
Who publishes has a token, and so has every device here, for they answer by publishing to a topic of receipts: it has none, and remembers no answers.
"""

import os
import re
from pathlib import Path

import jwt

from bench import words
from bench.rounds import SECRET

CONFIGURATION = """
{{
	admin off
	auto_https off
	persist_config off
	log {{
		level ERROR
	}}
}}
http://:{port} {{
	bind 127.0.0.1
	mercure {{
		publisher_jwt "{key}"
		subscriber_jwt "{key}"
		anonymous
		transport local
		heartbeat 20s
		write_timeout 0s
		{more}
	}}
}}
"""

FORM = "application/x-www-form-urlencoded"
# 1.0 calls `match` what was `topic`, and takes the tokens of before where it is told to.
LOAD = ("--header", "Authorization: Bearer " + jwt.encode({"mercure": {"publish": ["*"]}}, SECRET, "HS256"),
        "--feed-path", "/.well-known/mercure?topic={channel}&match={channel}",
        "--push-path", "/.well-known/mercure", "--push-type", FORM, "--push-body", "topic={channel}&data={quoted}",
        "--feedback-path", "/.well-known/mercure", "--feedback-type", FORM, "--feedback-body", "topic=receipts-{channel}&data={device}+{id}")


def configuration(port: str, version: str) -> str:
    """Its Caddyfile, for what it says of its version."""
    major = re.search(r"\d+", version)
    return CONFIGURATION.format(port=port, key=SECRET, more="" if major is None or major[0] == "0" else "protocol_version_compatibility 8")


def main() -> None:
    port, folder, version = words("PORT", "FOLDER", "VERSION")
    path = Path(folder) / "Caddyfile"
    path.write_text(configuration(port, version))
    os.execvp("mercure", ["mercure", "run", "--config", str(path)])


if __name__ == "__main__":
    main()
