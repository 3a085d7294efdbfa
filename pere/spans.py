"""Spans for OpenTelemetry: what a push, a commit, a fan-out, a receipt and a request of a webhook took, sent by OTLP.

Nothing of the server knows of this file. Where it is wanted it puts itself between the parts when they are made; where it is not, there is nothing to ask on any path.
A push continues its publisher's trace (`traceparent`), and its own span is what devices and webhooks are told of, so that theirs hang below it; receipts hang there too. A commit and a fan-out are of
many at once, and so are traces by themselves. What is sampled decides the publisher, or OTEL_TRACES_SAMPLER; other variables of OpenTelemetry hold as well.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags, set_span_in_context

import pere
from pere.bulk import Receipt
from pere.errors import Refusal
from pere.event import Draft, format_id
from pere.hub import Hub
from pere.sender import Outcome, Sender
from pere.storage import Accepted, Store

TRACEPARENT = re.compile(rb'"traceparent":"([0-9a-f-]{55})"')  # in the head of a notice
MAX_LINKS = 16  # events that a batch of receipts names


class Spans:
    """`exporter` is where they go."""

    def __init__(self, exporter: SpanExporter):
        resource = Resource.create({"service.version": pere.__version__})
        if str(resource.attributes["service.name"]).startswith("unknown_service"):  # OTEL_SERVICE_NAME says nothing
            resource = resource.merge(Resource({"service.name": "pere"}))
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("pere", pere.__version__)

    @classmethod
    def to(cls, url: str) -> "Spans":
        """To a collector at this URL."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return cls(OTLPSpanExporter(endpoint=url))

    def close(self) -> None:
        """Send what has not been sent. Takes a while."""
        self._provider.shutdown()

    def watch(self, store: Store, hub: Hub, sender: Sender) -> None:
        """Between these parts, from now on."""
        put: Any = store
        put.append = self._pushes(store.append)
        put.record_many = self._receipts(store, store.record_many)
        store.on_commit = self._timed("commit", store.on_commit)
        hub.broadcast.on_fanout = self._timed("fan-out", hub.broadcast.on_fanout)
        put = sender
        put.post = self._posts(sender.post)

    def _pushes(self, append: Callable[..., None]) -> Callable[..., None]:
        def traced(draft: Draft, then: Callable[[Accepted | Refusal], None]) -> None:
            span = self._tracer.start_span("push", _context(draft.traceparent), SpanKind.PRODUCER,
                                           {"messaging.system": "pere", "messaging.destination.name": draft.channel, "messaging.message.body.size": len(draft.data)})

            def told(result: Accepted | Refusal) -> None:
                if isinstance(result, Accepted):
                    span.set_attributes({"messaging.message.id": format_id(result.id), "pere.audience": result.audience})
                _end(span, result)
                then(result)

            try:
                append(replace(draft, traceparent=_traceparent(span)), told)
            except Refusal as refusal:
                _end(span, refusal)
                raise

        return traced

    def _receipts(self, store: Store, record_many: Callable[..., None]) -> Callable[..., None]:
        def traced(receipts: Sequence[Receipt], then: Callable[[list[Any]], None]) -> None:
            entries = [store.ledger.entries.get(id) for id in {id for _, id, *_ in receipts}][:MAX_LINKS]
            contexts = [_span_context(entry.event.traceparent) for entry in entries if entry is not None and entry.event.traceparent]
            parent = _context_of(contexts[0]) if len(contexts) == 1 else Context()
            span = self._tracer.start_span("receipts", parent, SpanKind.SERVER, {"pere.receipts": len(receipts)}, [Link(each) for each in contexts[1:] and contexts])

            def told(answers: list[Any]) -> None:
                span.set_attribute("pere.refused", sum(isinstance(answer, Refusal) for answer in answers))
                span.end()
                then(answers)

            record_many(receipts, told)

        return traced

    def _timed(self, name: str, observe: Callable[..., None]) -> Callable[..., None]:
        """What is told how many seconds something took, when it is over."""
        def traced(seconds: float, *size: int) -> None:
            observe(seconds, *size)
            now = time.time_ns()
            span = self._tracer.start_span(name, Context(), start_time=now - int(seconds * 1e9))
            if size:
                span.set_attribute("pere.size", size[0])
            span.end(now)

        return traced

    def _posts(self, post: Callable[..., Any]) -> Callable[..., Any]:
        async def traced(url: str, headers: Mapping[str, str], body: bytes) -> Outcome:
            found = TRACEPARENT.search(body, 0, 1024)
            span = self._tracer.start_span("webhook", _context(found[1].decode() if found is not None else ""), SpanKind.CLIENT, {"http.request.method": "POST"})
            try:
                outcome: Outcome = await post(url, {**headers, "traceparent": _traceparent(span)}, body)
                span.set_attribute("http.response.status_code", outcome.status)
                if outcome.error:
                    span.set_status(Status(StatusCode.ERROR, outcome.error))
                return outcome
            finally:
                span.end()

        return traced


def _end(span: Span, result: Accepted | Refusal) -> None:
    if isinstance(result, Refusal):
        span.set_status(Status(StatusCode.ERROR, result.code))
    span.end()


def _span_context(traceparent: str) -> SpanContext:
    _, trace, parent, flags = traceparent.split("-")
    return SpanContext(int(trace, 16), int(parent, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))


def _context_of(parent: SpanContext) -> Context:
    return set_span_in_context(NonRecordingSpan(parent), Context())


def _context(traceparent: str) -> Context:
    """Below whom a span hangs; "" is below nobody."""
    return _context_of(_span_context(traceparent)) if traceparent else Context()


def _traceparent(span: Span) -> str:
    said = span.get_span_context()
    return f"00-{said.trace_id:032x}-{said.span_id:016x}-{said.trace_flags & 1:02x}"
