"""Spans: what a real collector is sent of pushes, receipts, commits and webhooks, and how they hang together."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from processes import SECONDS, pere

from pere.config import Config
from pere.early import Early
from pere.handover import Line
from pere.parts import open_store
from pere.server import Server
from pere.successor import Successor

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def collector():
    """A server that takes spans as OTLP has them, with `spans` and the `services` that they are of."""

    class Taking(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for part in ExportTraceServiceRequest.FromString(body).resource_spans:
                server.services |= {each.value.string_value for each in part.resource.attributes if each.key == "service.name"}
                server.spans += [span for scope in part.scope_spans for span in scope.spans]
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Taking)
    server.spans, server.services = [], set()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join(SECONDS)
    assert not thread.is_alive()
    server.server_close()


def facts(span) -> dict[str, object]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


async def test_push_receipt_and_webhook_are_below_the_publishers_span_and_the_commit_is_by_itself(hooked, collector, receiver, add, in_state, ask, listen, feedback, until):
    server = await hooked("sqlite", otlp=f"http://127.0.0.1:{collector.server_address[1]}/v1/traces", drain_seconds=10)
    there = receiver()
    await in_state((await add(there.url, types=["pere.event.completed"]))["id"], "active")
    feed = await listen("c", device="d", format="envelope")
    id = (await ask("POST", "/push/c", b"12", traceparent=f"00-{TRACE}-{SPAN}-01")).json["id"]
    told = (await feed.event()).data
    await feedback("c", "d", id)
    await until(there.notices)
    assert (await ask("POST", "/push/c?need=7", b"1", traceparent=f"00-{TRACE}-{SPAN}-01")).status == 400
    await until(lambda: not server.webhooks.courier.under_way)
    feed.close()
    await server.stop()
    assert collector.services == {"pere"}
    by_name = {}
    for span in collector.spans:
        by_name.setdefault(span.name, []).append(span)
    push, refused = by_name["push"]
    assert (push.trace_id.hex(), push.parent_span_id.hex()) == (TRACE, SPAN)
    assert facts(push) == {"messaging.system": "pere", "messaging.destination.name": "c", "messaging.message.body.size": 2, "messaging.message.id": id, "pere.audience": 1}
    assert (refused.status.message, refused.trace_id.hex()) == ("need_over_audience", TRACE)
    assert f'"traceparent":"00-{TRACE}-{push.span_id.hex()}-01"' in told
    below = [(span.name, facts(span)) for span in collector.spans if span.parent_span_id == push.span_id]
    assert below == [("receipts", {"pere.receipts": 1, "pere.refused": 0}), ("webhook", {"http.request.method": "POST", "http.response.status_code": 204})]
    sent = [headers["traceparent"] for headers, _ in there.got if headers["webhook-id"].startswith("event_")]
    assert sent == [f"00-{TRACE}-{span.span_id.hex()}-01" for span in by_name["webhook"] if span.parent_span_id == push.span_id]
    assert by_name["commit"] and by_name["fan-out"] and not any(span.parent_span_id for span in by_name["commit"] + by_name["fan-out"])
    assert all(span.end_time_unix_nano > span.start_time_unix_nano for span in collector.spans)
    assert "d" not in {value for span in collector.spans for value in facts(span).values()}


async def test_who_wants_no_spans_has_nothing_of_it(start):
    server = await start()
    assert server.spans is None and "append" not in vars(server.store)


def test_without_its_library_it_says_what_is_missing(tmp_path):
    (tmp_path / "opentelemetry.py").write_text("")
    ended = pere("serve", "--port", "0", "--store", "memory:", "--otlp", "http://127.0.0.1:9/v1/traces", PYTHONPATH=str(tmp_path))
    assert ended.returncode == 2 and "pip install 'pere[otel]'" in ended.stderr


async def test_a_server_that_was_made_before_the_other_ended_and_is_not_taken_leaves_no_thread(tmp_path, until, collector):
    config = Config(port=0, store=f"sqlite:{tmp_path / 'pere.db'}", otlp=f"http://127.0.0.1:{collector.server_address[1]}/v1/traces")
    await open_store(config).close()
    here, there = socket.socketpair()
    line = Line(here)

    def sending() -> int:
        return sum("Otel" in each.name for each in threading.enumerate())

    early = Early(config, Successor(line, {}), lambda store: Server(config, store))
    await early.get_ready()
    assert sending() == 1
    assert await early.take() is None, "the other has left nothing, for it had no time"
    await until(lambda: not sending())
    line.close()
    there.close()
