"""`pere doctor`: real disks, ports, proxies and servers that are not well, and what it says of each."""

import asyncio
import json
import os
import platform
import re
import resource
import socket
import sqlite3
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from certificates import Authority
from minting import PRIVATE, SECRET, jwk, private_pem, token
from nginxes import Nginx
from processes import ENVIRONMENT, PERE, SECONDS, Served, Started, free_port, pere
from redises import RedisServer, common

from pere.config import Config
from pere.doctor import ADVICE, OK, WRONG, keys, machine, stores, way
from pere.gate import SPARE
from pere.storage import schema


def told(*arguments: str, **variables: str) -> tuple[int, list[dict]]:
    done = pere("doctor", "--json", *arguments, **variables)
    assert done.stderr == ""
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def settled(findings) -> list:
    """Without those that only say that this machine is slow today."""
    return [each for each in findings if each.state != ADVICE or not re.search(r"takes [0-9.]+ ms", each.what)]


def states(findings) -> list[str]:
    return [finding.state for finding in settled(findings)]


def one(findings, state: str, about: str | None = None):
    """The finding in this state, of which there must be one; who is not well is told what to do."""
    (finding,) = [each for each in settled(findings) if each.state == state and about in (None, each.about)]
    assert state == OK or finding.remedy
    return finding


def aside(work):
    """In a thread, since what has a loop of its own may not take the place of the test's."""
    with ThreadPoolExecutor(1) as elsewhere:
        return elsewhere.submit(work).result(SECONDS)


# The command


def test_what_is_well_is_exit_0_and_what_is_wrong_exit_1_with_a_remedy(tmp_path):
    well = ["--port", "0", "--store", f"sqlite:{tmp_path / 'pere.db'}", "--retention-bytes", str(1 << 20), "--max-feeds", "10"]
    code, findings = told(*well)
    assert (code, {each["state"] for each in findings} - {"ok", "advice"}) == (0, set())
    assert os.listdir(tmp_path) == []
    done = pere("doctor", *well, "--jwt-secret", "short")
    assert done.returncode == 1
    assert "wrong  tokens: --jwt-secret: a secret has at least 32 bytes" in done.stdout
    assert "\n       -> a secret: `openssl rand -base64 32`" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("1 wrong, ")


@pytest.mark.parametrize("arguments, sentence", [
    (["--port", "70000"], "--port is at most 65535"), (["--url", "localhost"], "a server's URL is like"), (["--url", "http://localhost", "--channel", "a b"], "a channel is"),
    (["--url", "http://localhost", "--token", "a b"], "a token is letters"), (["--prot", "1"], "No such option"),
])
def test_a_wrong_command_line_or_setting_is_exit_2(arguments, sentence):
    done = pere("doctor", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr and "Traceback" not in done.stderr


def test_a_port_and_a_file_that_a_server_has_are_told_with_who_has_them(tmp_path):
    path = tmp_path / "pere.db"
    with Started("--store", f"sqlite:{path}") as served:
        before = (tmp_path / "pere.db-lock").read_bytes()
        code, findings = told("--port", str(served.port), "--store", f"sqlite:{path}")
        said = {each["about"]: each for each in findings if each["state"] == "wrong"}
        assert code == 1 and said.keys() == {"address", "store"}
        assert f"is taken by pid {served.pid} (" in said["address"]["what"] and "pere serve" in said["address"]["what"].replace("-m ", "")
        assert f"{path} is in use by another process (pid {served.pid})" in said["store"]["what"]
        # It has harmed nobody.
        assert pere("push", "c", "1", "--url", served.url).returncode == 0
        assert (tmp_path / "pere.db-lock").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["pere.db", "pere.db-lock", "pere.db-shm", "pere.db-wal"]


# The machine


@pytest.mark.parametrize("prefix, built, state, sentence", [
    ("/usr", "'--enable-shared'", OK, platform.python_version()), ("/usr/local", None, OK, platform.python_version()),
    ("/usr/local", "'--enable-optimizations' '--with-lto'", OK, f"{platform.python_version()}, built with a profile (PGO)"),
    ("/opt/python", "'--enable-shared' 'LDFLAGS=-L/opt/python/lib'", ADVICE, "was built without a profile"),
])
def test_a_python_that_is_slower_than_it_could_be_is_told(prefix, built, state, sentence):
    assert sentence in one(machine.interpreter(prefix, built), state).what
    assert set(states(machine.interpreter())) <= {OK, ADVICE}  # this very one


@contextmanager
def files(most: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("most, feeds, state", [(500, 1000, WRONG), (2000, 5000, ADVICE), (2000, 1800, OK)])
def test_open_files_are_held_against_the_feeds_that_are_wanted(most, feeds, state):
    with files(most):
        finding = one(machine.files(Config(max_feeds=feeds)), state)
    assert f"{most:,}" in finding.what
    if state != OK:
        assert f"LimitNOFILE={feeds + SPARE}" in finding.remedy


def test_the_kernel_is_asked_for_what_a_fleet_takes(tmp_path):
    for name, text in (("core/somaxconn", "128"), ("ipv4/tcp_max_syn_backlog", "4096"), ("ipv4/ip_local_port_range", "32768\t60999"), ("netfilter/nf_conntrack_max", "65536")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    found = list(machine.kernel(Config(), tmp_path))
    assert [(each.state, each.remedy) for each in found] == [(ADVICE, "sysctl -w net.core.somaxconn=4096"), (ADVICE, "sysctl -w net.netfilter.nf_conntrack_max=200000")]
    found = list(machine.kernel(Config(trusted_proxies="10.0.0.0/8", max_feeds=50_000), tmp_path))
    assert "28,232 connections to one port" in found[1].what
    (tmp_path / "core/somaxconn").write_text("4096")
    assert states(machine.kernel(Config(max_feeds=10), tmp_path)) == [OK]
    assert states(machine.kernel(Config(), tmp_path / "none")) == [OK]
    assert set(states(machine.kernel(Config()))) <= {OK, ADVICE}  # this very machine


def test_who_listens_may_be_a_stranger_and_a_port_may_be_shared():
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        port = taken.getsockname()[1]
        finding = one(machine.addresses(Config(port=port)), WRONG)
        assert f"pid {os.getpid()}" in finding.what and f"--port {port + 1}" in finding.remedy
        assert states(machine.addresses(Config(port=port, reuse_port=True))) == [OK]
        # What is no address of this machine is not taken by who has the port here.
        assert one(machine.addresses(Config(host="192.0.2.1", port=port, insecure=True)), WRONG).what.startswith(f"192.0.2.1:{port} cannot be had: 192.0.2.1 is no address")
        # It listens as before, and nobody was let in.
        taken.settimeout(0)
        with pytest.raises(BlockingIOError):
            taken.accept()
    assert states(machine.addresses(Config(port=port, admin_port=0))) == [OK, OK]
    assert "no name of this machine" in one(machine.addresses(Config(host="nowhere.invalid", insecure=True)), WRONG).what


def test_a_unix_socket_may_be_had_unless_somebody_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()

    def tried(path: str):
        (finding,) = machine.addresses(Config(tcp=False, unix=path))
        return finding.state, finding.what

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("p.sock")
        assert tried("p.sock") == (OK, "unix:p.sock can be had: a process left it behind")
        listening.listen()
        assert tried("p.sock") == (WRONG, "--unix p.sock is taken: somebody listens there")
    assert tried("p.sock")[0] == OK
    assert (tmp_path / "p.sock").exists()  # looking takes nothing away
    assert tried("new.sock") == (OK, "unix:new.sock can be had")
    assert tried("file") == (WRONG, "--unix file is there, and is no socket")
    assert "there is no folder" in tried("none/p.sock")[1]
    assert "longer than the 107 bytes" in tried("p" * 108)[1]


def test_a_clock_that_steps_is_told():
    times = iter([100.0, 160.0, 160.0])
    passing = iter([0.0, 0.5])
    (finding,) = machine.clock(lambda: next(times), lambda: next(passing), watch=0.0)
    assert finding.state == ADVICE and "moved by +59.5 s" in finding.what
    assert states(machine.clock(watch=0.0)) in ([OK], [ADVICE])  # this very machine


# A file


def looked_at(path, **config):
    return list(stores.store(Config(store=f"sqlite:{path}", **config)))


def test_a_disk_that_is_full_is_found_by_writing_to_it(tmp_path):
    done = subprocess.run(["bash", "-c", 'ulimit -f 1; exec "$@"', "-", *PERE, "doctor", "--json", "--port", "0", "--store", f"sqlite:{tmp_path / 'pere.db'}"],
                          env=ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    said = [each for each in map(json.loads, done.stdout.splitlines()) if each["about"] == "store" and each["state"] != "ok"]
    assert [each["state"] for each in said] == ["wrong", "advice"]
    assert said[0]["what"] == f"nothing can be written in {tmp_path}: File too large" and "ulimit -f" in said[0]["remedy"]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name, write, sentence", [
    ("none/pere.db", None, "there is no folder"), ("pere.db", lambda path: path.write_text("no database, and long enough to be looked at\n" * 99), "cannot be read as a database of PERE"),
    ("pere.db", lambda path: sqlite3.connect(path).execute("create table mails (id)").connection.close(), "some other program"),
    ("pere.db", lambda path: (schema.prepare(str(path), "full").close(), sqlite3.connect(path).execute(f"pragma user_version = {schema.VERSION + 1}").connection.close()), "newer PERE"),
])
def test_a_file_that_no_server_would_take_is_told(tmp_path, name, write, sentence):
    if write is not None:
        write(tmp_path / name)
    (finding,) = looked_at(tmp_path / name)
    assert finding.state == WRONG and sentence in finding.what and "pere store restore" in finding.remedy


def test_a_file_of_an_older_version_is_told_before_it_is_changed(tmp_path):
    connection = sqlite3.connect(tmp_path / "pere.db")
    connection.executescript((Path(__file__).parent / "storage" / "version_1.sql").read_text())
    connection.close()
    before = (tmp_path / "pere.db").read_bytes()
    assert f"the next start makes it version {schema.VERSION}" in one(looked_at(tmp_path / "pere.db", retention_bytes=1 << 20), ADVICE).what
    assert (tmp_path / "pere.db").read_bytes() == before


def test_a_file_that_may_outgrow_its_disk_is_told(tmp_path):
    assert "and --retention-bytes" not in str(looked_at(tmp_path / "pere.db", retention_bytes=1 << 20))
    assert "the file may grow by 1,126 TB" in one(looked_at(tmp_path / "pere.db", retention_bytes=1 << 50), ADVICE).what


def test_events_from_the_future_are_told(tmp_path):
    connection = schema.prepare(str(tmp_path / "pere.db"), "full")
    id = int((time.time() + 7200) * 1000) << 20
    connection.execute(f"insert into events (id, channel, ordinal, time, ttl, level, is_json, type, publisher, data) values ({id}, 1, 1, 0, 1, 0, 1, '', '', x'31')")
    connection.close()
    finding = one(looked_at(tmp_path / "pere.db", retention_bytes=1 << 20), ADVICE)
    assert finding.about == "clock" and "ahead of this clock" in finding.what


def test_memory_is_said_to_forget_and_what_is_no_store_is_wrong():
    assert states(stores.store(Config(store="memory:"))) == [ADVICE]
    for name in ("sqlite:", "mongo://here", "pere.db"):
        assert states(stores.store(Config(store=name))) == [WRONG]


# Redis


def of_redis(url: str) -> list:
    return aside(lambda: list(stores.store(Config(store=url))))


def test_a_redis_that_keeps_what_it_is_told_is_well(tmp_path):
    with RedisServer(tmp_path) as there:
        assert set(states(of_redis(there.url))) == {OK}
        with Served("--store", there.url):
            assert any(each.what == "1 node is there" for each in of_redis(there.url))
        there.ask("CONFIG", "SET", "appendfsync", "everysec")
        assert "appendfsync is everysec" in one(of_redis(there.url), ADVICE).what
        there.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        assert "maxmemory-policy is allkeys-lru" in one(of_redis(there.url), WRONG).what
        there.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
        there.ask("ACL", "SETUSER", "limited", "on", "nopass", "~*", "&*", "+@all", "-config")
        assert set(states(of_redis(there.url.replace("127", "limited:x@127", 1)))) == {OK}
        there.ask("ACL", "SETUSER", "poor", "on", "nopass", "~pere:*", "&pere:*", *"+@read +@write +@scripting +@pubsub +@connection +time".split())
        assert "may not ask" in one(of_redis(there.url.replace("127", "poor:x@127", 1)), ADVICE).what
        there.ask("REPLICAOF", "127.0.0.1", "1")
        assert "is a replica" in one(of_redis(there.url), WRONG).what


def test_a_redis_that_keeps_nothing_is_told():
    assert "appendonly is off" in one(of_redis(common().url), ADVICE).what


def test_a_redis_that_is_away_is_wrong_and_its_password_is_not_shown():
    finding = one(of_redis(f"redis://user:{SECRET}@127.0.0.1:{free_port()}/0"), WRONG)
    assert "Redis does not answer" in finding.what and SECRET not in str(finding)
    assert one(of_redis("redis://h:port/0"), WRONG)


@pytest.mark.parametrize("said, latency, ahead, state, sentence", [
    ({"redis_version": "6.2.1"}, 0, 0, WRONG, "Redis is 6.2.1, and 7 or later is wanted"), ({}, 0.02, 0, ADVICE, "takes 20.0 ms to answer"),
    ({"connected_slaves": 0}, 0, 0, WRONG, "--redis-wait is 1, and 0 replicas are connected"), ({}, 0, -3.0, WRONG, "the clock of Redis is 3.0 s behind"), ({}, 0, 0.5, OK, "appends to its file"),
])
def test_what_a_redis_says_of_itself_is_judged(said, latency, ahead, state, sentence):
    well = {"redis_version": "7.2.4", "role": "master", "maxmemory_policy": "noeviction", "aof_enabled": 1}
    found = list(stores.judged(Config(store="redis://here", redis_wait=1), well | {"connected_slaves": 1} | said, "always", latency, ahead))  # with what was measured handed in
    assert any(each.state == state and sentence in each.what for each in found)


# Keys and certificates


def test_keys_that_cannot_be_are_told(tmp_path):
    assert states(keys.tokens(Config(), None)) == [OK]
    assert states(keys.tokens(Config(host="0.0.0.0", insecure=True), None)) == [ADVICE]
    assert states(keys.tokens(Config(jwt_secret=SECRET), None)) == [OK]
    assert SECRET[:20] not in str(one(keys.tokens(Config(jwt_secret=SECRET[:20]), None), WRONG))
    (tmp_path / "key.pem").write_bytes(private_pem(PRIVATE["ES256"]))
    assert "this is a private key" in one(keys.tokens(Config(jwt_public_key=str(tmp_path / "key.pem")), None), WRONG).what
    assert "No such file" in one(keys.tokens(Config(jwt_public_key=str(tmp_path / "none.pem")), None), WRONG).what
    assert "https" in one(keys.tokens(Config(jwt_jwks="http://keys.example/"), None), WRONG).what


def test_a_token_is_held_against_the_keys():
    config = Config(jwt_secret=SECRET)
    assert "holds, for till" in list(keys.tokens(config, token("till")))[1].what
    assert "expired" in one(keys.tokens(config, token("till", expires=-60)), WRONG).what
    assert "signature" in one(keys.tokens(config, token("till", key=SECRET + "x")), WRONG).what


def test_a_certificate_is_looked_at_with_its_key(tmp_path):
    there = Authority(tmp_path)
    cert, key = there.sign("a")
    assert list(keys.certificate(Config())) == []
    os.chmod(key, 0o600)
    assert states(keys.certificate(Config(tls_cert=cert, tls_key=key))) == [OK]
    os.chmod(key, 0o644)
    assert "may read the key" in one(keys.certificate(Config(tls_cert=cert, tls_key=key)), ADVICE).what
    assert "is not the key of" in one(keys.certificate(Config(tls_cert=cert, tls_key=there.sign("b")[1])), WRONG).what
    assert "cannot be read" in one(keys.certificate(Config(tls_cert=str(tmp_path / "none.pem"))), WRONG).what


@pytest.mark.parametrize("days, state", [(-1, WRONG), (5, ADVICE), (60, OK)])
def test_a_certificate_ends_one_day(days, state):
    now = datetime.now(UTC)
    assert keys.ended(now - timedelta(365), now + timedelta(days), now, "it").state == state


def test_a_certificate_that_has_not_begun_is_wrong():
    now = datetime.now(UTC)
    assert keys.ended(now + timedelta(1), now + timedelta(90), now, "it").state == WRONG


@pytest.mark.parametrize("said, state, sentence", [
    ({"trusted_proxies": "0.0.0.0/0"}, WRONG, "believes everybody"), ({"trusted_proxies": "unix"}, ADVICE, "there is no Unix socket"),
    ({"trusted_proxies": "10.0.0.0/8", "tcp": False, "unix": "p"}, ADVICE, "lets nobody come"), ({"host_names": "a.example", "jwt_secret": SECRET}, ADVICE, "--host-names"),
    ({"cors_origins": "*,https://a.example"}, ADVICE, "has `*`"), ({"tls_cert": "c", "tcp": False, "unix": "p"}, ADVICE, "--tls-cert is for --port"),
    ({"host": "0.0.0.0", "jwt_secret": SECRET}, ADVICE, "in the plain"), ({"admin_port": 1, "admin_host": "0.0.0.0", "jwt_secret": SECRET, "trusted_proxies": "10.0.0.1"}, ADVICE, "administration"),
    ({"heartbeat": 90.0}, ADVICE, "proxies cut"), ({"insecure": True}, ADVICE, "nobody asks for"),
    ({"metrics_channels": ",".join(map(str, range(101)))}, ADVICE, "a series of its own"), ({"metrics_channels": "a,b/c"}, ADVICE, "not 'b/c'"),
    ({}, OK, "none contradicts"), ({"trusted_proxies": "unix", "unix": "p"}, OK, "none contradicts"),
])
def test_settings_that_contradict_each_other_are_told(said, state, sentence):
    (finding,) = keys.contradictions(Config(**said))
    assert finding.state == state and sentence in finding.what


def test_a_variable_that_is_no_setting_is_told_with_the_one_that_is_meant():
    found = [(finding.state, finding.what, finding.remedy) for finding in keys.misspelt({"PERE_PROT": "1", "PERE_XYZZY": "1", "PERE_PORT": "1", "HOME": "h"})]
    assert found == [(ADVICE, "PERE_PROT is no setting", "PERE_PORT, if that is meant"), (ADVICE, "PERE_XYZZY is no setting", "unset PERE_XYZZY")]
    assert "PERE_PROT is no setting" in pere("doctor", "--store", "memory:", "--port", "0", PERE_PROT="1").stdout


# The way to a server

PROXIES = {
    "well": "proxy_buffering on;",
    "holding": "proxy_http_version 1.0; proxy_ignore_headers X-Accel-Buffering; proxy_buffering on;",
    "squeezing": "gzip on; gzip_proxied any; gzip_types text/event-stream; gzip_min_length 1;",
    "cutting": "proxy_read_timeout 1s;",
    "forgetful": "proxy_set_header Last-Event-ID ''; proxy_set_header Device '';",
    "stripping": "proxy_set_header Authorization '';",
    "old": "add_header Via '1.0 cache';",
}
OTHERS = {
    "dead": "location / { proxy_pass http://unix:/nowhere/pere.sock; }",
    "captive": "location / { return 302 https://login.example/; }",
    "another": "location / { default_type text/html; return 200 '<h1>It works</h1>'; }",
    "inward": "location / { return 407; }",
    "halfway": "location = / { default_type application/json; return 200 '{\"message\": \"PERE server up and running\", \"version\": \"1\"}'; } "
               "location = /readyz { return 503; } location / { default_type text/html; return 200 '<h1>It works</h1>'; }",
    "keys": "location = /keys { default_type application/json; return 200 '%s'; } location / { return 404; }",
}


class Between:
    """A server behind proxies of all kinds: `url["holding"]` is the way through one."""

    def __init__(self, ports: dict[str, int]):
        self.url = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}

    def __call__(self, name: str, token: str | None = None, watch: float = 30.0) -> list:
        async def look() -> list:
            return [each async for each in way.Way(self.url.get(name, name), token, "pere.doctor", watch).findings()]

        return aside(lambda: asyncio.run(look()))


@pytest.fixture(scope="module")
def between(tmp_path_factory):
    folder = tmp_path_factory.mktemp("between")
    ports = {name: free_port() for name in (*PROXIES, *OTHERS)}
    with Served("--heartbeat", "0.3", "--unix", str(folder / "p.sock")) as served, Served("--jwt-secret", SECRET) as locked:
        blocks = [f"server {{ listen 127.0.0.1:{ports[name]}; location / {{ proxy_pass {locked.url if name in ('stripping', 'cutting') else served.url}; {how} }} }}"
                  for name, how in PROXIES.items()]
        document = json.dumps({"keys": [jwk("ES256", "a")]})
        blocks += [f"server {{ listen 127.0.0.1:{ports[name]}; {how % document if name == 'keys' else how} }}" for name, how in OTHERS.items()]
        with Nginx(folder, "\n".join(blocks), *ports.values()):
            there = Between(ports)
            there.url |= {"direct": served.url, "locked": locked.url, "unix": f"unix:{folder / 'p.sock'}", "plain": served.url.replace("http", "https")}
            yield there


@pytest.mark.parametrize("name", ["direct", "unix", "well"])
def test_a_way_that_is_clear_is_well(between, name):
    found = between(name)
    assert set(states(found)) == {OK}, found
    assert [each.about for each in found] == ["way", "clock", "server", "buffering", "timeouts", "headers", "headers"]
    assert "a heartbeat arrives after" in found[4].what


@pytest.mark.parametrize("name, about, sentence", [
    ("squeezing", "buffering", "compressed on the way (gzip)"), ("cutting", "timeouts", "is cut off after"), ("forgetful", "headers", "Last-Event-ID does not arrive"),
    ("dead", "way", "a proxy answers 502"), ("captive", "way", "sends us to https://login.example/"), ("another", "way", "answers 200 with text/html"),
    ("inward", "way", "wants to know who asks (407)"), ("halfway", "way", "a feed comes as text/html"), ("plain", "way", "does not speak TLS"),
])
def test_what_stands_in_the_way_is_told(between, name, about, sentence):
    found = [each for each in between(name, token("d", feed=["**"]) if name == "cutting" else None) if each.state == WRONG and each.about == about]
    assert found and sentence in found[0].what and found[0].remedy, found


def test_a_proxy_that_holds_feeds_back_is_told(between, monkeypatch):
    monkeypatch.setattr(way, "FIRST_WORDS", 0.5)
    finding = one(between("holding"), WRONG)
    assert finding.about == "buffering" and "proxy_buffering off" in finding.remedy


@pytest.mark.parametrize("date, state, sentence", [
    (1000, OK, "agree"), (1002, OK, "agree"), (999, OK, "agree"), (1006, ADVICE, "5 s ahead of"), (990, ADVICE, "9 s behind"), (1100, WRONG, "99 s ahead of"), (900, WRONG, "99 s behind")])
def test_the_clock_of_the_server_is_held_against_this_one(date, state, sentence):
    finding = way._clock(date, before=1000.0, after=1001.0)
    assert finding.state == state and sentence in finding.what


def test_a_proxy_of_long_ago_is_told(between):
    assert "HTTP/1.0 (1.0 cache)" in one(between("old"), ADVICE, "way").what


def test_a_server_that_is_not_ready_is_told(between):
    assert one(between("halfway"), WRONG, "server")


def test_silence_that_was_not_waited_for_is_no_failure(between):
    # The heart of this one beats every 20 s, so it is not heard by chance.
    assert one(between("locked", token("d", feed=["**"]), 0.1), ADVICE).about == "timeouts"


def test_heartbeats_that_are_announced_and_do_not_arrive_are_told():
    async def silent():
        await asyncio.sleep(60)
        yield b""

    there = way.Way("http://127.0.0.1:1", None, "c", 0.2)
    finding = aside(lambda: asyncio.run(there._silence(silent(), 0.1)))
    assert (finding.state, finding.about) == (WRONG, "timeouts") and "every 0.1 s, and none arrives" in finding.what
    assert aside(lambda: asyncio.run(there._silence(silent(), 20.0))).state == ADVICE


def test_a_token_is_wanted_refused_or_stripped_on_the_way(between):
    assert "asks for a token" in one(between("locked"), WRONG, "tokens").what
    assert "not_allowed" in one(between("locked", token("d", feed=["orders"])), WRONG, "tokens").what
    assert "expired_token" in one(between("locked", token("d", feed=["**"], expires=-60)), WRONG, "tokens").what
    assert "Authorization does not arrive" in one(between("stripping", token("d", feed=["**"])), WRONG, "headers").what
    found = between("locked", token("d", feed=["pere.*"]), 0.1)
    assert WRONG not in states(found) and [each.what for each in found[-2:]] == ["Last-Event-ID arrives", "Device arrives"]


def test_nobody_at_all_is_told(between):
    assert re.fullmatch(r"http://127.0.0.1:\d+ cannot be reached: Connection refused", one(between(f"http://127.0.0.1:{free_port()}"), WRONG).what)
    assert one(between("http://nowhere.invalid"), WRONG)


def test_one_that_begins_to_say_no_to_a_feed_and_says_no_more_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(way, "PATIENCE", 0.5)
    writers: list[asyncio.StreamWriter] = []
    answers = {b"/": b'{"message": "PERE server up and running"}', b"/readyz": b"{}"}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = answers.get((await reader.readuntil(b"\r\n\r\n")).split()[1])
        writer.write(b"HTTP/1.1 503 -\r\nContent-Length: 9\r\n\r\n" if body is None else b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        writers.append(writer)
        if body is not None:
            writer.close()

    async def look() -> list:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            there = way.Way(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", None, "c", 0.1)
            try:
                async with asyncio.timeout(SECONDS):
                    return [each async for each in there.findings()]
            finally:
                for each in writers:
                    each.close()
                    await each.wait_closed()

    assert "does not answer within 0.5 s" in one(aside(lambda: asyncio.run(look())), WRONG).what


def test_looking_leaves_nothing_behind(between):
    between("direct", watch=0.1)
    done = pere("status", "pere.doctor", "1-0", "--url", between.url["direct"])
    assert "unknown_event" in done.stderr
    with Served() as served:
        assert told("--url", served.url, "--watch", "0.1")[0] == 0
        metrics = subprocess.run(["curl", "-s", f"{served.url}/metrics"], capture_output=True, text=True, timeout=SECONDS, check=True).stdout
        assert 'pere_devices{state="registered"} 0.0' in metrics and "pere_events_total 0.0" in metrics


def test_keys_at_a_url_are_fetched(between):
    url = f"{between.url['keys']}/keys"
    def tokens(config: Config, token: str | None) -> list:
        return aside(lambda: list(keys.tokens(config, token)))

    assert "1 keys (ES256)" in one(tokens(Config(jwt_jwks=url), None), OK).what
    mine = token("d", key=PRIVATE["ES256"], algorithm="ES256", kid="a")
    assert states(tokens(Config(jwt_jwks=url), mine)) == [OK, OK]
    assert "answers 404" in one(tokens(Config(jwt_jwks=f"{url}/none"), None), WRONG).what
    assert "no document of keys" in one(tokens(Config(jwt_jwks=f"{between.url['another']}/"), None), WRONG).what
    assert "cannot be fetched" in one(tokens(Config(jwt_jwks=f"http://127.0.0.1:{free_port()}/"), None), WRONG).what


def test_a_certificate_is_looked_at_on_the_way(tmp_path):
    ca = trustme.CA()
    now = datetime.now(UTC)
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    signed = ca.issue_cert("127.0.0.1", not_after=now + timedelta(5))
    signed.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "cert.pem"))
    with Served("--admin-port", "0", "--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "cert.pem")) as served:
        url = served.until(r"https://127\.0\.0\.1:\d+")[0]
        code, found = told("--url", url, "--watch", "0.1", SSL_CERT_FILE=str(tmp_path / "ca.pem"))
        assert code == 0 and "ends in 4 days" in next(each["what"] for each in found if each["about"] == "certificate")
        code, found = told("--url", url)
        assert code == 1 and [each["about"] for each in found] == ["certificate"] and "CERTIFICATE_VERIFY_FAILED" in found[0]["what"]
