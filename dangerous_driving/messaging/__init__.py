"""The message log: topics, producer, consumer and the embedded broker."""
