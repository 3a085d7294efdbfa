"""Centrifugo by its unidirectional SSE, as its documentation has it (centrifugal.dev/docs, version 6).

    python -m bench.peers.centrifugo PORT FOLDER

Devices connect without a token, and subscribe as they connect; nothing is kept, which is the cheapest that it can. Its events have no ids, so a device names
the one that it answers by what the event itself says. It leaves answers to the application behind it. Here they go straight to its HTTP API, and to a
channel of receipts, which is what an application would have to do at least: with one between, it costs more.
"""

import json
import os
from pathlib import Path
from urllib.parse import quote

from bench import words

JSON = "application/json"
LOAD = ("--feed-path", "/connection/uni_sse?cf_connect=" + quote('{"subs":{"CHANNEL":{}}}').replace("CHANNEL", "{channel}"),
        "--push-path", "/api/publish", "--push-type", JSON, "--push-body", '{"channel":"{channel}","data":{event}}',
        "--feedback-path", "/api/publish", "--feedback-type", JSON,
        "--feedback-body", '{"channel":"receipts-{channel}","data":{"device":"{device}","id":"{id}"}}')


def configuration(port: str) -> str:
    return json.dumps({
        "http_server": {"address": "127.0.0.1", "port": int(port)},
        "log": {"level": "error"},
        "usage_stats": {"disabled": True},
        "prometheus": {"enabled": True},
        "http_api": {"insecure": True},
        "client": {"allow_anonymous_connect_without_token": True},
        "channel": {"without_namespace": {"allow_subscribe_for_client": True, "allow_subscribe_for_anonymous": True}},
        "uni_sse": {"enabled": True},
    })


def main() -> None:
    port, folder = words("PORT", "FOLDER")
    path = Path(folder) / "config.json"
    path.write_text(configuration(port))
    os.execvp("centrifugo", ["centrifugo", "--config", str(path)])


if __name__ == "__main__":
    main()
