"""What is never told: tokens and the secret. Everything that a real server prints, answers and counts is looked through, its mistakes included."""

import re
import signal
import sys
from contextlib import suppress

import httpx
import pytest
from minting import SECRET, token
from processes import Process, pere

from pere.config import Config

# A server like any other, of which three parts break when they are asked: one of Tornado's, a hot one, and what is between the two.
BROKEN = """
import sys
from pere.cli import main
from pere.handlers import admin, push
from pere import exchange

def breaks(*args, **named):
    raise ZeroDivisionError("broken on purpose")

admin.Connections.get = breaks
push.Push.many = breaks
start = exchange.Exchange._finish_request
exchange.Exchange._finish_request = lambda self: breaks() if self.ask.path == b"/admin/devices" else start(self)
main(sys.argv[1:])
"""


class Broken(Process):
    command = [sys.executable, "-c", BROKEN]


def parts(text: str) -> list[str]:
    """What of a token must not be seen anywhere; its header says only of which kind it is."""
    return text.split(".")[1:] if text.count(".") == 2 else [text]


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_token_and_no_secret_is_in_anything_that_a_server_says(form):
    everything = {"push": ["**"], "feed": ["**"], "admin": True}
    tokens = [token("d", **everything), token("d", expires=-60, **everything), token("d", aud="other"), token("d", pere="wrong"), token(None, push=["x"]),
              token("d", key="another secret of thirty-two bytes"), token("d", key=None, algorithm="none"), "no.such-token-at-all.x1", token("d", kid="K" * 40)]
    said: list[str] = []
    with Broken("serve", "--port", "0", "--store", "memory:", "--log-level", "debug", "--log-format", form, PERE_JWT_SECRET=SECRET) as server:
        url = server.until(r"http://127\.0\.0\.1:\d+")[0]
        with httpx.Client(base_url=url, timeout=60) as client:
            for text in tokens:
                for where in ({"headers": {"Authorization": f"Bearer {text}"}}, {"params": {"access_token": text}}, {"headers": {"Cookie": f"pere_token={text}"}},
                              {"headers": {"Authorization": f"Bearer {text}"}, "params": {"access_token": text + "x"}}):
                    for method, path, body in (("POST", "/push/c", "1"), ("POST", "/push", "[]"), ("POST", "/feedback/c?event_id=1-0", ""), ("GET", "/admin/connections", None),
                                               ("GET", "/admin/devices", None), ("DELETE", "/admin/devices/x", None), ("GET", "/events/c/nonsense", None), ("GET", "/nowhere", None),
                                               ("POST", "/healthz", ""), ("PUT", "/push/c", ""), ("GET", "/feed?channel=a b", None), ("OPTIONS", "/push/c", None), ("POST", "/webhooks", "{")):
                        with suppress(httpx.RemoteProtocolError):
                            answer = client.request(method, httpx.URL(path).copy_merge_params(where.get("params", {})), content=body, headers=where.get("headers"))
                            said.append(f"{answer.headers!r} {answer.text}")
            answer = client.get("/metrics", headers={"Authorization": f"Bearer {tokens[0]}"})
            assert answer.status_code == 200
            said.append(answer.text)
            with client.stream("GET", "/feed/c", params={"access_token": tokens[0]}) as feed:
                said.append(next(feed.iter_text()))
        server.end(signal.SIGTERM)
        printed = server.out + server.err
    assert printed.count("broken on purpose") >= 6, "the mistakes are to be seen, and what was asked for with them"
    assert re.search(r"GET /admin/connections could not be answered", printed)
    told = printed + "".join(said)
    for text in tokens:
        for part in parts(text):
            assert not part or len(part) > 1 and part not in told
    assert SECRET not in told and "another secret" not in told


def test_the_secret_is_not_seen_in_settings_help_or_errors():
    config = Config(jwt_secret=SECRET)
    assert SECRET not in f"{config!r} {config}"
    for arguments in (("serve", "--help"), ("token", "--help"), ("token", "inspect", "--help"), ("serve", "--host", "0.0.0.0", "--insecure"), ("serve", "--port", "x"),
                      ("serve", "--jwt-public-key", "/nowhere"), ("serve", "--jwt-jwks", "http://x")):
        run = pere(*arguments, PERE_JWT_SECRET=SECRET)
        assert SECRET not in run.stdout + run.stderr
    for short in ("s3cret-that-is-short",):
        run = pere("serve", "--store", "memory:", PERE_JWT_SECRET=short)
        assert (run.returncode, short in run.stdout + run.stderr) == (2, False)
        assert "--jwt-secret: a secret has at least 32 bytes" in run.stderr


def test_a_token_of_the_command_line_is_not_in_what_it_prints():
    text = token("d", push=["c"])
    for arguments in (("push", "c", "1"), ("listen", "c"), ("status", "c", "1-0"), ("recall", "c", "1-0"), ("webhooks", "list")):
        run = pere(*arguments, "--url", "http://127.0.0.1:9", PERE_TOKEN=text)
        assert run.returncode == 1
        assert not any(part in run.stdout + run.stderr for part in parts(text))
        assert text not in pere(*arguments[:1], "--help", PERE_TOKEN=text).stdout
