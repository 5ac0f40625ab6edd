"""MQTT: a message of JSON to a broker, acknowledged."""

from __future__ import annotations

import ssl
import threading
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from dangerous_driving.errors import DeliveryError
from dangerous_driving.notifications.rendering import Item, Rendered
from dangerous_driving.settings.notifications import MqttReceiver

KEEP_ALIVE = 30  # s


class MqttChannel:
    """Publishes for one receiver over a connection that is kept, and made anew after a failure."""

    def __init__(self, receiver: MqttReceiver, password: str | None, *, node: str = "") -> None:
        self._receiver = receiver
        self._password = password
        self._node = node
        self._client: paho.Client | None = None

    def deliver(self, item: Item, rendered: Rendered, picture: bytes | None = None) -> None:
        """Publish one message; returns once the broker has acknowledged it.

        Raises:
            DeliveryError: it did not, or cannot be reached.
        """
        del picture  # the JSON has its address
        client = self._connected()
        topic = (
            self._receiver.digest_topic
            if item.alert is None
            else self._receiver.topic.replace("{camera_id}", item.alert.camera_id)
        )
        try:
            sent = client.publish(topic, rendered.body, qos=self._receiver.qos, retain=self._receiver.retain)
            sent.wait_for_publish(self._receiver.timeout)
            acknowledged = sent.is_published()
        except (ValueError, RuntimeError, OSError) as error:
            self.close()
            raise DeliveryError(f"{self._where} did not take the message ({type(error).__name__})") from error
        if not acknowledged:
            # on a new connection, since this one may be half dead; the same id says that it is a repetition
            self.close()
            raise DeliveryError(f"{self._where} did not acknowledge the message in time")

    def check(self) -> str:
        """Connect and log in.

        Raises:
            DeliveryError: that fails.
        """
        self._connected()
        self.close()
        return f"MQTT broker {self._receiver.host}:{self._receiver.port} lets in"

    def close(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        if client is not None:
            client.disconnect()
            client.loop_stop()

    @property
    def _where(self) -> str:
        return f"the MQTT broker {self._receiver.host}:{self._receiver.port}"

    def _connected(self) -> paho.Client:
        if self._client is not None and self._client.is_connected():
            return self._client
        self.close()
        receiver = self._receiver
        # no name of its own: a session is not needed, and two processes of one name would put each other out
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id="", clean_session=True, reconnect_on_failure=False)
        client.connect_timeout = receiver.timeout
        if receiver.username is not None:
            client.username_pw_set(receiver.username, self._password)
        answered = threading.Event()
        reason: list[Any] = []

        def on_connect(_client: paho.Client, _data: Any, _flags: Any, code: Any, _properties: Any) -> None:
            reason.append(code)
            answered.set()

        client.on_connect = on_connect
        try:
            if receiver.tls:
                client.tls_set_context(
                    ssl.create_default_context(cafile=str(receiver.ca_file) if receiver.ca_file else None)
                )
            client.connect(receiver.host, receiver.port, keepalive=KEEP_ALIVE)
        except (OSError, ValueError) as error:
            raise DeliveryError(f"{self._where} did not answer ({type(error).__name__})") from error
        client.loop_start()
        self._client = client
        if not answered.wait(receiver.timeout):
            self.close()
            raise DeliveryError(f"{self._where} did not answer in time")
        if reason[0].is_failure:
            self.close()
            raise DeliveryError(f"{self._where} does not let in ({reason[0]}); check user and password")
        return client
