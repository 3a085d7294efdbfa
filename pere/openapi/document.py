"""What a program may know of the server: `/openapi.json` (OpenAPI 3.1), made of the table of addresses, the settings and the table of errors.

An address without an Operation cannot be described, and an Operation without an address would describe nothing: both are found when the
document is made.
"""

from collections.abc import Iterable

import pere
from pere.auth import ANYBODY
from pere.config import Config
from pere.openapi.codes import TABLE
from pere.openapi.operations import EVERYWHERE, JSON, Operation, codes_of, operations
from pere.openapi.schemas import Schema, ref, schemas

SUMMARIES = {
    400: "It cannot be understood.", 401: "Nobody knows who asks.", 403: "It is not yours to ask.", 404: "There is no such thing.", 405: "The address exists, the method does not.",
    408: "The request did not arrive in time.", 409: "What is known already says otherwise.", 410: "It is no longer kept.", 413: "It is too large.", 415: "Nobody reads that here.",
    417: "There is nothing of the kind.", 429: "A limit of this client is reached.", 500: "A mistake of the server.", 501: "HTTP has it, PERE does not.", 503: "Come back later.",
}
TAGS = {"push": "Publishing", "feed": "Listening", "feedback": "Answering", "receipts": "Following receipts", "events": "What became of events", "webhooks": "Webhooks", "admin": "Administration"}


def openapi(config: Config, addresses: Iterable[tuple[str, str]]) -> Schema:
    """The description of these addresses, each a method and a path. Raises LookupError where one is not known, or one is known that is
    not there."""
    known, there = operations(config), set(addresses)
    if there != known.keys():
        raise LookupError(f"not described: {sorted(there - known.keys())}; described and not there: {sorted(known.keys() - there)}")
    places = {operation.id: [parameter.name for parameter in operation.parameters if parameter.place == "path"] for operation in known.values()}
    paths: dict[str, Schema] = {}
    for (method, path), operation in known.items():
        paths.setdefault(path, {})[method.lower()] = _operation(path, operation, config.has_keys, places)
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://spec.openapis.org/oas/3.1/dialect/base",
        "info": {"title": "PERE", "summary": "Pushed Events with return Receipt Engine", "version": pere.__version__, "license": {"name": "MIT", "identifier": "MIT"}},
        "tags": [{"name": name} for name in (*TAGS.values(), "The server")],
        "paths": paths,
        "components": {
            "schemas": schemas(config),
            "responses": {f"Refused{status}": _refusal(status, codes) for status, codes in codes_of(EVERYWHERE, TABLE).items()},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "query": {"type": "apiKey", "in": "query", "name": "access_token", "description": "for an EventSource, which cannot set headers"},
                "cookie": {"type": "apiKey", "in": "cookie", "name": "pere_token"},
            },
        },
    }


def _operation(path: str, operation: Operation, has_keys: bool, places: dict[str, list[str]]) -> Schema:
    told: Schema = {
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": [TAGS.get(path.split("/")[1], "The server")],
        "parameters": [parameter.document() for parameter in operation.parameters],
        "responses": {str(status): _answer(*answer, operation.headers.get(status, ())) for status, answer in operation.answers.items()} | _errors(operation),
        "security": [{scheme: []} for scheme in ("bearer", "query", "cookie")] if has_keys and operation.needs != ANYBODY else [],
    }
    if operation.needs != ANYBODY:
        told["description"] = f"With keys, a token that allows `{operation.needs}`."
    if operation.leads_to:
        told["responses"][str(min(operation.answers))]["links"] = {id: {"operationId": id, "parameters": {name: f"$response.body#/{name}" for name in places[id]}} for id in operation.leads_to}
    if operation.bodies:
        told["requestBody"] = {"required": operation.needs_body, "content": {kind: {"schema": schema} for kind, schema in operation.bodies.items()}}
    return told


def _answer(description: str, content: dict[str, Schema], headers: Iterable[str]) -> Schema:
    told: Schema = {"description": description}
    if content:
        told["content"] = {kind: {"schema": schema} for kind, schema in content.items()}
    if headers:
        told["headers"] = {name: {"schema": {"type": "string"}} for name in headers}
    return told


def _errors(operation: Operation) -> Schema:
    """The answers of those statuses that it refuses with; where that is no more than everywhere, they stand once."""
    own, anywhere = codes_of(operation.all_codes(), TABLE), codes_of(EVERYWHERE, TABLE)
    return {str(status): _refusal(status, [*own.get(status, ()), *anywhere.get(status, ())]) if status in own else {"$ref": f"#/components/responses/Refused{status}"}
            for status in sorted(own.keys() | anywhere.keys())}


def _refusal(status: int, codes: list[str]) -> Schema:
    headers = ("Retry-After",) if status in (429, 503) else ("Allow",) if status == 405 else ("WWW-Authenticate",) if status == 401 else ()
    told = _answer(SUMMARIES.get(status, "It is over a limit."), {JSON: {"allOf": [ref("Error"), {"properties": {"error": {"enum": list(dict.fromkeys(codes))}}}]}}, headers)
    told["content"][JSON]["example"] = {"error": codes[0], "message": next(row.meaning for row in TABLE if row.status == status and codes[0] in row.codes)}
    return told
