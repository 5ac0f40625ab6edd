"""What came of asking about cases; pure."""

from __future__ import annotations

from dataclasses import dataclass

from dangerous_driving.contracts import RiskLevel
from dangerous_driving.errors import LlmTimeoutError, LlmUnavailableError, RateLimitedError

#: Causes of failure that lie with the endpoint and say little of the prompt.
ENDPOINT_FAULTS = frozenset(error.code for error in (RateLimitedError, LlmTimeoutError, LlmUnavailableError))


@dataclass(frozen=True)
class Answer:
    """An answer, or the cause of there being none. Latencies in seconds, ``cost`` in money."""

    risk_level: RiskLevel | None
    confidence: float | None = None
    risk_types: tuple[str, ...] = ()
    description: str = ""
    raw_answer: str = ""
    failure_code: str | None = None
    failure_message: str | None = None
    first_token_latency: float | None = None
    latency: float | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0


@dataclass(frozen=True)
class AskedCase:
    """One answer in a run; ``ask`` 0 is the first. ``reused``: taken over from an earlier run."""

    case_id: str
    ask: int
    answer: Answer
    reused: bool = False
