"""Every error this package raises on purpose.

::

    DangerousDrivingError
    ├── ConfigError            a setting, an argument or an input file is unusable        exit code 2
    │   └── UnavailableError   a part named by a setting does not answer                  exit code 2
    ├── ContractError          a message does not have the agreed form                    dead-letter
    ├── SourceError            a camera's source cannot be opened or read                 retriable
    ├── InferenceError         the detection engine fails on a picture
    ├── BrokerError            the message log refused or did not answer                  retriable
    │   └── MessageTooLargeError  no topic takes a message of that size                   dead-letter
    ├── ObjectStoreError       the object store refused or did not answer                 retriable
    │   └── ObjectNotFoundError  there is no object of that key
    ├── LedgerError            the database refused or did not answer                     retriable
    │   ├── LedgerBusyError    others hold what a transaction needs                       retriable
    │   ├── StatementRefusedError  it does not take these values                         dead-letter
    │   ├── UnfitLedgerError   it lacks a table or column, or the role may not do this     the service ends
    │   └── StaleClaimError    the claim was handed to another worker meanwhile
    ├── BridgeError            the realtime bridge did not answer, or could not do it now         retriable
    │   └── BridgeRefusedError   it does not accept the token, the act or the address
    ├── PictureError           a picture cannot be decoded                                task: failed
    ├── DeliveryError          a receiver of notifications did not take a message         retriable
    │   └── RefusedError       it answered that it will not
    ├── NoKeyError             no API key may send a request now                          retriable
    │   └── BudgetSpentError   the lane's budget of the day is used up                    retriable
    ├── GateRefusedError       the gate does not let a prompt into use
    ├── AnswerError            an answer of the LLM cannot be understood                  task: failed
    └── LlmError               a request to the LLM endpoint failed
        ├── KeyRejectedError   401/403: the endpoint does not accept this key
        ├── RateLimitedError   429: too many requests on this key                         retriable
        ├── LlmTimeoutError    no (whole) answer in time                                  retriable
        ├── LlmUnavailableError  5xx, or no connection                                    retriable
        └── LlmRequestError    any other 4xx: the request itself is wrong

A message says what is wrong *and* what to do; ``retriable`` says whether the same call may succeed later.
Foreign exceptions are mapped at the module that talks to the vendor, with ``raise … from``.
"""

from __future__ import annotations

from typing import ClassVar


class DangerousDrivingError(Exception):
    """Root of the tree. ``retriable``: the same call may succeed later without a change by a person."""

    retriable: ClassVar[bool] = False


class ConfigError(DangerousDrivingError):
    """A setting, an argument or an input file is unusable; the command line ends with exit code 2.

    ``setting`` names it as a user writes it (``--weights``, ``kafka.bootstrap_servers``).
    """

    def __init__(self, setting: str, problem: str, remedy: str) -> None:
        self.setting, self.problem, self.remedy = setting, problem, remedy
        super().__init__(f"{setting}: {problem}; {remedy}")


class UnavailableError(ConfigError):
    """A part that a setting names does not answer: the address may be wrong, or the part is down."""

    retriable = True


class ContractError(DangerousDrivingError):
    """A message does not have the agreed form. ``field`` is the path of the offending field (``a.b[0].c``)."""

    def __init__(self, message_type: str, field: str, problem: str) -> None:
        self.message_type, self.field, self.problem = message_type, field, problem
        super().__init__(f"{message_type}.{field}: {problem}" if field else f"{message_type}: {problem}")


class SourceError(DangerousDrivingError):
    """A camera's source cannot be opened or read. The text never carries credentials."""

    retriable = True


class InferenceError(DangerousDrivingError):
    """The detection engine fails on a picture (or is out of memory, or has lost its device)."""


class BrokerError(DangerousDrivingError):
    """The message log refused or did not answer in time."""

    retriable = True


class MessageTooLargeError(BrokerError):
    """The message is larger than the topic, or any topic, takes: sending it again changes nothing."""

    retriable = False


class SpoolError(DangerousDrivingError):
    """The spool's disk is full or cannot be written; what should have been kept there is lost."""


class ObjectStoreError(DangerousDrivingError):
    """The object store refused or did not answer in time."""

    retriable = True


class ObjectNotFoundError(ObjectStoreError):
    """There is no object of that key."""

    retriable = False

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(f"no object {key!r} in the store")


class LedgerError(DangerousDrivingError):
    """The database refused or did not answer in time."""

    retriable = True


class LedgerBusyError(LedgerError):
    """Others hold what the transaction needs: a lock did not come free in time, or it gave way in a deadlock."""


class StatementRefusedError(LedgerError):
    """The database does not take these values: trying again changes nothing."""

    retriable = False


class UnfitLedgerError(LedgerError):
    """The database lacks a table or column, or its role may not do this: no message is to blame, and all of them fail."""

    retriable = False


class StaleClaimError(LedgerError):
    """The task was claimed anew meanwhile (the worker's heartbeat had stopped): this result must not be kept."""

    retriable = False


class PictureError(DangerousDrivingError):
    """A picture cannot be decoded: it is damaged, or of a kind that OpenCV does not read."""


class DeliveryError(DangerousDrivingError):
    """A receiver of notifications did not take a message, or could not be reached.

    ``retry_after``: s, where the receiver says so. The text carries no credentials.
    """

    retriable = True

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        self.retry_after = retry_after
        super().__init__(message)


class RefusedError(DeliveryError):
    """The receiver answered that it does not take this message; others may pass, so they are not kept back by it."""


class NoKeyError(DangerousDrivingError):
    """No API key may send a request (in time); the text says in which state the keys are and what to do."""

    retriable = True


class BudgetSpentError(NoKeyError):
    """The lane's daily budget is used up: its tasks stay pending until midnight UTC, or until the budget is raised."""


class GateRefusedError(DangerousDrivingError):
    """A challenger is worse than the prompt in use, or nothing shows that it is better; the statistics are in the text."""


class AnswerError(DangerousDrivingError):
    """An answer of the LLM cannot be understood; ``raw`` keeps its text. It never becomes a level ``none``."""

    def __init__(self, problem: str, raw: str) -> None:
        self.problem, self.raw = problem, raw
        super().__init__(problem)


class LlmError(DangerousDrivingError):
    """A request to the LLM endpoint failed. ``code`` is its short name in messages, tables and metrics."""

    code: ClassVar[str] = "error"

    qps_limit: int | None = None  # the key's limits, where the endpoint's headers told them
    rpm_limit: int | None = None

    def __init__(self, message: str, *, http_status: int | None = None, retry_after: float | None = None) -> None:
        self.http_status = http_status
        self.retry_after = retry_after  # seconds, from the endpoint's Retry-After, if it sent one
        super().__init__(message)


class KeyRejectedError(LlmError):
    """401 or 403: the endpoint does not accept this key; a person must replace or enable it."""

    code = "key_rejected"


class RateLimitedError(LlmError):
    """429: too many requests on this key."""

    code = "rate_limited"
    retriable = True


class LlmTimeoutError(LlmError):
    """No answer, or no whole answer, within the time-out."""

    code = "timeout"
    retriable = True


class LlmUnavailableError(LlmError):
    """5xx, or the endpoint cannot be reached."""

    code = "unavailable"
    retriable = True


class LlmRequestError(LlmError):
    """Any other 4xx: the request itself is refused, another key or a retry does not help."""

    code = "bad_request"


class BridgeError(DangerousDrivingError):
    """The realtime bridge did not answer, or could not do now what was asked (`realtime.client`)."""

    retriable = True


class BridgeRefusedError(BridgeError):
    """The realtime bridge does not accept the token, the act or the address."""

    retriable = False
