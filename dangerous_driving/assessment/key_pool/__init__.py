"""Shares the quota of many API keys among many callers: every slot used, no limit exceeded, nobody blocked.

A library of its own: it imports nothing of the platform but its errors.
"""

from dangerous_driving.assessment.key_pool.core import Key, KeyUsage, Outcome, Policy, key_hash
from dangerous_driving.assessment.key_pool.memory import MemoryStorage
from dangerous_driving.assessment.key_pool.pool import KeyPool, Observer, Reservation
from dangerous_driving.assessment.key_pool.postgres import PostgresStorage, key_usage
from dangerous_driving.assessment.key_pool.storage import Storage

__all__ = [
    "Key",
    "KeyPool",
    "KeyUsage",
    "MemoryStorage",
    "Observer",
    "Outcome",
    "Policy",
    "PostgresStorage",
    "Reservation",
    "Storage",
    "key_hash",
    "key_usage",
]
