"""Signed webhooks as Standard Webhooks 1.0 describes them, so that receivers can use ready libraries. Pure.

``webhook-signature: v1,BASE64(HMAC-SHA256(secret, "{webhook-id}.{webhook-timestamp}.{body}"))``. The receiver compares
the signature, refuses old timestamps (a replay), and takes an id that it has seen for a repetition.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from dangerous_driving.settings.notifications import signing_key

ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"
VERSION = "v1"
TOLERANCE = timedelta(minutes=5)


def signed_headers(secret: str, message_id: str, body: bytes, *, at: datetime) -> dict[str, str]:
    """The three headers of a message sent at this time.

    Raises:
        ValueError: the secret is not of the form ``whsec_…``.
    """
    timestamp = str(int(at.timestamp()))
    return {
        ID: message_id,
        TIMESTAMP: timestamp,
        SIGNATURE: f"{VERSION},{_signature(secret, message_id, timestamp, body)}",
    }


def verified(secret: str, headers: Mapping[str, str], body: bytes, *, now: datetime) -> bool:
    """Whether a message is genuine and fresh; for receivers in Python, and for tests.

    Args:
        secret: the receiver's, ``whsec_…``.
        headers: of the request, names in lower case.
        body: exactly as it came.
        now: to refuse what is more than five minutes off.
    """
    message_id, timestamp = headers.get(ID, ""), headers.get(TIMESTAMP, "")
    if not message_id or not timestamp.isdecimal():
        return False
    try:
        sent = datetime.fromtimestamp(int(timestamp), UTC)
    except (OverflowError, OSError, ValueError):
        return False
    if abs(now - sent) > TOLERANCE:
        return False
    wanted = _signature(secret, message_id, timestamp, body)
    offered = [part.partition(",") for part in headers.get(SIGNATURE, "").split(" ")]
    return any(
        version == VERSION and hmac.compare_digest(given.encode(), wanted.encode()) for version, _, given in offered
    )


def _signature(secret: str, message_id: str, timestamp: str, body: bytes) -> str:
    signed = f"{message_id}.{timestamp}.".encode() + body
    return base64.b64encode(hmac.new(signing_key(secret), signed, hashlib.sha256).digest()).decode()
