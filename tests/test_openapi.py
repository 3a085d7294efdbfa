"""What the server says of itself to programs is true: nothing is missing, nothing is invented, and whatever is said to it is answered as
it is written there."""

import ast
import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import orjson
import pytest
import wire
from jsonschema import Draft7Validator, Draft202012Validator
from minting import SECRET, token
from nodes import packages
from openapi_spec_validator import validate
from processes import ENVIRONMENT, Served

from pere.config import Config
from pere.openapi.asyncapi import asyncapi
from pere.openapi.codes import TABLE
from pere.openapi.document import openapi
from pere.openapi.examples import MESSAGES, SCHEMAS
from pere.openapi.operations import EVERYWHERE, operations
from pere.openapi.schemas import ref
from pere.sse import Decoder

HOUSE = Path(__file__).parent.parent
STATUS = {code: {row.status for row in TABLE if code in row.codes} for row in TABLE for code in row.codes}
KINDS = {"BadRequest": 400, "Unauthorized": 401, "Forbidden": 403, "NotFound": 404, "WrongMethod": 405, "Timeout": 408, "Conflict": 409, "Gone": 410, "TooLarge": 413, "WrongType": 415,
         "TooMany": 429, "Unsupported": 501, "Unavailable": 503}
# What no server answers with, but says to who uses PERE from Python.
VISITORS = ("pere/client/", "pere/cli/", "pere/load/", "pere/signing.py", "pere/webhooks.py")

MANY = 12  # examples of each kind for each operation
SEED = os.environ.get("SEED", "1")  # the same for every change, so that none fails by another one's example; to look further: SEED=2
STREAMS = ("feed", "feedMany", "followReceipts")  # which do not end


# The codes


def test_every_error_that_is_raised_is_in_the_table_with_its_status():
    missing = []
    for path in sorted((HOUSE / "pere").rglob("*.py")):
        name = path.relative_to(HOUSE).as_posix()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS and node.args and isinstance(node.args[0], ast.Constant):
                own = {keyword.value.value for keyword in node.keywords if keyword.arg == "status" and isinstance(keyword.value, ast.Constant)}
                if (own or {KINDS[node.func.id]}) - STATUS.get(str(node.args[0].value), set()) and not name.startswith(VISITORS):
                    missing.append(f"{name}: {node.args[0].value} {own or KINDS[node.func.id]}")
    assert missing == []


def test_the_readme_has_the_table():
    told = re.search(r"^\| status \| code \| \|\n\|---\|---\|---\|\n((?:\|.*\n)+)", (HOUSE / "README.md").read_text("utf-8"), re.M)[1]
    rows = [f"| {', '.join(f'`{code}`' for code in row.codes)} | {row.meaning} |" for row in TABLE]
    assert [re.sub(r"^\| \d* ?(?=\|)", "", line) for line in told.splitlines()] == rows
    statuses = [int(line.split("|")[1].strip() or 0) for line in told.splitlines()]
    assert [status or None for status in statuses] == [None if place and TABLE[place - 1].status == row.status else row.status for place, row in enumerate(TABLE)]


def test_every_code_belongs_to_an_operation_or_to_all():
    told = set(EVERYWHERE).union(*(operation.all_codes() for operation in operations(Config()).values()))
    assert told == STATUS.keys()


# The documents


async def test_every_address_is_described_and_nothing_else(start, ask):
    server = await start()
    answer = await ask("GET", "/openapi.json")
    validate(answer.json)
    there = server._addresses()
    assert {(method.upper(), path) for path, item in answer.json["paths"].items() for method in item} == there
    with pytest.raises(LookupError, match=r"/forgotten.*\[\]"):
        openapi(server.config, there | {("GET", "/forgotten")})
    with pytest.raises(LookupError, match="healthz"):
        openapi(server.config, there - {("GET", "/healthz")})


def test_the_limits_are_those_of_the_settings():
    config = Config(max_batch=7, max_to=3, jwt_secret="s" * 32)
    document = openapi(config, operations(config).keys())
    assert document["paths"]["/push"]["post"]["requestBody"]["content"]["application/json"]["schema"]["maxItems"] == 7
    assert document["components"]["schemas"]["Push"]["properties"]["to"]["anyOf"][1]["maxItems"] == 3
    assert [*document["paths"]["/push"]["post"]["security"][0]] == ["bearer"] and document["paths"]["/healthz"]["get"]["security"] == []


def test_everything_has_an_example_that_has_no_field_which_is_not_described():
    described, told = closed(openapi(Config(), operations(Config()).keys())), closed(asyncapi(Config()))
    things = [(name, schema, schema["examples"], described) for name, schema in described["components"]["schemas"].items()]
    things += [(name, message["payload"], [each["payload"] for each in message["examples"]], told) for name, message in told["components"]["messages"].items()]
    for name, schema, examples, document in things:
        for example in examples:
            errors = [error.message for error in Draft202012Validator({"components": document["components"], **schema}).iter_errors(example)]
            assert errors == [], (name, example)
    assert {*SCHEMAS} == {*described["components"]["schemas"]} and {*MESSAGES} == {*told["components"]["messages"]}


def test_every_answer_with_a_body_has_an_example():
    document = openapi(Config(), operations(Config()).keys())
    answers = [(operation["operationId"], status, document["components"]["responses"][answer["$ref"].rpartition("/")[2]] if "$ref" in answer else answer)
               for path in document["paths"].values() for operation in path.values() for status, answer in operation["responses"].items()]
    told = [(id, status, kind, "example" in body or document["components"]["schemas"].get(body["schema"].get("$ref", "").rpartition("/")[2], {}).get("examples"))
            for id, status, answer in answers for kind, body in answer.get("content", {}).items()]
    assert len(told) > 500 and [where for *where, example in told if not example] == []


@pytest.mark.parametrize("name, messages", [("Feed", {"pere.hello": "hello", "created": "event"}), ("ReceiptFeed", {"pere.hello": "following", "receipt": "receipt"})])
def test_the_example_of_a_stream_is_made_of_those_of_its_messages(name, messages):
    frames = [*Decoder().feed(SCHEMAS[name].encode())]
    assert [(frame.event, orjson.loads(frame.data)) for frame in frames] == [(event, MESSAGES[message]) for event, message in messages.items()]


def test_what_is_on_feeds_is_described_as_asyncapi_has_it():
    schema = orjson.loads((packages() / "node_modules/@asyncapi/specs/schemas/3.0.0.json").read_bytes())
    assert [f"{error.json_path}: {error.message}" for error in Draft7Validator(schema).iter_errors(asyncapi(Config()))] == []


def test_an_error_is_exemplified_by_what_it_means():
    document = openapi(Config(), operations(Config()).keys())
    refusals = [answer["content"]["application/json"]["example"] for path in document["paths"].values() for operation in path.values()
                for status, answer in operation["responses"].items() if status >= "400" and "$ref" not in answer]
    meanings = {code: row.meaning for row in TABLE for code in row.codes}
    assert len(refusals) > 50 and all(refusal["message"] in meanings.values() for refusal in refusals)


def closed(schema):
    """The same, in which an object has no more fields than are named: what is not described is found."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: closed(each) for name, each in schema.items()}
    return made | {"additionalProperties": False} if "properties" in made and schema.get("type") == "object" and schema["properties"] and "additionalProperties" not in made else made


async def test_what_is_on_feeds_and_in_webhooks_is_described(hooked, receiver, listen, push, feedback, ask, until):
    there = receiver(200)
    server = await hooked(max_feeds_per_device=1)
    told = closed((await ask("GET", "/asyncapi.json")).json)
    messages, seen = told["components"]["messages"], set()

    def check(message: str, value: object) -> None:
        errors = [error.message for error in Draft202012Validator({"components": told["components"], **messages[message]["payload"]}).iter_errors(value)]
        assert errors == [], (message, value)
        seen.add(message)

    assert (await ask("POST", "/webhooks", {"url": there.url, "types": ["pere.receipt.batch", "pere.event.completed", "pere.event.satisfied", "pere.device.connected"]})).status == 201
    feed, follower = await listen("a", "b", device="d"), await wire.Feed.open(server.port)
    await follower.start("/receipts/a", {})
    await follower.control("pere.hello")
    id = await push("a", {"x": 1})
    assert (await feedback("a", "d", id, state="processed")).status == 200
    assert (await ask("DELETE", f"/events/b/{await push('b', 2)}")).status == 200
    await listen("a", device="d")
    while await feed.next() is not None:
        pass  # until it is replaced
    await follower.event()
    follower.close()
    for frames, names in ((feed, {"message": "envelope", "pere.hello": "hello", "pere.cancel": "cancel", "pere.bye": "bye"}), (follower, {"pere.hello": "following", "receipt": "receipt"})):
        for frame in Decoder().feed(frames.text):
            check(names[frame.event], orjson.loads(frame.data))
    wanted = {"pere.receipt.batch", "pere.event.completed", "pere.event.satisfied", "pere.device.connected"}
    await until(lambda: wanted <= {notice["type"] for notice in there.notices()})
    for notice in [*there.notices(), *there.notices("pere.webhook.verify")]:
        check(notice["type"].removeprefix("pere.").replace(".", "_"), notice)
    assert seen >= {"envelope", "hello", "cancel", "bye", "following", "receipt", "receipt_batch", "event_completed", "event_satisfied", "device_connected", "webhook_verify"}


# What is said to it


def schemathesis(folder: Path, url: str, *arguments: str) -> None:
    """Say all that its description allows, and much that it does not: whatever it answers is described."""
    command = [str(Path(sys.executable).with_name("st")), "--config-file", str(HOUSE / "tests/schemathesis.toml"), "run", f"{url}/openapi.json", "--no-color", "--generation-database", "none", "--seed", SEED,
               "--request-timeout", "20", *arguments, *(part for id in STREAMS for part in ("--exclude-operation-id", id))]
    ran = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=900, check=False)
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr


NO_LIMITS = [word for name in ("connects", "pushes", "receipts", "requests") for whose in ("peer", "subject") for word in (f"--{whose}-{name}", "0")]


def test_whatever_is_said_to_it_is_answered_as_its_description_has_it(tmp_path):
    # A test of an endpoint would knock at addresses of strangers.
    with Served(*NO_LIMITS, "--max-wait", "1") as server:
        schemathesis(tmp_path, server.url, "--max-examples", str(MANY), "--exclude-operation-id", "testWebhook", "--exclude-checks", "ignored_auth")


def test_with_keys_nobody_gets_by_without_a_token(tmp_path):
    robot = token("robot", push=["**"], feed=["**"], admin=True)
    with Served(*NO_LIMITS, "--max-wait", "1", PERE_JWT_SECRET=SECRET) as server:
        schemathesis(tmp_path, server.url, "--max-examples", "3", "--phases", "fuzzing", "--checks", "ignored_auth,not_a_server_error", "--header", f"Authorization: Bearer {robot}")


# For each kind of body, or of item in one: where it is sent to, and the fields that it cannot be without.
BODIES = {
    "Push": ("POST", "/push", {"channel": "c", "data": 1}), "Receipt": ("POST", "/feedback/c", {"event_id": "{event}"}), "NewWebhook": ("POST", "/webhooks", {"url": "{url}"}),
    "WebhookChange": ("PATCH", "/webhooks/{webhook}", {}), "Replay": ("POST", "/webhooks/{webhook}/replay", {}), "Receipts": ("POST", "/feedback", {"event_id": "{event}"}),
}
WRAPPED = {"Push": lambda item: [item], "Receipts": lambda item: {"receipts": [item]}}


def fields_of(name: str) -> list[str]:
    schema = openapi(Config(), operations(Config()).keys())["components"]["schemas"][name]
    return [*(schema["oneOf"][0]["properties"]["receipts"]["items"] if name == "Receipts" else schema)["properties"]]


KINDS_OF_VALUES = [None, True, 1, 1.5, "x", "1", [], [1], {}, {"x": 1}]


@pytest.mark.parametrize("schema", BODIES)
async def test_no_field_takes_a_kind_of_value_that_is_not_described(hooked, receiver, listen, push, ask, schema):
    await hooked()
    url = receiver(200).url
    await listen("c", device="d")
    there = {"url": url, "event": await push("c", 1), "webhook": (await ask("POST", "/webhooks", {"url": url})).json["id"]}
    method, target, body = BODIES[schema]
    body = {name: value.format(**there) if isinstance(value, str) else value for name, value in body.items()}
    document = (await ask("GET", "/openapi.json")).json
    described = Draft202012Validator({"components": document["components"], **({"type": "array", "items": ref(schema)} if schema == "Push" else ref(schema))})
    for field, value in product(fields_of(schema), KINDS_OF_VALUES):
        said = WRAPPED.get(schema, dict)(body | {field: value})
        answer = await ask(method, target.format(**there), said, Device="d")
        is_taken = answer.status < 400 and "error" not in answer.json.get("results", [{}])[0]
        assert described.is_valid(said) or not is_taken, (said, answer)


REFUSED = [
    ("feed", "/feed/a%20b", "bad_channel"), ("feed", "/feed/a?device=a%20b", "bad_device"), ("feed", "/feed/a?last_event_id=x", "bad_event_id"), ("feed", "/feed/a?format=x", "bad_format"),
    ("feed", "/feed/a?from=x", "bad_event_id"), ("feed", "/feed/a?device=d&ack_wait=x", "bad_ack_wait"), ("feed", "/feed/a?device=d&window=x", "bad_window"), ("feed", "/feed/a?window=1", "no_device"),
    ("feedMany", "/feed", "no_channel"), ("feedMany", "/feed?channel=a**b", "bad_channel"), ("feedMany", "/feed?" + "&".join(f"channel=a{n}" for n in range(101)), "too_many_channels"),
    ("followReceipts", "/receipts/a%20b", "bad_channel"), ("followReceipts", "/receipts/a?from=x", "bad_receipt_id"),
]


@pytest.mark.parametrize("operation, target, code", REFUSED)
async def test_what_a_feed_refuses_is_described(start, ask, operation, target, code):
    await start()
    answer = await ask("GET", target)
    told = next(each for each in operations(Config()).values() if each.id == operation)
    assert answer.error[1] == code and code in told.all_codes()
