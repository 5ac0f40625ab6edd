"""API keys, what they and the lanes have used, and the switch of lanes."""

from __future__ import annotations

from datetime import date, datetime

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Identity,
    Index,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from dangerous_driving.ledger.tables.declarative import Base, filled_now


class ApiKey(Base):
    """One row per key, by its hash: the secret itself is never stored."""

    __tablename__ = "api_key"

    key_hash: Mapped[str] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(server_default="")
    qps_limit: Mapped[int]
    rpm_limit: Mapped[int]
    state: Mapped[str] = mapped_column(server_default="available")
    state_reason: Mapped[str] = mapped_column(server_default="")
    cooling_until: Mapped[datetime | None]
    failures: Mapped[int] = mapped_column(server_default=text("0"))  # 5xx and time-outs in a row
    coolings: Mapped[int] = mapped_column(server_default=text("0"))  # rests in a row, for the back-off
    probing_until: Mapped[datetime | None]
    learned_qps: Mapped[int | None]  # limits that the provider showed to be lower than the configured ones
    learned_rpm: Mapped[int | None]
    learned_at: Mapped[datetime | None]  # NULL: told in words, not learnt from a refusal
    created_at: Mapped[datetime] = filled_now()
    updated_at: Mapped[datetime] = filled_now()

    __table_args__ = (
        CheckConstraint("state IN ('available', 'cooling', 'disabled')", name="state"),
        CheckConstraint("qps_limit > 0 AND rpm_limit > 0", name="limits"),
    )


class KeyReservation(Base):
    """The key pool's sliding windows, as a log: a row per slot that was taken, or given back. Not ledger: it is pruned."""

    __tablename__ = "key_reservation"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    key_hash: Mapped[str]
    lane: Mapped[str]
    reserved_at: Mapped[datetime]
    given_back: Mapped[bool] = mapped_column(server_default=text("false"))

    __table_args__ = (Index(None, "key_hash", "reserved_at"), {"prefixes": ["UNLOGGED"]})


class KeyPoolMember(Base):
    """A process that uses the keys; without the database each goes on with its share."""

    __tablename__ = "key_pool_member"

    member: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    seen_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class LaneSpending(Base):
    """What a lane with a budget has spent on a day (UTC)."""

    __tablename__ = "lane_spending"

    day: Mapped[date] = mapped_column(primary_key=True)
    lane: Mapped[str] = mapped_column(primary_key=True)
    calls: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    cost: Mapped[float] = mapped_column(server_default=text("0"))


class Switch(Base):
    """Which lane a camera's groups take; the camera ``*`` stands for all that have no row of their own."""

    __tablename__ = "switch"

    camera_id: Mapped[str] = mapped_column(primary_key=True)
    lane: Mapped[str | None]  # NULL: taken back
    changed_at: Mapped[datetime] = filled_now()

    __table_args__ = (CheckConstraint("lane IN ('realtime', 'window', 'inline')", name="lane"),)
