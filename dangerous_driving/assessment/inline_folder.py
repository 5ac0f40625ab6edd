"""Calls of the inline lane on disk: written before the request leaves, completed after, removed once the ledger has them."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import structlog

from dangerous_driving.contracts import AssessmentTask
from dangerous_driving.errors import ContractError
from dangerous_driving.ledger.assessments import AssessmentRecord, CallOutcome
from dangerous_driving.own_folder import own_folder

log = structlog.get_logger(__name__)

LOST = CallOutcome("lost", error="the process died while the call was under way")


@dataclass(frozen=True)
class InlineCall:
    """One request of the inline lane, and its answer where it had one."""

    task: AssessmentTask
    started_at: datetime
    key_hash: str
    model: str
    prompt_version: str
    outcome: CallOutcome | None = None
    record: AssessmentRecord | None = None
    finished_at: datetime | None = None

    @property
    def name(self) -> str:
        """Of its file."""
        return hashlib.sha256(f"{self.task.task_id} {self.started_at.isoformat()}".encode()).hexdigest()[:32] + ".json"


class InlineFolder:
    """The calls that the ledger does not have yet. Whoever writes or hands in has to `own` it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: set[str] = set()  # of this process, under way
        self._lock = threading.Lock()
        self._owned: IO[str] | None = None

    def own(self) -> None:
        """Keep other processes out until `release` or the end of this one: they would take its calls under way for lost.

        Raises:
            ConfigError: the folder cannot be written, or another process uses it.
        """
        self._owned = own_folder(self._folder, "assessment.inline_folder")

    def release(self) -> None:
        """Let another process have it."""
        if self._owned is not None:
            self._owned.close()
            self._owned = None

    def __len__(self) -> int:
        return sum(1 for _ in self._folder.glob("*.json"))

    def begin(self, task: AssessmentTask, *, key_hash: str, model: str, prompt_version: str) -> InlineCall:
        """Note a request before it leaves."""
        call = InlineCall(task, datetime.now(UTC), key_hash, model, prompt_version)
        with self._lock:
            self._open.add(call.name)
        self._write(call)
        return call

    def end(self, call: InlineCall, outcome: CallOutcome, record: AssessmentRecord | None = None) -> None:
        """Note how it ended."""
        self._write(replace(call, outcome=outcome, record=record, finished_at=datetime.now(UTC)))
        with self._lock:
            self._open.discard(call.name)

    def ended(self) -> Iterator[InlineCall]:
        """The calls that have ended, the oldest first; those that a dead process left under way are lost."""
        files = sorted(self._folder.glob("*.json"), key=lambda file: file.stat().st_mtime)
        for file in files:
            with self._lock:
                if file.name in self._open:
                    continue
            try:
                call = _read(file.read_text(encoding="utf-8"))
            except (ValueError, KeyError, TypeError, ContractError) as error:
                log.warning("inline_call_unreadable", file=str(file), reason=str(error))
                file.rename(file.with_suffix(".bad"))  # kept for a person
                continue
            yield call if call.outcome is not None else replace(call, outcome=LOST)

    def remove(self, call: InlineCall) -> None:
        """Forget a call that the ledger has."""
        (self._folder / call.name).unlink(missing_ok=True)

    def _write(self, call: InlineCall) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        beside = self._folder / f".{call.name}.new"
        with beside.open("w", encoding="utf-8") as file:
            json.dump(_values(call), file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._folder / call.name)


_TIMES = ("captured_at", "assessed_at", "first_token_at")


def _values(call: InlineCall) -> dict[str, Any]:
    task = call.task.model_copy(update={"group_image_base64": None})

    def plain(item: object) -> Any:
        values = asdict(item)  # type: ignore[call-overload]
        return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()}

    return {
        "task": json.loads(task.to_json()),
        "started_at": call.started_at.isoformat(),
        "key_hash": call.key_hash,
        "model": call.model,
        "prompt_version": call.prompt_version,
        "outcome": None if call.outcome is None else plain(call.outcome),
        "record": None if call.record is None else plain(call.record),
        "finished_at": None if call.finished_at is None else call.finished_at.isoformat(),
    }


def _read(text: str) -> InlineCall:
    values = json.loads(text)

    def timed(kind: type[Any], item: dict[str, Any] | None) -> Any:
        if item is None:
            return None
        known = {field.name for field in fields(kind)}
        return kind(**{
            name: datetime.fromisoformat(value) if name in _TIMES and value is not None else value
            for name, value in item.items()
            if name in known
        })  # fmt: skip

    return InlineCall(
        task=AssessmentTask.from_json(json.dumps(values["task"])),
        started_at=datetime.fromisoformat(values["started_at"]),
        key_hash=values["key_hash"],
        model=values["model"],
        prompt_version=values["prompt_version"],
        outcome=timed(CallOutcome, values["outcome"]),
        record=timed(AssessmentRecord, values["record"]),
        finished_at=None if values["finished_at"] is None else datetime.fromisoformat(values["finished_at"]),
    )
