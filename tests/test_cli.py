"""The commands as a person uses them: typed at a terminal, against a server in another process."""

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import fields
from signal import SIGINT, SIGTERM

import pytest
from click.testing import CliRunner
from processes import ENVIRONMENT, PERE, SECONDS, Process, Served, free_port, line_of, pere, piped
from terminals import Terminal

from pere.cli import VERBS, main
from pere.cli.status import BAR, COLOURS, bar, duration
from pere.cli.visit import printable
from pere.config import Config, flag, variable


@pytest.fixture(scope="module")
def url():
    with Served() as served:
        yield served.url


def pushed(url: str, *arguments: str, typed: str = "") -> list[dict]:
    """Push, and return the server's answers."""
    done = pere("push", *arguments, "--url", url, "--json", typed=typed)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def heard(url: str, channel: str) -> list[dict]:
    """All that is kept on a channel, read by a listener who comes late. The last event must be an `"end"`."""
    with Process("listen", channel, "--from", "all", "--json", "--url", url) as listener:
        listener.until(r'"data":"end"')
        return [json.loads(line) for line in listener.out.splitlines()][:-1]


# Help


@pytest.mark.parametrize("arguments", [[], *([verb] for verb in VERBS)])
def test_help_is_given_with_examples(arguments):
    said = CliRunner().invoke(main, [*arguments, "--help"], prog_name="pere")
    assert said.exit_code == 0
    # Once in the usage, and then in the examples.
    assert said.stdout.count(" ".join(["pere", *arguments])) >= 3


@pytest.mark.parametrize("arguments, unwanted", [
    (["--help"], "aiohttp tornado rich asyncio pere.client pere.server"),
    (["serve", "--help"], "aiohttp rich pere.client"),
    (["push", "--help"], "tornado uvloop pere.server"),
    (["listen", "--help"], "tornado uvloop pere.server"),
])
def test_a_verb_loads_only_what_it_needs(arguments, unwanted):
    script = ("import sys\nfrom pere.cli import main\nmain(sys.argv[2:], standalone_mode=False)\n"
              "sys.exit(str(sorted(set(sys.argv[1].split()) & set(sys.modules)) or ''))")
    done = subprocess.run([sys.executable, "-c", script, unwanted, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS)
    assert done.stderr.strip() == ""


def test_the_version_is_told():
    assert re.fullmatch(r"pere, version \d+\.\d+\.\d+\S*\n", pere("--version").stdout)


# serve


def test_every_setting_is_a_flag_with_its_variable_and_default():
    said = " ".join(CliRunner().invoke(main, ["serve", "--help"], terminal_width=400).stdout.split())
    for field in fields(Config):
        default = "none" if field.default == "" else str(field.default).lower() if type(field.default) is bool else field.default
        assert flag(field.name) in said
        assert f"[{variable(field.name)}; default: {default}]" in said


@pytest.mark.parametrize("verb, remedy", [("sevre", "is serve meant?"), ("xyz", "`pere --help` lists them")])
def test_a_verb_that_there_is_not_is_told_with_one_that_may_be_meant(verb, remedy):
    done = pere(verb)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.endswith(f"Error: there is no verb '{verb}'; {remedy}\n")


def test_a_flag_wins_over_its_variable_and_that_over_the_default():
    with Served("--log-format", "text", PERE_LOG_FORMAT="json", PERE_HEARTBEAT="1") as served:
        assert not served.err.startswith("{")
    with Served(PERE_LOG_FORMAT="json") as served:
        assert json.loads((served.err or served.out).splitlines()[0])


@pytest.mark.parametrize("flags, variables, sentence", [
    (["--port", "70000"], {}, "--port is at most 65535, not 70000"),
    (["--host", "0.0.0.0"], {}, "--host 0.0.0.0 can be reached from other machines"),
    (["--host", "0.0.0.0", "--no-insecure"], {"PERE_INSECURE": "1"}, "--host 0.0.0.0 can be reached from other machines"),
    (["--ttl", "9", "--max-ttl", "8"], {}, "--ttl is at most --max-ttl (8), not 9"),
    (["--log-level", "loud"], {}, "--log-level is one of debug, info, warning, error, not 'loud'"),
    ([], {"PERE_PORT": "http"}, "PERE_PORT is a number, not 'http'"),
])
def test_a_setting_that_cannot_be_is_one_line_and_exit_2(flags, variables, sentence):
    done = pere("serve", *flags, **variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"pere: {sentence}")
    assert done.stderr.count("\n") == 1


def test_a_port_that_is_taken_is_one_line_and_exit_1():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = pere("serve", "--port", str(port))
    assert done.returncode == 1
    assert re.fullmatch(f"pere: cannot listen on 127.0.0.1:{port}: .*in use; `pere doctor` says by whom, and --port names another one\n", done.stderr)


def test_a_file_that_is_taken_is_one_line_and_exit_2(tmp_path):
    store = f"sqlite:{tmp_path / 'pere.db'}"
    with Served("--store", store) as served:
        done = pere("serve", "--port", "0", "--store", store)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"pere: {tmp_path / 'pere.db'} is in use by another process (pid {served.pid}); one file serves one PERE: end that one, or name another file (--store sqlite:PATH)\n"


@pytest.mark.parametrize("how", [SIGINT, SIGTERM])
def test_a_signal_ends_the_server_and_that_is_no_failure(how):
    with Served() as served:
        assert served.end(how) == 0
        assert "Traceback" not in served.err


# push


def test_what_is_json_is_pushed_as_json_and_all_else_as_text(url):
    for data in ('{"n": 1}', "1.10", "plain text", "{broken", '"end"'):
        pushed(url, "kinds", data)
    assert [event["data"] for event in heard(url, "kinds")] == [{"n": 1}, 1.1, "plain text", "{broken"]


def test_who_slips_in_json_is_told_that_it_goes_as_text(url):
    done = pere("push", "slips", '{"n": 1', "--url", url)
    assert (done.returncode, done.stderr) == (0, "pere: this is not JSON, so it goes as text: unexpected end of data: line 1 column 8 (char 7)\n")
    assert pere("push", "slips", "[INFO] as it is meant", "--url", url).stderr == ""


def test_who_pushes_to_nobody_is_told(url):
    assert pere("push", "nobody", "1", "--url", url).stdout.endswith("  pushed to nobody, for 0 devices (none is registered there)\n")
    assert pere("push", "nobody", "1", "--receipt", "none", "--url", url).stdout.endswith("  pushed to nobody, for 0 devices\n")


def test_no_number_loses_a_digit(url):
    pushed(url, "digits", "12345678901234567890123.10")
    done = pere("listen", "digits", "--from", "all", "--json", "--count", "1", "--url", url)
    assert '"data":12345678901234567890123.10' in done.stdout


def test_a_minus_reads_standard_input(url):
    pushed(url, "stdin", "-", typed='{"from": "a file", "ü": "é"}\n')
    pushed(url, "stdin", '"end"')
    assert [event["data"] for event in heard(url, "stdin")] == [{"from": "a file", "ü": "é"}]


def test_without_data_samples_are_pushed_one_every_few_seconds(url):
    assert len(pushed(url, "samples", "--every", "0.05", "--count", "3", "--device", "meter")) == 3
    pushed(url, "samples", '"end"')
    samples = [event["data"] for event in heard(url, "samples")]
    assert [set(sample) for sample in samples] == [{"device", "time", "id", "data"}] * 3
    assert [(sample["device"], sample["id"]) for sample in samples] == [("meter", 1), ("meter", 2), ("meter", 3)]


def test_a_publisher_that_is_interrupted_ends_well(url):
    with Process("push", "endless", "--every", "0.05", "--url", url) as publisher:
        publisher.until(r"(?s)(pushed to endless.*){2}")
        assert publisher.end(SIGINT) == 130
        assert publisher.err == ""


def test_a_publisher_that_waits_is_told_who_has_it_and_how_it_ended(url):
    with Process("listen", "waited", "--device", "till", "--url", url) as listener:
        listener.until("pere.hello")
        done = pere("push", "waited", "1", "--wait", "30", "--url", url)
        assert (done.returncode, done.stderr) == (0, "")
        assert "pushed to waited, for 1 device; complete, satisfied (1 needed)" in done.stdout
        done = pere("push", "waited", "1", "--to", "somebody", "--wait", "0", "--url", url)
        assert (done.returncode, done.stderr) == (3, "")
        assert "1 outstanding, not yet satisfied (1 needed)" in done.stdout
        done = pere("push", "waited", "1", "--to", "somebody", "--wait", "0", "--json", "--url", url)
        assert (done.returncode, json.loads(done.stdout)["counts"]["pending"]) == (3, 1)


def test_an_event_is_taken_back(url):
    (event,) = pushed(url, "recalled", "1", "--to", "till")
    done = pere("recall", "recalled", event["id"], "--url", url)
    assert (done.returncode, done.stdout) == (0, f"{event['id']}  recalled from recalled; receipts still owed: 1\n")
    assert json.loads(pere("recall", "recalled", event["id"], "--json", "--url", url).stdout)["cancelled"] == 0
    assert pere("recall", "recalled", "1-0", "--url", url).returncode == 1


def test_a_listener_may_ask_to_be_sent_again_what_it_did_not_answer(url):
    with Process("listen", "again", "--device", "till", "--receipt", "none", "--ack-wait", "0.3", "--window", "1", "--json", "--url", url) as listener:
        listener.until("pere.hello")
        pushed(url, "again", "1")
        listener.until('"attempt":2')


def test_each_line_is_an_event_and_what_is_refused_spoils_no_other(url):
    lines = b'{"n": 1.10}\n\n  plain text\n12345678901234567890123\n"end"'
    done = subprocess.run([*PERE, "push", "lines", "--lines", "-", "--type", "note", "--url", url], input=lines, env=ENVIRONMENT, capture_output=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"4 pushed\n", b"")
    events = heard(url, "lines")
    assert [(event["data"], event["type"]) for event in events] == [({"n": 1.1}, "note"), ("plain text", "note"), (12345678901234567890123, "note")]
    done = pere("push", "--lines", "-", "--url", url, typed='{"channel": "named", "data": 1}\nnope\n{"channel": "a b", "data": 2}\n{"channel": "named", "data": "end"}\n')
    assert (done.returncode, done.stdout) == (1, "2 pushed, 2 refused\n")
    assert re.fullmatch(r"pere: line 2: bad_json: .+\npere: line 3: bad_channel: .+\n", done.stderr)
    assert [event["data"] for event in heard(url, "named")] == [1]


def test_of_many_lines_that_are_refused_some_are_told(url):
    done = pere("push", "--lines", "-", "--url", url, typed="{}\n" * 30)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "0 pushed, 30 refused\n", 21)
    assert done.stderr.endswith("pere: and 10 more lines were refused\n")


def test_many_lines_come_in_their_order_and_each_has_an_answer(url):
    done = pere("push", "many", "--lines", "-", "--json", "--url", url, typed="\n".join(map(str, range(1500))))
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, len({answer["id"] for answer in answers})) == (0, 1500)
    page = json.loads(subprocess.run(["curl", "-s", f"{url}/events/many?limit=1000"], capture_output=True, timeout=SECONDS, check=True).stdout)
    assert [event["data"] for event in page["events"]][-500:] == list(range(1000, 1500)) and page["events"][-1]["id"] == answers[-1]["id"]


def test_a_pipe_that_drips_is_pushed_drop_by_drop_and_ctrl_c_ends_it(url):
    with piped(*PERE, "push", "drops", "--lines", "-", "--json", "--url", url) as publisher:
        for number in range(3):
            publisher.stdin.write(b"%d\n" % number)
            publisher.stdin.flush()
            assert json.loads(line_of(publisher))["channel"] == "drops"
        publisher.send_signal(SIGINT)
        assert publisher.wait(SECONDS) == 130
        assert publisher.stderr.read() == b""


def test_a_reader_that_leaves_early_ends_a_publisher_without_a_word(url):
    with piped(*PERE, "push", "read", "--lines", "-", "--json", "--url", url) as publisher:
        publisher.stdin.write(b"1\n")
        publisher.stdin.flush()
        assert line_of(publisher)
        publisher.stdout.close()
        publisher.stdin.write(b"2\n")
        publisher.stdin.flush()
        assert publisher.wait(SECONDS) == 141
        assert publisher.stderr.read() == b""


@pytest.mark.parametrize("arguments", [["config"], ["doctor", "--store", "memory:", "--port", "0"], ["push", "--help"], ["completion", "bash"], ["store", "export", "some.db"],
                                       ["status", "c", "1-0"], ["push", "c", "1"], ["top", "--once"], ["token", "--device", "d", "--secret", 32 * "x"], ["listen", "c", "--device", "d", "--count", "1"]])
def test_a_reader_that_has_gone_already_ends_every_verb_without_a_word(url, arguments, tmp_path):
    if arguments[0] == "store":
        with Served("--store", f"sqlite:{tmp_path / arguments[2]}") as served:
            pushed(served.url, "c", "1")
    if arguments[0] == "status":
        arguments = [*arguments[:2], pushed(url, "c", "1")[0]["id"]]
    if arguments[0] == "listen":
        pushed(url, "c", "1", "--to", "d")
    gone, pipe = os.pipe()
    os.close(gone)
    with open(pipe, "wb") as unread, piped(*PERE, *arguments, env=ENVIRONMENT | {"PERE_URL": url}, cwd=tmp_path, stdin=None, stdout=unread) as verb:
        assert (verb.wait(SECONDS), re.findall(rb"Traceback|Error|pere: ", verb.stderr.read())) == (141, [])


@pytest.mark.parametrize("arguments", [["1"], ["--every", "1"], ["--count", "2"], ["--key", "k"], ["--wait", "1"]])
def test_lines_bring_the_data_and_nothing_else_does(url, arguments):
    done = pere("push", "c", *arguments, "--lines", "-", "--url", url, typed="1\n")
    assert (done.returncode, "--lines brings the data" in done.stderr) == (2, True)


def test_a_key_is_published_once(url):
    first, second = pushed(url, "keyed", "1", "--key", "k"), pushed(url, "keyed", "1", "--key", "k")
    assert first[0]["id"] == second[0]["id"]
    again = pere("push", "keyed", "1", "--key", "k", "--count", "2", "--url", url)
    assert (again.returncode, "--key publishes once" in again.stderr) == (2, True)


@pytest.mark.parametrize("arguments, code", [
    (["a b", "1"], "bad_channel"),
    (["c", "1", "--receipt", "maybe"], "bad_receipt"),
    (["c", "1", "--type", "pere.hello"], "bad_type"),
    (["c", "1", "--device", "a b"], "bad_device"),
    (["c", "1", "--key", "a\nb"], "bad_header"),
    (["c", "1", "--need", "some"], "bad_need"),
])
def test_what_the_server_refuses_is_told_in_its_own_words_and_exit_1(url, arguments, code):
    done = pere("push", *arguments, "--url", url)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"pere: {code}\w*: .+\n", done.stderr)


@pytest.mark.parametrize("arguments", [["push", "c", "1"], ["listen", "c"], ["status", "c", "1-0"]])
def test_a_server_that_is_not_there_is_one_line_and_exit_1(arguments):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        nowhere = "http://127.0.0.1:%d" % unused.getsockname()[1]
    done = pere(*arguments, PERE_URL=nowhere)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"pere: {nowhere} cannot be reached: Connection refused\n"


@pytest.mark.parametrize("arguments", [
    ["push"], ["listen"], ["status", "c"], ["push", "c", "--count", "0"], ["listen", "c", "--receipt", "perhaps"],
    ["listen", "c", "--receipt", "failed"], ["push", "c", "1", "--url", "localhost"], ["shout"],
])
def test_wrong_usage_is_exit_2(arguments):
    done = pere(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error: " in done.stderr


# listen and status


def test_an_event_is_shown_answered_for_and_accounted_for(url):
    with Process("listen", "orders", "--device", "till-1", "--status", "printed", "--url", url) as till:
        till.until("pere.hello")
        [answer] = pushed(url, "orders", '{"order": 1}', "--type", "order")
        till.until(rf'orders  {answer["id"]}  order  {{"order":1}}')
        till.until("receipt processed")
        shown = pere("status", "orders", answer["id"], "--devices", "--url", url).stdout
        assert "complete, satisfied (1 needed); asks for: processed" in shown
        assert re.search(r"processed +1 +100.0 %", shown)
        assert re.search(r"till-1 +processed +1 .* \d{4}-\d\d-\d\dT[\d:.]+Z +yes +printed", shown)
        assert till.end(SIGINT) == 130
        assert "Traceback" not in till.err


def test_status_as_json_is_the_servers_word_and_then_a_line_per_device(url):
    for name in ("till-1", "till-2"):
        with Process("listen", "owing", "--device", name, "--receipt", "none", "--url", url) as till:
            till.until("pere.hello")
    [answer] = pushed(url, "owing", "1")
    done = pere("status", "owing", answer["id"], "--state", "outstanding", "--json", "--url", url)
    status, *devices = map(json.loads, done.stdout.splitlines())
    assert (status["audience"], status["outstanding"]) == (2, 2)
    assert {device["device"] for device in devices} == {"till-1", "till-2"}


def test_a_failure_is_reported_and_the_first_word_stands(url):
    sad = ["listen", "sad", "--device", "d", "--count", "1", "--url", url]
    with Process(*sad, "--receipt", "failed", "--status", "no paper") as device:
        device.until("pere.hello")
        [answer] = pushed(url, "sad", "1")
        assert device.end() == 0
    assert json.loads(pere("status", "sad", answer["id"], "--json", "--url", url).stdout)["counts"]["failed"] == 1
    with Process(*sad, "--from", "all") as device:
        assert device.end() == 0
        assert "receipt refused, conflict" in device.err


def test_a_pattern_listens_to_channels_that_are_born_later(url):
    with Process("listen", "born.*", "alarms", "--device", "d", "--json", "--count", "2", "--url", url) as device:
        device.until("pere.hello")
        pushed(url, "born.later", "1")
        pushed(url, "alarms", "2")
        assert device.end() == 0
        first, second = map(json.loads, device.out.splitlines())
        assert (first["channel"], second["channel"]) == ("born.later", "alarms")


def test_a_listener_survives_the_end_of_its_server():
    with Served("--retry", "0.2", port=free_port()) as first:
        with Process("listen", "c", "--device", "d", "--url", first.url) as device:
            device.until("pere.hello")
            first.kill()
            device.until("trying again in")
            with Served("--retry", "0.2", port=first.port) as second:
                device.until("(?s)pere.hello.*pere.hello")
                pushed(second.url, "c", '"back"')
                device.until("receipt processed")
                assert second.end(SIGTERM) == 0
                device.until(r'pere\.bye \{"reason":"drain"')
            assert device.end(SIGINT) == 130
            assert "Traceback" not in device.err


def test_a_listener_whose_reader_leaves_ends(url):
    pushed(url, "piped", "--count", "3")
    with piped(*PERE, "listen", "piped", "--from", "all", "--json", "--url", url) as listener:
        assert line_of(listener)
        listener.stdout.close()
        pushed(url, "piped", "--count", "3")
        listener.wait(SECONDS)
        assert b"Traceback" not in listener.stderr.read()


def test_on_a_terminal_an_event_has_one_line_with_what_was_answered(url):
    with Terminal("listen", "lined", "--device", "till", "--url", url) as terminal:
        terminal.until("listening to lined as till; Ctrl-C ends it")
        pushed(url, "lined", '{"n": 1}', "--type", "order")
        terminal.until(r'lined  \d+-\d+  order  {"n":1}  processed\r\n')
        terminal.type(b"\x03")
        assert terminal.end() == 130
        assert "Traceback" not in terminal.text and "pere.hello" not in terminal.text
        assert b"\x1b[32mprocessed" in terminal.seen  # in green


# Completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_a_shell_is_printed(shell):
    done = pere("completion", shell)
    assert (done.returncode, "_PERE_COMPLETE" in done.stdout) == (0, True)


def completed(*words: str, **variables: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", "from pere.cli import main; main(prog_name='pere')"], capture_output=True, text=True, check=False,
                          timeout=SECONDS, env=ENVIRONMENT | {"_PERE_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(["pere", *words]), "COMP_CWORD": str(len(words) if words else 1)} | variables)
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_verbs_options_and_channels_are_completed(url):
    assert completed("st") == ["status", "store"]
    assert "--receipt" in completed("listen", "--re")
    with Process("listen", "kitchen.hot", "kitchen.cold", "bar", "--url", url) as device:
        device.until("pere.hello")
        for verb in ("listen", "push", "status", "recall"):
            # A shell waits for half a second only, and a machine may be as busy as it likes.
            assert any(completed(verb, "kit", PERE_URL=url) == ["kitchen.cold", "kitchen.hot"] for _ in range(20))
    assert completed("listen", "kit", PERE_URL="http://127.0.0.1:1") == completed("listen", "kit", PERE_URL="nonsense") == []


# What is shown


def test_nothing_that_a_terminal_would_obey_is_printed(url):
    pushed(url, "hostile", r'"\u001b[31mred\u0007 \u009b2J [bold]x[/bold] :smile:\r\n"')
    shown = pere("listen", "hostile", "--from", "all", "--count", "1", "--url", url).stdout
    assert shown.endswith(r"\x1b[31mred\x07 \x9b2J [bold]x[/bold] :smile:\r\n" + "\n")
    assert printable({"a": "\x1b"}) == r'{"a":"\u001b"}'


@pytest.mark.parametrize("counts", [
    {"processed": 1}, {"processed": 1, "pending": 2}, {"processed": 999, "failed": 1}, {"pending": 70, "sent": 3},
    dict.fromkeys(COLOURS, 1),
])
def test_the_bar_is_as_long_as_it_should_be_whatever_it_shows(counts):
    assert len(bar(counts, sum(counts.values()), "#")) == BAR


@pytest.mark.parametrize("seconds, shown", [
    (0.0012, "1.2 ms"), (0.85, "850 ms"), (0.9996, "1 s"), (1, "1 s"), (90, "90 s"), (119.9, "2 min"), (120, "2 min"), (7200, "2 h"), (864_000, "10 d")])
def test_a_latency_is_shown_in_the_unit_that_people_would_use(seconds, shown):
    assert duration(seconds) == shown


def test_what_is_piped_in_and_is_no_text_is_a_wrong_command_line():
    told = subprocess.run([*PERE, "push", "c", "-"], input=b"\xff", env=ENVIRONMENT, capture_output=True, timeout=25, check=False)
    assert told.returncode == 2
    assert b"UTF-8" in told.stderr and b"Traceback" not in told.stderr
