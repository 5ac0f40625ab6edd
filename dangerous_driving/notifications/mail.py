"""E-mail by SMTP: text and HTML, the group's picture within."""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP as LINES
from email.utils import format_datetime

import structlog

from dangerous_driving.errors import DeliveryError, RefusedError
from dangerous_driving.notifications.rendering import Item, Rendered
from dangerous_driving.settings.notifications import EmailReceiver

log = structlog.get_logger(__name__)

PICTURE_ID = "group@dangerous-driving"

#: Answers of the server that say "not now" begin with 4.
TRANSIENT_FROM, TRANSIENT_BELOW = 400, 500


class EmailChannel:
    """Sends to the people of one receiver, with a connection per message: they are few."""

    def __init__(self, receiver: EmailReceiver, password: str | None) -> None:
        self._receiver = receiver
        self._password = password

    def deliver(self, item: Item, rendered: Rendered, picture: bytes | None = None) -> None:
        """Send one message; returns once the server has taken it for at least one of the recipients.

        Raises:
            RefusedError: the server does not take it.
            DeliveryError: the server did not answer, or not now.
        """
        message = message_of(self._receiver, item, rendered, picture)
        with self._connected() as server:
            refused = server.send_message(message, from_addr=self._receiver.sender, to_addrs=self._receiver.recipients)
        if refused:
            # the others have it; to send it again would tell them twice
            log.warning("recipients_refused", receiver=self._receiver.name, count=len(refused))

    def check(self) -> str:
        """Connect, encrypt and log in.

        Raises:
            DeliveryError: one of them fails.
        """
        with self._connected() as server:
            server.noop()
        return f"SMTP server {self._receiver.host}:{self._receiver.port} lets in"

    def close(self) -> None:
        """Nothing is held."""

    @contextmanager
    def _connected(self) -> Iterator[smtplib.SMTP]:
        receiver = self._receiver
        where = f"the SMTP server {receiver.host}:{receiver.port}"
        context = ssl.create_default_context(cafile=str(receiver.ca_file) if receiver.ca_file else None)
        try:
            server: smtplib.SMTP
            if receiver.security == "tls":
                server = smtplib.SMTP_SSL(receiver.host, receiver.port, timeout=receiver.timeout, context=context)
            else:
                server = smtplib.SMTP(receiver.host, receiver.port, timeout=receiver.timeout)
            with server:
                if receiver.security == "starttls":
                    server.starttls(context=context)
                if receiver.username is not None and self._password is not None:
                    server.login(receiver.username, self._password)
                yield server
        except smtplib.SMTPRecipientsRefused as error:
            codes = {code for code, _ in error.recipients.values()}
            raise _by_code(max(codes), f"{where} refuses all recipients ({max(codes)})") from error
        except smtplib.SMTPAuthenticationError as error:
            raise DeliveryError(f"{where} does not accept user and password ({error.smtp_code})") from error
        except smtplib.SMTPResponseException as error:
            raise _by_code(error.smtp_code, f"{where} answered with {error.smtp_code}") from error
        except smtplib.SMTPNotSupportedError as error:
            raise DeliveryError(f"{where} lacks what the settings ask for ({error})") from error
        except (smtplib.SMTPException, OSError) as error:
            raise DeliveryError(f"{where} did not answer ({type(error).__name__})") from error


def message_of(receiver: EmailReceiver, item: Item, rendered: Rendered, picture: bytes | None) -> EmailMessage:
    """The e-mail; its id derives from the notification's, so that a mailbox can tell a repetition."""
    message = EmailMessage(policy=LINES)
    message["Subject"] = rendered.subject
    message["From"] = receiver.sender
    message["To"] = ", ".join(receiver.recipients)
    message["Date"] = format_datetime(datetime.now(UTC))
    message["Message-ID"] = f"<{item.notification_id}@{receiver.sender.rpartition('@')[2]}>"
    if item.alert is not None:
        # what is said of one alert stands together in a mailbox
        thread = f"<{item.alert.alert_id}.{receiver.name}@alerts>"
        message["References"] = thread
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(rendered.text)
    message.add_alternative(rendered.html, subtype="html")
    html = message.get_body(("html",))
    if picture is not None and isinstance(html, EmailMessage):
        html.add_related(picture, "image", "jpeg", cid=f"<{PICTURE_ID}>")
    return message


def _by_code(code: int, problem: str) -> DeliveryError:
    return DeliveryError(problem) if TRANSIENT_FROM <= code < TRANSIENT_BELOW else RefusedError(problem)
