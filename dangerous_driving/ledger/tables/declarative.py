"""What all tables of the ledger have in common."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    Index,
    MetaData,
    Sequence,
    Text,
    func,
)
from sqlalchemy.dialects.postgresql import ARRAY, DOUBLE_PRECISION, JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, mapped_column

#: The tables cut into one partition a day.
PARTITIONED = ("frame", "assessment_task", "risk_assessment", "llm_call")


NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "pk": "pk_%(table_name)s",
}


BY_DAY: dict[str, Any] = {"postgresql_partition_by": "RANGE (captured_at)"}


class Base(DeclarativeBase):
    """Column types: text without length, aware times, double precision, JSONB."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text(),
        datetime: TIMESTAMP(timezone=True),
        float: DOUBLE_PRECISION(),
        dict[str, Any]: JSONB(),
        list[Any]: JSONB(),
        list[str]: ARRAY(Text()),
        list[int]: ARRAY(BigInteger()),
    }


#: Rises with each claim; a result whose token is not the task's current one comes from a worker that was given up.
claim_token_sequence = Sequence("claim_token_seq", metadata=Base.metadata, start=1)


def filled_now() -> Any:
    """A column that the database fills with the time of the row."""
    return mapped_column(server_default=func.now())


def written_order(column: str) -> Index:
    """A BRIN index on the time of writing, which tells what changed since a time: rows lie in that order."""
    return Index(None, column, postgresql_using="brin", postgresql_with={"autosummarize": True})
