"""A receiver of traces: a real HTTP server that decodes what an OTLP exporter sends."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1 import trace_pb2


@dataclass(frozen=True)
class Span:
    """A span as it arrived."""

    trace_id: str
    id: str
    parent_id: str
    name: str
    kind: str
    started_at: int
    ended_at: int
    attributes: Mapping[str, Any]
    error: bool
    description: str
    links: list[tuple[str, str]]
    events: list[tuple[str, dict[str, Any]]]
    tracestate: str
    resource: Mapping[str, Any]


@dataclass
class Collector:
    """The spans that have arrived; `bodies` are the requests as they were sent."""

    endpoint: str = ""
    spans: list[Span] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    status: int = 200
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, request: web.Request) -> web.Response:
        self.bodies.append(body := await request.read())
        if self.status == 200:
            self.spans += _spans(ExportTraceServiceRequest.FromString(body))
        self.arrived.set()
        return web.Response(status=self.status)

    def trace(self, trace_id: str) -> "Trace":
        return Trace([span for span in self.spans if span.trace_id == trace_id])

    @property
    def only(self) -> "Trace":
        """The trace that has arrived: exactly one."""
        (trace_id,) = {span.trace_id for span in self.spans}
        return self.trace(trace_id)

    async def until(self, name: str, count: int = 1) -> "Trace":
        """Wait for so many spans of this name, and give the only trace."""
        async with asyncio.timeout(30):
            while sum(span.name == name for span in self.spans) < count:
                self.arrived.clear()
                await self.arrived.wait()
        return self.only


@dataclass(frozen=True)
class Trace:
    """The spans of one trace."""

    spans: list[Span]

    def one(self, name: str) -> Span:
        (span,) = self.all(name)
        return span

    def all(self, name: str) -> list[Span]:
        return sorted((s for s in self.spans if s.name == name), key=lambda s: s.started_at)

    def children(self, parent: Span) -> list[str]:
        return sorted(span.name for span in self.spans if span.parent_id == parent.id)

    def parent(self, span: Span) -> Span:
        (parent,) = (other for other in self.spans if other.id == span.parent_id)
        return parent

    def roots(self) -> list[Span]:
        """The spans without a parent in this trace."""
        ids = {span.id for span in self.spans}
        return [span for span in self.spans if span.parent_id not in ids]

    def shape(self, span: Span | None = None) -> Any:
        """The names as a tree, siblings sorted."""
        if span is None:
            (span,) = self.roots()
        children = [self.shape(child) for child in self.spans if child.parent_id == span.id]
        return (span.name, sorted(children)) if children else (span.name, [])

    def check_times(self) -> None:
        """Fail unless each span is inside its parent; a run may end after its request."""
        ids = {span.id: span for span in self.spans}
        assert len(ids) == len(self.spans), "a span arrived twice"
        for span in self.spans:
            assert span.started_at <= span.ended_at, span
            if (parent := ids.get(span.parent_id)) is not None:
                assert parent.started_at <= span.started_at, (span, parent)
                if parent.kind != "SERVER":
                    assert span.ended_at <= parent.ended_at, (span, parent)


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """A receiver on a free port of this machine."""
    collector = Collector()
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_post("/v1/traces", collector.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    collector.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield collector
    finally:
        await runner.cleanup()


def _spans(request: ExportTraceServiceRequest) -> list[Span]:
    return [
        _span(span, _attributes(of_resource.resource.attributes))
        for of_resource in request.resource_spans
        for of_scope in of_resource.scope_spans
        for span in of_scope.spans
    ]


def _span(span: trace_pb2.Span, resource: dict[str, Any]) -> Span:
    return Span(
        trace_id=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        name=span.name,
        kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        started_at=span.start_time_unix_nano,
        ended_at=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        error=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        description=span.status.message,
        links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        events=[(event.name, _attributes(event.attributes)) for event in span.events],
        tracestate=span.trace_state,
        resource=resource,
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind) if kind else None
