"""The message log: topics, a producer, a consumer, and a broker for the demo. Nothing outside knows the client."""

from dangerous_driving.messaging.consumer import AckPolicy, Consumer, Received
from dangerous_driving.messaging.embedded import EmbeddedBroker, embedded_kafka_settings, run_embedded_broker
from dangerous_driving.messaging.lag import LagMeter
from dangerous_driving.messaging.producer import Delivery, Position, Producer
from dangerous_driving.messaging.topics import (
    AppliedTopic,
    Outcome,
    Topic,
    TopicSpec,
    TopicState,
    apply,
    check,
    describe,
    group_lag,
    topic_table,
)

__all__ = [
    "AckPolicy",
    "AppliedTopic",
    "Consumer",
    "Delivery",
    "EmbeddedBroker",
    "LagMeter",
    "Outcome",
    "Position",
    "Producer",
    "Received",
    "Topic",
    "TopicSpec",
    "TopicState",
    "apply",
    "check",
    "describe",
    "embedded_kafka_settings",
    "group_lag",
    "run_embedded_broker",
    "topic_table",
]
