"""`pere webhooks receive` as somebody who builds a receiver uses it: a process, and notices that are sent to it."""

import http.client
import json
import re
import socket
import subprocess
import sys
from datetime import UTC, datetime
from signal import SIGINT
from time import sleep, time

import pytest
from click.testing import CliRunner
from processes import ENVIRONMENT, SECONDS, Process, Served, free_port, pere
from standardwebhooks.webhooks import Webhook

from pere.cli import main
from pere.cli.receiver import MAX_BODY, REMEMBERED, SHOWN, Receiver, Screen, lines
from pere.signing import new_secret, signed

SECRET, OTHER = new_secret(), new_secret()
BATCH = {"specversion": "1.0", "type": "pere.receipt.batch", "source": "/", "data": {"receipts": [{"device": f"d{n}"} for n in range(30)], "dropped": 0}}


class Receiving(Process):
    """A receiver in a process of its own, and what it answers."""

    def __init__(self, *arguments: str, **variables: str):
        super().__init__("webhooks", "receive", "--port", "0", *arguments, **variables)

    def __enter__(self):
        self.port = int(self.until(r"listening on http://127\.0\.0\.1:(\d+)/")[1])
        return self

    def ask(self, method: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request(method, "/any/path?at=all", body, headers)
        answer = connection.getresponse()
        found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        connection.close()
        return found

    def send(self, body: bytes, id: str = "msg_1", secrets: tuple[str, ...] = (SECRET,), at: float | None = None, **changed: str):
        headers = signed(id, int(time() if at is None else at), body, secrets)
        return self.ask("POST", body, headers | changed)


@pytest.fixture(scope="module")
def receiving():
    with Receiving("--secret", SECRET, "--secret", OTHER) as receiver:
        yield receiver


def test_a_genuine_notice_is_printed_and_answered_204(receiving):
    status, headers, body = receiving.send(json.dumps(BATCH).encode(), "msg_genuine")
    assert (status, body) == (204, b"")
    assert "content-length" not in headers
    shown = receiving.until(r"(.*)  msg_genuine  pere\.receipt\.batch  (\d+) bytes, answered 204\n  receipts: 30\n    {\"device\":\"d0\"}\n")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", shown[1])
    receiving.until(rf"and {30 - SHOWN} more\n  dropped: 0\n")


def test_a_notice_that_another_library_signed_is_as_good(receiving):
    now = datetime.now(UTC)
    headers = {"webhook-id": "msg_theirs", "webhook-timestamp": str(int(now.timestamp())),
               "webhook-signature": Webhook(SECRET).sign("msg_theirs", now, '{"n":1}')}
    assert receiving.ask("POST", b'{"n":1}', headers)[0] == 204
    receiving.until(r"msg_theirs  7 bytes, answered 204\n  n: 1\n")


def test_either_secret_will_do_while_one_takes_the_place_of_the_other(receiving):
    assert receiving.send(b"{}", "msg_other", (OTHER,))[0] == 204
    assert receiving.send(b"{}", "msg_both", (new_secret(), SECRET))[0] == 204


def test_a_notice_that_comes_twice_is_known_again(receiving):
    for _ in range(2):
        assert receiving.send(b'{"n":"twice"}', "msg_twice")[0] == 204
    receiving.until(r"msg_twice .*, answered 204\n  n: twice\n.*msg_twice .*, answered 204  again\n")
    assert receiving.out.count("n: twice") == 1


@pytest.mark.parametrize("how, status, code", [
    ({"secrets": (new_secret(),)}, 401, "wrong_signature"),
    ({"webhook-id": "msg_2"}, 401, "wrong_signature"),
    ({"at": time() - 3600}, 401, "wrong_time"),
    ({"at": time() + 3600}, 401, "wrong_time"),
    ({"webhook-signature": ""}, 400, "not_signed"),
    ({"webhook-signature": "sha256=abc"}, 400, "bad_webhook_signature"),
    ({"webhook-timestamp": "today"}, 400, "bad_webhook_timestamp"),
])
def test_a_notice_that_is_not_genuine_is_refused_with_a_reason(receiving, how, status, code):
    before = receiving.out
    answered, headers, body = receiving.send(b'{"n":"false"}', "msg_false", **how)
    assert (answered, json.loads(body)["error"], headers["content-type"]) == (status, code, "application/json")
    receiving.until(re.escape(f"refused with {status}, {code}: {json.loads(body)['message']}"))
    assert receiving.out == before


def test_only_a_post_is_a_webhook(receiving):
    status, headers, body = receiving.ask("GET", b"", {})
    assert (status, headers["allow"], json.loads(body)["error"]) == (405, "POST", "wrong_method")


def test_a_body_has_a_largest_size(receiving):
    assert receiving.send(b" " * MAX_BODY, "msg_large")[0] == 204
    status, _, body = receiving.send(b" " * (MAX_BODY + 1), "msg_larger")
    assert (status, json.loads(body)["error"]) == (413, "too_large")


@pytest.mark.parametrize("body", [b"", b"not json", b"\xff\x00", b"[1,2]", b"null", b'"text"', b'{"type":5,"data":[1]}', b'{"data":{}}',
                                  b'{"type":"\\u001b[2J"}'])
def test_whatever_a_genuine_notice_says_it_is_taken(receiving, body):
    assert receiving.send(body, "msg_odd")[0] == 204
    assert "\x1b" not in receiving.out and "Traceback" not in receiving.err


def test_for_programs_each_notice_is_a_line_of_json():
    exact = b'{"type": "t",\n "data": {"n": 12345678901234567890123, "x": 1.10}}'
    with Receiving("--json", "--answer", "503", PERE_WEBHOOK_SECRET=f"{OTHER} {SECRET}") as receiver:
        for body in (exact, exact, b"text"):
            assert receiver.send(body, "msg_" + str(len(body)))[0] == 503
        receiver.until(r'"body":"text"')
        receiver.send(exact, secrets=(new_secret(),))
        receiver.until("wrong_signature")
        first, second, third = receiver.out.splitlines()
    assert '{"type": "t",  "data": {"n": 12345678901234567890123, "x": 1.10}}' in first
    notices = [json.loads(each) for each in (first, second, third)]
    assert [(each["id"], each["type"], each["again"], each["answer"]) for each in notices] == [
        ("msg_65", "t", False, 503), ("msg_65", "t", True, 503), ("msg_4", None, False, 503)]
    assert all(abs(each["timestamp"] - time()) < 300 for each in notices)


def test_a_sender_who_does_not_wait_for_the_answer_breaks_nothing():
    with Receiving("--secret", SECRET, "--delay", "0.2") as receiver:
        body, headers = b"{}", signed("msg_gone", int(time()), b"{}", [SECRET])
        with socket.create_connection(("127.0.0.1", receiver.port)) as gone:
            head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            gone.sendall(f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n{head}\r\n".encode() + body)
            receiver.until("msg_gone")
        assert receiver.send(b"{}", "msg_late")[0] == 204
        assert "Traceback" not in receiver.err


def test_ctrl_c_ends_it_quietly():
    with Receiving("--secret", SECRET) as receiver:
        assert receiver.end(SIGINT) == 130
        assert receiver.err.count("\n") == 1


def test_a_port_that_is_taken_is_said():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = pere("webhooks", "receive", "--secret", SECRET, "--port", str(port))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"pere: cannot listen on 127.0.0.1:{port}: ")


@pytest.mark.parametrize("arguments, words", [
    ([], "--secret"), (["--secret", "hunter2"], "begins with whsec_"), (["--secret", "whsec_aGk="], "24 to 64 bytes"),
    (["--secret", SECRET, "--answer", "100"], "--answer"), (["--secret", SECRET, "--port", "65536"], "--port"),
    (["--secret", SECRET, "--delay", "-1"], "--delay"),
])
def test_a_wrong_command_line_is_refused_without_a_secret_in_the_answer(arguments, words):
    done = CliRunner().invoke(main, ["webhooks", "receive", *arguments], prog_name="pere")
    assert done.exit_code == 2
    assert words in done.stderr
    assert "hunter2" not in done.stderr and "aGk=" not in done.stderr and SECRET not in done.stderr


def test_help_is_given_with_examples():
    said = CliRunner().invoke(main, ["webhooks", "receive", "--help"], prog_name="pere")
    assert said.exit_code == 0
    assert said.stdout.count("pere webhooks receive") >= 4


def test_the_verbs_to_come_need_not_wait_for_a_server():
    script = "import sys; from pere.cli import main; main(['webhooks', '--help'], standalone_mode=False); sys.exit('tornado' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, timeout=SECONDS).returncode == 0


def test_what_was_received_is_forgotten_in_the_end():
    receiver = Receiver((SECRET,), 204, 0, Screen(as_json=True))
    receiver._known = dict.fromkeys(map(str, range(REMEMBERED)))
    receiver._remember("new")
    assert len(receiver._known) == REMEMBERED
    assert "0" not in receiver._known and "new" in receiver._known


def test_a_notice_is_shown_by_its_data_or_as_it_is():
    assert lines({"type": "t", "data": {"a": [], "b": {"c": None}}}) == ["a: []", 'b: {"c":null}']
    assert lines({"type": "t", "data": [1]}) == ["type: t", "data: 1", "  1"]
    assert lines("line\nbreak\x1b[2J") == [r"line\nbreak\x1b[2J"]
    assert lines({"k\x1b": ["\x07"]}) == [r"k\x1b: 1", r"  \x07"]


# Endpoints


def test_an_endpoint_is_added_answers_is_looked_after_and_removed():
    port = free_port()
    with Served("--webhook-allow-http", "--webhook-allow-networks", "127.0.0.0/8") as served:
        def told(verb: str, *arguments: str) -> dict:
            done = pere("webhooks", verb, *arguments, "--url", served.url, "--json")
            assert (done.returncode, done.stderr) == (0, ""), done
            return json.loads(done.stdout)

        made = told("add", f"http://127.0.0.1:{port}/hook", "--type", "pere.receipt.batch", "--channel", "orders.*")
        assert (made["types"], made["channels"]) == (["pere.receipt.batch"], ["orders.*"])
        done = pere("webhooks", "test", made["id"], "--url", served.url)
        assert (done.returncode, "failed" in done.stdout) == (1, True)
        with Process("webhooks", "receive", "--port", str(port), "--secret", made["secret"]) as receiver:
            receiver.until("listening on")
            done = pere("webhooks", "test", made["id"], "--url", served.url)
            assert (done.returncode, "answered 204" in done.stdout, "active" in done.stdout) == (0, True, True)
            receiver.until("pere.webhook.verify")
            assert told("pause", made["id"])["state"] == "paused"
            assert told("resume", made["id"])["state"] == "active"
            assert told("rotate", made["id"])["secret"] != made["secret"]
            # It knows the old one only, which signs too.
            assert told("test", made["id"])["answered"] is True
        done = pere("webhooks", "list", "--url", served.url)
        assert done.stdout == f"{made['id']}  active    http://127.0.0.1:{port}/hook  receipt.batch of orders.*\n"
        assert pere("webhooks", "remove", made["id"], "--url", served.url).stdout == f"{made['id']}  removed\n"
        done = pere("webhooks", "list", "--url", served.url)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "there is no endpoint; `pere webhooks add URL` adds one\n")
        done = pere("webhooks", "remove", made["id"], "--url", served.url)
        assert (done.returncode, "unknown_webhook" in done.stderr) == (1, True)


def test_what_was_given_up_is_listed_and_replayed():
    port = str(free_port())
    with Served("--webhook-allow-http", "--webhook-allow-networks", "127.0.0.0/8") as served:
        def run(verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
            done = pere("webhooks", verb, *arguments, "--url", served.url)
            assert done.returncode == 0, done
            return done

        def until(words: str) -> None:
            deadline = time() + 20
            while words not in run("list").stdout:
                assert time() < deadline, run("list").stdout
                sleep(0.05)

        made = json.loads(run("add", f"http://127.0.0.1:{port}/", "--json").stdout)
        with Process("webhooks", "receive", "--port", port, "--secret", made["secret"]) as receiver:
            receiver.until("listening on")
            run("test", made["id"])
        with Process("webhooks", "receive", "--port", port, "--secret", made["secret"], "--answer", "410") as receiver:
            receiver.until("listening on")
            pushed = pere("push", "orders", "1", "--url", served.url, "--json")
            id = json.loads(pushed.stdout)["id"]
            receiver.until(f"event_{id}_completed")
            until("1 dead  (it is gone (410))")
        letters = [json.loads(line) for line in run("dead", made["id"], "--json").stdout.splitlines()]
        assert [(letter["type"], letter["body"]["data"]["id"], letter["attempts"]) for letter in letters] == [("pere.event.completed", id, 1)]
        assert run("dead", made["id"]).stdout == f"{letters[0]['id']}  pere.event.completed  1 in it, tried 1 times  (answered 410, not 2xx)\n"
        assert run("dead", made["id"], "--until", "2020-01-01T00:00:00Z").stdout == ""
        done = pere("webhooks", "replay", made["id"], "--url", served.url)
        assert (done.returncode, "webhook_disabled" in done.stderr) == (1, True)
        with Process("webhooks", "receive", "--port", port, "--secret", made["secret"]) as receiver:
            receiver.until("listening on")
            run("resume", made["id"])
            until("  active  ")
            assert run("replay", made["id"], letters[0]["id"]).stdout == f"{made['id']}  1 queued again\n"
            receiver.until(f"event_{id}_completed")
        assert run("dead", made["id"]).stdout == ""
        pushed = pere("push", "orders", "1", "--callback", "wh_none", "--url", served.url)
        assert (pushed.returncode, "unknown_callback" in pushed.stderr) == (1, True)
