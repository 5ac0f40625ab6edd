"""Shares the quota of many API keys among many callers: every slot used, no limit exceeded, nobody blocked.

A library of its own: it imports nothing of the platform but its errors.
"""

from dangerous_driving.assessment.key_pool.core import KeyUsage
from dangerous_driving.assessment.key_pool.health import (
    Budget,
    Key,
    Outcome,
    Policy,
    Spent,
    StatedLimits,
    key_hash,
)
from dangerous_driving.assessment.key_pool.memory import MemoryStorage
from dangerous_driving.assessment.key_pool.pool import KeyPool, Observer, Reservation
from dangerous_driving.assessment.key_pool.postgres import PostgresStorage
from dangerous_driving.assessment.key_pool.shared import key_usage, set_key_enabled
from dangerous_driving.assessment.key_pool.storage import Storage

__all__ = [
    "Budget",
    "Key",
    "KeyPool",
    "KeyUsage",
    "MemoryStorage",
    "Observer",
    "Outcome",
    "Policy",
    "PostgresStorage",
    "Reservation",
    "Spent",
    "StatedLimits",
    "Storage",
    "key_hash",
    "key_usage",
    "set_key_enabled",
]
