"""How a detection result is handed to the broker, and what is left out of one that the broker finds too large."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import structlog

from dangerous_driving.contracts import DetectionResult
from dangerous_driving.errors import BrokerError, MessageTooLargeError

log = structlog.get_logger(__name__)


class Receipt(Protocol):
    """A message under way to the broker."""

    def on_done(self, callback: Callable[[BrokerError | None], None], /) -> None:
        """Call back, from any thread, with None when it is acknowledged, else with the error."""


Publish = Callable[[DetectionResult], Receipt | None]
"""Hands a result to the broker without waiting for it; raises ``BrokerError``. None: nothing to wait for."""


def without_pictures(result: DetectionResult) -> DetectionResult:
    """The result with its groups' pictures as URLs alone; the same object if it carries none that has a URL."""
    if not any(group.group_image_base64 and group.group_image_url for group in result.traffic_groups):
        return result
    groups = tuple(
        group.model_copy(update={"group_image_base64": None}) if group.group_image_url else group
        for group in result.traffic_groups
    )
    return result.model_copy(update={"traffic_groups": groups})


def slimmer_if_too_large(publish: Publish) -> Publish:
    """Has a result that is too large sent once more without its pictures, which the store has.

    The client finds that out at once, or the broker later, since its limit is for the message as compressed.
    """
    # a receipt comes in the producer's own thread, which must not wait for itself
    again = ThreadPoolExecutor(1, thread_name_prefix="publish-again")

    def send(result: DetectionResult) -> Receipt | None:
        slim = without_pictures(result)
        if slim is result:
            return publish(result)
        try:
            receipt = publish(result)
        except MessageTooLargeError as error:
            _tell(result, error)
            return publish(slim)
        return None if receipt is None else _SecondChance(receipt, slim, publish, again)

    return send


class _SecondChance:
    """The receipt of a result that is sent once more if it is too large."""

    def __init__(self, receipt: Receipt, slim: DetectionResult, publish: Publish, again: ThreadPoolExecutor) -> None:
        self._receipt, self._slim, self._publish, self._again = receipt, slim, publish, again

    def on_done(self, callback: Callable[[BrokerError | None], None], /) -> None:
        def ended(error: BrokerError | None) -> None:
            if not isinstance(error, MessageTooLargeError):
                callback(error)
                return
            _tell(self._slim, error)
            try:
                self._again.submit(self._send, callback)
            except RuntimeError:  # the process ends
                callback(error)

        self._receipt.on_done(ended)

    def _send(self, callback: Callable[[BrokerError | None], None]) -> None:
        try:
            receipt = self._publish(self._slim)
        except BrokerError as error:
            callback(error)
            return
        if receipt is None:
            callback(None)
        else:
            receipt.on_done(callback)


def _tell(result: DetectionResult, error: MessageTooLargeError) -> None:
    log.warning(
        "detection_result_sent_without_pictures",
        camera_id=result.camera_id,
        message_id=result.message_id,
        reason=str(error),
    )
