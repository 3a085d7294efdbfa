"""`pere token`, and the other verbs with a token, as a person at a terminal meets them."""

import json
import time

import jwt
import pytest
from minting import PRIVATE, SECRET, jwk, private_pem, public_pem, token
from processes import Process, Served, pere
from terminals import Terminal


def minted(*arguments: str, **variables: str) -> str:
    run = pere("token", *arguments, **({"PERE_JWT_SECRET": SECRET} | variables))
    assert (run.returncode, run.stderr) == (0, ""), run
    return run.stdout.strip()


def claims(text: str) -> dict:
    return jwt.decode(text, SECRET, algorithms=["HS256"], options={"verify_aud": False})


# To mint


def test_a_token_says_what_was_asked_for_and_nothing_else():
    before = int(time.time())
    said = claims(minted("--device", "till-1", "--feed", "orders.*", "--feed", "log", "--push", "till-1"))
    assert (said["sub"], said["pere"]) == ("till-1", {"push": ["till-1"], "feed": ["orders.*", "log"]})
    assert before <= said["iat"] <= time.time() and said["exp"] - said["iat"] == 3600
    assert claims(minted("--admin", "--audience", "pere"))["aud"] == "pere"
    assert claims(minted("--admin"))["pere"] == {"admin": True}


@pytest.mark.parametrize("text, seconds", [("90", 90), ("90s", 90), ("15m", 900), ("12h", 43_200), ("30d", 2_592_000)])
def test_how_long_it_holds_may_be_said_in_several_units(text, seconds):
    said = claims(minted("--device", "d", "--expires", text))
    assert said["exp"] - said["iat"] == seconds


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_private_key_signs_whatever_secret_is_there(algorithm, tmp_path):
    (tmp_path / "key.pem").write_bytes(private_pem(PRIVATE[algorithm]))
    text = minted("--device", "d", "--private-key", str(tmp_path / "key.pem"), "--kid", "k1")
    assert jwt.get_unverified_header(text) == {"alg": algorithm, "kid": "k1", "typ": "JWT"}
    assert jwt.decode(text, PRIVATE[algorithm].public_key(), algorithms=[algorithm])["sub"] == "d"


@pytest.mark.parametrize("arguments, said", [
    ([], "somebody's"), (["--device", "a b"], "a device is 1 to 128"), (["--push", "**x"], "only at the end"), (["--device", "d", "--expires", "soon"], "no time such as"),
    (["--device", "d", "--expires", "0"], "no time such as"), (["--device", "d", "--secret", "short"], "at least 32 bytes"), (["--device", "d", "--private-key", "/nowhere"], "does not exist"),
    (["--device", "d", "--private-key", "{public}"], "no private key")])
def test_what_cannot_be_minted_is_a_wrong_command_line(arguments, said, tmp_path):
    (tmp_path / "public.pem").write_bytes(public_pem(PRIVATE["ES256"]))
    run = pere("token", *[each.format(public=tmp_path / "public.pem") for each in arguments], PERE_JWT_SECRET=SECRET)
    assert (run.returncode, run.stdout) == (2, "")
    assert said in " ".join(run.stderr.split())


def test_without_a_key_nothing_is_signed():
    run = pere("token", "--device", "d")
    assert run.returncode == 2 and "PERE_JWT_SECRET" in run.stderr


# To explain


def test_a_token_is_explained_in_plain_words():
    text = token("till-1", push=["a", "b"], feed=["orders.**"], admin=True, expires=7300, aud="pere", nbf=time.time() - 60)
    run = pere("token", "inspect", text)
    assert run.returncode == 0
    for line in ("whose     till-1", "may       push to a, b; listen to orders.**; administer", "in 2 h", "for       pere", "signed    HS256", "only a key can tell"):
        assert line in run.stdout


@pytest.mark.parametrize("make, said, code", [
    (lambda: token("d"), "it holds", 0), (lambda: token("d", expires=-3600.0), "it does not hold: the token expired ", 1),
    (lambda: token("d", key="another secret of thirty-two bytes"), "it does not hold: the signature", 1), (lambda: token("d", aud="x"), "it does not hold: the token is for somebody else", 1),
    (lambda: token("d", key=None, algorithm="none"), "it does not hold", 1), (lambda: token("d", pere=1), "it does not hold", 1)])
def test_with_the_key_it_is_said_whether_it_holds_and_why_not(make, said, code):
    run = pere("token", "inspect", PERE_TOKEN=make(), PERE_JWT_SECRET=SECRET)
    assert (run.returncode, said in run.stdout) == (code, True), run


def test_public_keys_and_documents_of_them_tell_too(tmp_path):
    (tmp_path / "key.pem").write_bytes(public_pem(PRIVATE["RS256"]))
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [jwk("ES256", "e")]}))
    for text, arguments, code in ((token("d", key=PRIVATE["RS256"], algorithm="RS256"), ["--public-key", str(tmp_path / "key.pem")], 0),
                                  (token("d", key=PRIVATE["ES256"], algorithm="ES256", kid="e"), ["--jwks", str(tmp_path / "jwks.json")], 0),
                                  (token("d", key=PRIVATE["ES256"], algorithm="ES256", kid="x"), ["--jwks", str(tmp_path / "jwks.json")], 1)):
        assert pere("token", "inspect", *arguments, typed=text + "\n").returncode == code


def test_where_none_is_named_that_is_said_and_nobody_waits():
    run = pere("token", "inspect")
    assert run.returncode == 2 and run.stderr.endswith("Error: say which token: TOKEN, PERE_TOKEN, or on standard input\n")
    with Terminal("token", "inspect") as terminal:
        terminal.until("say which token")
        assert terminal.end() == 2


@pytest.mark.parametrize("text", ["x", "a.b.c", "\x1b[31m.x.y"])
def test_what_is_no_token_is_said_to_be_none(text):
    run = pere("token", "inspect", typed=text)
    assert run.returncode == 1 and run.stderr.startswith("pere: this is no token") and "\x1b" not in run.stderr


@pytest.mark.parametrize("odd", [{"pere": None}, {"pere": {"push": "x", "feed": [1, {}]}}, {"exp": "soon"}, {"exp": 1e300}, {"iat": True}, {"sub": "\x1b[31m"}, {"aud": [1]}, {"nbf": []}])
def test_whatever_a_token_says_it_is_shown_and_does_nothing_to_the_terminal(odd):
    run = pere("token", "inspect", jwt.api_jws.encode(json.dumps(odd).encode(), SECRET, "HS256"), PERE_JWT_SECRET=SECRET)
    assert run.returncode in (0, 1) and "Traceback" not in run.stderr and "\x1b" not in run.stdout


def test_programs_get_json():
    told = json.loads(pere("token", "inspect", "--json", token("d", feed=["c"]), PERE_JWT_SECRET=SECRET).stdout)
    assert (told["sub"], told["pere"], told["holds"], told["trouble"], told["header"]["alg"]) == ("d", {"feed": ["c"]}, True, None, "HS256")
    assert json.loads(pere("token", "inspect", "--json", token("d")).stdout)["holds"] is None


# To visit


def test_the_verbs_are_let_in_by_a_token_and_by_nothing_else():
    publisher, device = token("shop", push=["orders"]), token("till-1", feed=["orders"])
    with Served(PERE_JWT_SECRET=SECRET) as server:
        where = ("--url", server.url)
        refused = pere("push", "orders", "1", *where)
        assert (refused.returncode, "no_token" in refused.stderr) == (1, True)
        assert "not_allowed" in pere("push", "orders", "1", *where, PERE_TOKEN=device).stderr
        with Process("listen", "orders", *where, "--device", "till-1", "--token", device) as listening:
            listening.until("pere.hello")
            pushed = pere("push", "orders", '{"n":1}', *where, "--json", PERE_TOKEN=publisher)
            listening.until("receipt processed")
        id = json.loads(pushed.stdout)["id"]
        assert '"processed":1' in pere("status", "orders", id, "--json", *where, PERE_TOKEN=publisher).stdout
        assert pere("recall", "orders", id, *where, PERE_TOKEN=publisher).returncode == 0
        assert "not_allowed" in pere("webhooks", "list", *where, PERE_TOKEN=publisher).stderr
        assert pere("webhooks", "list", *where, PERE_TOKEN=token(admin=True)).returncode == 0


def test_a_feed_that_has_expired_says_why_it_ended():
    with Served("--jwt-leeway", "0", "--retry", "0.1", PERE_JWT_SECRET=SECRET) as server:
        with Process("listen", "c", "--url", server.url, "--device", "d", PERE_TOKEN=token("d", feed=["c"], expires=8)) as listening:
            listening.until('"reason":"expired"')
            listening.until("pere: expired_token: the token expired")
            assert listening.end() == 1


def test_insecure_says_what_it_means_at_the_start():
    with Process("serve", "--host", "0.0.0.0", "--port", "0", "--store", "memory:", "--insecure") as server:
        server.until("warning there are no keys: whoever reaches --host 0.0.0.0 may push, read every channel, answer for every device and administer")
    with Process("serve", "--host", "0.0.0.0", "--port", "0", "--store", "memory:", PERE_JWT_SECRET=SECRET) as server:
        server.until("listening")
        assert "warning" not in server.err


@pytest.mark.parametrize("arguments, said", [
    (["--jwt-secret", "x" * 31], "--jwt-secret: a secret has at least 32 bytes"), (["--jwt-public-key", "/nowhere"], "--jwt-public-key /nowhere: No such file"),
    (["--jwt-jwks", "http://login.example/"], "--jwt-jwks is https"), (["--insecure", "--jwt-secret", "x" * 32], "--insecure means without keys")])
def test_keys_that_cannot_be_are_said_at_once(arguments, said):
    run = pere("serve", "--port", "0", "--store", "memory:", *arguments)
    assert run.returncode == 2 and said in run.stderr
