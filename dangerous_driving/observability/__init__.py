"""Metrics, logs and the life of a service process."""
