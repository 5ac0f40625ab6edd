"""One trace from a frame's capture to the push of what followed from it, over Kafka headers and the ledger.

The trace's id and that of its first span derive from the frame's message id: whoever knows the message id of a frame
can add a span to its trace, also where a message went through the ledger and lost its headers on the way. Headers
(``traceparent``, W3C Trace Context) carry who sent a message, so that spans hang together as they followed each other.

Off by default. ``observability.trace_share`` says what share of the frames is traced; since it is decided by the trace's id,
all processes decide alike. The exporter is OTLP over HTTP and takes its address from the environment as OpenTelemetry defines it
(``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_EXPORTER_OTLP_HEADERS``). Needs the extra ``tracing``.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import structlog

from dangerous_driving.contracts import Alert, AssessmentTask, DetectionResult, Message, RiskAssessmentResult
from dangerous_driving.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import SpanContext

log = structlog.get_logger(__name__)

HEADER = "traceparent"
#: Frames and tasks under way that a process remembers.
REMEMBERED = 10_000

#: The first span of every trace.
ROOT = "capture"


@dataclass(frozen=True)
class Place:
    """Where a frame or task stands in its trace, as far as this process knows."""

    sender: SpanContext | None  # whose message brought it, the parent of all spans here; None: the trace's first span
    newest: SpanContext | None  # of the spans here
    at: datetime  # when that was over, or the message came


class Tracer:
    """The tracing of one process.

    Args:
        service: its name.
        node: of the machine.
        share: of the frames that are traced, 0 to 1.
        processor: takes finished spans; None: batches to the OTLP exporter of the environment.

    Raises:
        ConfigError: the extra is not installed.
    """

    def __init__(self, service: str, node: str, share: float, processor: SpanProcessor | None = None) -> None:
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

            if processor is None:
                from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
                from opentelemetry.sdk.trace.export import BatchSpanProcessor

                processor = BatchSpanProcessor(OTLPSpanExporter())
        except ImportError as error:
            raise ConfigError(
                "observability.trace_share",
                "OpenTelemetry is not installed",
                "install the extra: python -m pip install -e '.[tracing]' in the checkout",
            ) from error
        self._share = TraceIdRatioBased(share)
        self._ids = _derived_ids()
        self._provider = TracerProvider(
            sampler=self._share,
            id_generator=self._ids,
            resource=Resource.create({"service.name": f"dangerous-driving.{service}", "host.name": node}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("dangerous_driving")
        self._lock = threading.Lock()
        self._places: OrderedDict[str, Place] = OrderedDict()

    def begin(self, message_id: str, captured_at: datetime, until: datetime, attributes: Mapping[str, Any]) -> None:
        """The first span of a frame's trace, from its capture until the detection service was done with it."""
        with self._ids.of(_trace_id(message_id), _root_id(message_id)):
            from opentelemetry.context import Context

            # an empty context, in whatever span the caller may be
            span = self._tracer.start_span(
                ROOT, context=Context(), attributes=dict(attributes), start_time=_nanoseconds(captured_at)
            )
        span.end(_nanoseconds(until))

    def span(
        self,
        name: str,
        message_id: str,
        task_id: str = "",
        *,
        since: datetime | None = None,
        until: datetime,
        attributes: Mapping[str, Any],
    ) -> None:
        """A span that is over, below the sender of the message that brought the task or frame.

        Args:
            name: of the span.
            message_id: of the frame.
            task_id: of the task it is about, if it is about one.
            since: its begin; None: when the span before it was over, or the message came.
            until: its end.
            attributes: told with it.
        """
        before = self._place(task_id) or self._place(message_id) or Place(None, None, since or until)
        span = self._tracer.start_span(
            name,
            context=_context(before.sender or self._root(message_id)),
            attributes=dict(attributes),
            start_time=_nanoseconds(min(since or before.at, until)),
        )
        span.end(_nanoseconds(until))
        self._remember(task_id or message_id, Place(before.sender, span.get_span_context(), until))

    def received(self, message: Message, headers: Iterable[tuple[str, bytes | None]], at: datetime) -> None:
        """A message came; what is done about it goes on where its sender was."""
        message_id, task_id = ids_of(message)
        if message_id:
            self._remember(task_id or message_id, Place(_of_header(headers), None, at))

    def headers(self, message: Message) -> list[tuple[str, bytes]]:
        """What is sent with a message: where its frame or task stands in its trace."""
        message_id, task_id = ids_of(message)
        if not message_id:
            return []
        place = self._place(task_id) or self._place(message_id)
        span = (place and (place.newest or place.sender)) or self._root(message_id)
        text = f"00-{span.trace_id:032x}-{span.span_id:016x}-{int(span.trace_flags):02x}"
        return [(HEADER, text.encode())]

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()

    def _root(self, message_id: str) -> SpanContext:
        from opentelemetry.sdk.trace.sampling import Decision
        from opentelemetry.trace import SpanContext, TraceFlags

        trace_id = _trace_id(message_id)
        sampled = self._share.should_sample(None, trace_id, ROOT).decision is Decision.RECORD_AND_SAMPLE
        flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
        return SpanContext(trace_id, _root_id(message_id), is_remote=True, trace_flags=flags)

    def _place(self, name: str) -> Place | None:
        if not name:
            return None
        with self._lock:
            return self._places.get(name)

    def _remember(self, name: str, place: Place) -> None:
        with self._lock:
            self._places[name] = place
            self._places.move_to_end(name)
            if len(self._places) > REMEMBERED:
                self._places.popitem(last=False)


def ids_of(message: Message) -> tuple[str, str]:
    """The frame that a message follows from, and the task if it is about one; empty where there is none."""
    if isinstance(message, DetectionResult):
        return message.message_id, ""
    if isinstance(message, AssessmentTask):
        return message.request_id, message.task_id
    if isinstance(message, RiskAssessmentResult):
        return message.request_id, message.task_id or ""
    if isinstance(message, Alert):
        return message.last_request_id, message.last_task_id
    return "", ""


#: Of this process; None: tracing is off, which costs one comparison.
_current: Tracer | None = None


def current() -> Tracer | None:
    """The tracing of this process; None while it is off."""
    return _current


def start(service: str, node: str, share: float, processor: SpanProcessor | None = None) -> Tracer | None:
    """Switch tracing on, if a share is to be traced; see `Tracer`."""
    global _current  # noqa: PLW0603  # one a process, as its logs and metrics are
    _current = Tracer(service, node, share, processor) if share > 0 else None
    return _current


def stop() -> None:
    """Send what waits, and switch tracing off."""
    global _current  # noqa: PLW0603
    if _current is not None:
        _current.close()
        _current = None


def _derived_ids() -> Any:
    """An id generator whose next ids can be said, in this thread; else they are random."""
    from contextlib import contextmanager

    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class DerivedIds(RandomIdGenerator):
        def __init__(self) -> None:
            self._said = threading.local()

        @contextmanager
        def of(self, trace_id: int, span_id: int) -> Any:
            self._said.ids = (trace_id, span_id)
            try:
                yield
            finally:
                self._said.ids = None

        def generate_trace_id(self) -> int:
            said = getattr(self._said, "ids", None)
            return said[0] if said else super().generate_trace_id()

        def generate_span_id(self) -> int:
            said = getattr(self._said, "ids", None)
            return said[1] if said else super().generate_span_id()

    return DerivedIds()


def _trace_id(message_id: str) -> int:
    # not the UUID's own bits: some of them are fixed, and the sampler compares them with the share
    return int.from_bytes(hashlib.sha256(message_id.encode()).digest()[:16]) or 1


def _root_id(message_id: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{ROOT}:{message_id}".encode()).digest()[:8]) or 1


def _context(span: SpanContext) -> Context:
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, set_span_in_context

    return set_span_in_context(NonRecordingSpan(span), Context())


def _of_header(headers: Iterable[tuple[str, bytes | None]]) -> SpanContext | None:
    """The sender's span; None where there is no header, or one that is malformed: then the trace's first span stands in."""
    from opentelemetry.trace import SpanContext, TraceFlags

    for name, value in headers:
        if name != HEADER or value is None:
            continue
        parts = value.decode("ascii", errors="replace").split("-")
        try:
            _, trace_id, span_id, flags = parts[:4]
            span = SpanContext(
                int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16))
            )
        except ValueError:
            return None
        return span if span.is_valid else None
    return None


def _nanoseconds(at: datetime) -> int:
    return int(at.astimezone(UTC).timestamp() * 1_000_000) * 1000
