"""A span that is recorded: OpenTelemetry's interface, at a part of the price of its SDK's class.

The SDK's class copies and checks each attribute within locks, and is copied again at its end.
"""

import os
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Final

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits, SpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.semconv.attributes.exception_attributes import (
    EXCEPTION_ESCAPED,
    EXCEPTION_MESSAGE,
    EXCEPTION_STACKTRACE,
    EXCEPTION_TYPE,
)
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

Attributes = Mapping[str, AttributeValue]


class SpanTarget:
    """The resource and the scope of spans, their limits, and the processor that sends them."""

    def __init__(
        self, resource: Resource, scope: InstrumentationScope, processor: SpanProcessor
    ) -> None:
        self._resource = resource
        self._scope = scope
        self._processor = processor
        self._limits = SpanLimits()
        # Spans of this service are within the default limits.
        self.is_limited: Final = any(
            name.startswith("OTEL_") and name.endswith("_LIMIT") for name in os.environ
        )

    def attributes(self, given: Attributes | None) -> BoundedAttributes:
        """The attributes as the limits and the types of OpenTelemetry have them."""
        limits = self._limits
        return BoundedAttributes(
            limits.max_span_attributes, given, max_value_len=limits.max_span_attribute_length
        )

    def send(self, span: "RecordedSpan", attributes: Attributes) -> None:
        """Send a span that has ended."""
        self._processor.on_end(
            ReadableSpan(
                name=span.name,
                context=span.get_span_context(),
                parent=span.parent,
                resource=self._resource,
                attributes=attributes,
                events=span.events,
                links=span.links,
                kind=span.kind,
                status=span.status,
                start_time=span.started_at,
                end_time=span.ended_at,
                instrumentation_scope=self._scope,
            )
        )


class RecordedSpan(Span):
    """A span of this service. Each of its threads changes it at a time of its own.

    `is_shared` states that code of crews may change it. Its attributes are checked then.
    """

    def __init__(
        self,
        target: SpanTarget,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        attributes: Attributes,
        links: Sequence[Link],
        started_at: int | None,
    ) -> None:
        self._target = target
        self._context = context
        self._attributes = dict(attributes)
        self.is_shared = target.is_limited
        self.name = name
        self.parent = parent
        self.kind = kind
        self.links = links
        self.events: Sequence[Event] = ()
        self.status = _UNSET
        self.started_at = time.time_ns() if started_at is None else started_at
        self.ended_at: int | None = None

    def end(self, end_time: int | None = None) -> None:
        if self.ended_at is not None:
            return
        self.ended_at = time.time_ns() if end_time is None else end_time
        attributes: Attributes = self._attributes
        if self.is_shared:
            attributes = self._target.attributes(attributes)
        self._target.send(self, attributes)

    def get_span_context(self) -> SpanContext:
        return self._context

    def is_recording(self) -> bool:
        return self.ended_at is None

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        self.set_attributes({key: value})

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        if self.ended_at is None:
            self._attributes.update(attributes)

    def add_event(
        self, name: str, attributes: Attributes | None = None, timestamp: int | None = None
    ) -> None:
        if self.ended_at is None:
            event = Event(name, self._target.attributes(attributes), timestamp)
            self.events = [*self.events, event]

    def add_link(self, context: SpanContext, attributes: Attributes | None = None) -> None:
        if self.ended_at is None and context.is_valid:
            self.links = [*self.links, Link(context, self._target.attributes(attributes))]

    def update_name(self, name: str) -> None:
        if self.ended_at is None:
            self.name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        if self.ended_at is None:
            self.status = status if isinstance(status, Status) else Status(status, description)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes | None = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        kind = type(exception)
        known = {
            EXCEPTION_TYPE: f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins."),
            EXCEPTION_MESSAGE: str(exception),
            EXCEPTION_STACKTRACE: "".join(traceback.format_exception(exception)),
            EXCEPTION_ESCAPED: str(escaped),
        }
        self.add_event("exception", {**known, **(attributes or {})}, timestamp)


_UNSET: Final = Status()
