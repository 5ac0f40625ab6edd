"""The words of a notification: subject, text, HTML and JSON, from templates. Pure but for reading the templates.

Descriptions and risk types are a model's text: untrusted. They come into HTML escaped, into a subject as one line, and
nowhere as a template.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from jinja2 import BaseLoader, Environment, StrictUndefined, TemplateError, TemplateNotFound
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dangerous_driving.contracts import Alert, RiskLevel, iso_milliseconds
from dangerous_driving.errors import ConfigError
from dangerous_driving.notifications.plan import Kind
from dangerous_driving.settings.notifications import Receiver

#: Characters of a description and a subject; what is longer was not written for a person.
MAX_DESCRIPTION, MAX_SUBJECT = 500, 160

_WORDS: dict[str, dict[str, str]] = {
    "en": {
        "ring": "alert", "raised": "alert raised", "escalation": "not acknowledged", "withdrawn": "withdrawn",
        "closed": "over", "judged": "judged", "digest": "alerts", "test": "test",
        "none": "none", "low": "low", "medium": "MEDIUM", "high": "HIGH",
        "camera": "Camera", "level": "Level", "types": "Kinds", "seen": "Seen", "until": "until", "open": "Open",
        "provisional": "Not confirmed yet: the whole answer is still to come.", "simulated": "SIMULATED",
        "acknowledged": "acknowledged", "rejected": "false alarm", "by": "by",
        "quiet_hours": "held during quiet hours", "snooze": "held while snoozed",
        "limited": "more at a time than this receiver's limit", "unknown": "of unknown kind",
        "taken_back": "The alert was taken back: the whole answer did not confirm it.", "several": "alerts in one message",
    },
    "zh": {
        "ring": "告警", "raised": "告警升级", "escalation": "未确认", "withdrawn": "已撤回", "closed": "已结束",
        "judged": "已处理", "digest": "条告警", "test": "测试", "none": "无", "low": "低", "medium": "中", "high": "高",
        "camera": "摄像头", "level": "等级", "types": "类型", "seen": "时间", "until": "至", "open": "打开",
        "provisional": "尚未确认：完整结果稍后给出。", "simulated": "模拟", "acknowledged": "已确认", "rejected": "误报",
        "by": "处理人", "quiet_hours": "免打扰时段内暂存", "snooze": "暂停期间暂存", "limited": "超出该接收方的频率限制",
        "unknown": "类型未知", "taken_back": "告警已撤回：完整结果未确认该风险。", "several": "条告警合并为一条消息",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Item:
    """One thing to be told."""

    notification_id: str
    kind: Kind
    level: RiskLevel
    alert: Alert | None  # none of a test
    held_reason: str | None = None


@dataclass(frozen=True)
class Rendered:
    """A message in all forms; ``body`` is JSON."""

    subject: str
    text: str
    html: str
    body: bytes


class Renderer:
    """Words for one receiver.

    Raises:
        ConfigError: its own template cannot be read, or is no template.
    """

    def __init__(self, receiver: Receiver, *, page_url: str = "") -> None:
        self._receiver = receiver
        self._page_url = page_url.rstrip("/")
        self._own = _own_template(receiver) if receiver.template else None

    def render(
        self, item: Item, *, at: datetime, members: Sequence[Item] = (), picture_id: str | None = None
    ) -> Rendered:
        """The message.

        Args:
            item: what is told.
            at: now.
            members: those that a digest tells.
            picture_id: of the picture that comes along, for the HTML.

        Raises:
            ConfigError: the receiver's own template fails, or its JSON is none.
        """
        views = [self._view(each) for each in (members or [item])]
        words = _WORDS[self._receiver.language]
        values: dict[str, Any] = {
            "kind": item.kind,
            "words": words,
            "items": views,
            "count": len(views),
            "first": views[0],
            "page_url": self._page_url,
            "sent_at": iso_milliseconds(at),
            "picture_id": picture_id,
        }
        subject = one_line(_packaged("subject.txt").render(values))[:MAX_SUBJECT]
        text, html = _packaged("message.txt").render(values), _packaged("message.html").render(values)
        body = _json(self._json_of(item, members, at))
        if self._own is not None:
            try:
                own = self._own.render({**values, "message": json.loads(body), "subject": subject})
            except TemplateError as error:
                raise _template_error(self._receiver, str(error)) from error
            if self._receiver.kind == "email":  # type: ignore[attr-defined]  # of all three kinds
                html = own
            else:
                body = _checked_json(self._receiver, own)
        return Rendered(subject, text, html, body)

    def _view(self, item: Item) -> dict[str, Any]:
        """Plain data, cleaned: what a template may use."""
        words, alert = _WORDS[self._receiver.language], item.alert
        if alert is None:
            return {"kind": item.kind, "what": words[item.kind], "level": "", "camera": "", "types": "", "description": "",
                    "opened_at": "", "last_seen_at": "", "simulated": False, "provisional": False, "held": "", "link": "",
                    "withdrawn": False, "judged": ""}  # fmt: skip
        judged = ""
        if alert.verdict is not None:
            judged = f"{words[alert.verdict]} {words['by']} {one_line(alert.verdict_by or '')[:64]}"
        return {
            "kind": item.kind,
            "what": words[item.kind],
            "level": words[item.level],
            "camera": alert.camera_id,
            "types": ", ".join(one_line(name)[:100] for name in alert.risk_types) or words["unknown"],
            "description": one_line(alert.description)[:MAX_DESCRIPTION],
            "opened_at": iso_milliseconds(alert.opened_at),
            "last_seen_at": iso_milliseconds(alert.last_seen_at),
            "simulated": alert.simulated,
            "provisional": alert.state == "provisional",
            "withdrawn": alert.state == "withdrawn",
            "held": words[item.held_reason] if item.held_reason else "",
            "judged": judged,
            "link": f"{self._page_url}/#alert={quote(alert.alert_id)}" if self._page_url else "",
        }

    def _json_of(self, item: Item, members: Sequence[Item], at: datetime) -> dict[str, Any]:
        def one(each: Item) -> dict[str, Any]:
            return {
                "id": each.notification_id,
                "type": f"alert.{each.kind}",
                "level": each.level.value,
                "heldReason": each.held_reason,
                "alert": each.alert.model_dump(mode="json", by_alias=True) if each.alert else None,
                "url": self._view(each)["link"] or None,
            }

        data = {"notifications": [one(member) for member in members]} if members else one(item)
        return {
            "id": item.notification_id,
            "type": f"alert.{item.kind}",
            "timestamp": iso_milliseconds(at),
            "data": data,
        }


def one_line(text: str) -> str:
    """Without line breaks, control and invisible formatting characters (a text of a model may hold any)."""
    plain = "".join(" " if unicodedata.category(letter) in ("Cc", "Zl", "Zp") else letter for letter in text)
    plain = "".join(letter for letter in plain if unicodedata.category(letter) not in ("Cf", "Cs", "Co", "Cn"))
    return re.sub(r"\s+", " ", plain).strip()


class _Packaged(BaseLoader):
    """The templates beside this module."""

    def get_source(self, environment: Environment, template: str) -> tuple[str, str, Any]:
        del environment
        source = files("dangerous_driving.notifications") / "templates" / f"{template}.jinja"
        try:
            return source.read_text(encoding="utf-8"), template, lambda: True
        except OSError as error:
            raise TemplateNotFound(template) from error


def _environment(*, html: bool) -> Environment:
    # templates of receivers are a person's, but they get no more than data
    return ImmutableSandboxedEnvironment(
        loader=_Packaged(), undefined=StrictUndefined, autoescape=html, trim_blocks=True, lstrip_blocks=True
    )


@lru_cache(maxsize=8)
def _packaged(name: str) -> Any:
    return _environment(html=name.endswith(".html")).get_template(name)


def _own_template(receiver: Receiver) -> Any:
    path = receiver.template
    assert path is not None  # noqa: S101  # asked by the caller
    try:
        source = path.read_text(encoding="utf-8")
        return _environment(html=receiver.kind == "email").from_string(source)  # type: ignore[attr-defined]
    except (OSError, UnicodeDecodeError) as error:
        raise _template_error(receiver, f"{path} cannot be read ({error})") from error
    except TemplateError as error:
        raise _template_error(receiver, f"{path}: {error}") from error


def _checked_json(receiver: Receiver, text: str) -> bytes:
    try:
        return _json(json.loads(text))
    except ValueError as error:
        raise _template_error(
            receiver, f"what it makes is no JSON ({error}); write texts as {{{{ … | tojson }}}}"
        ) from error


def _template_error(receiver: Receiver, problem: str) -> ConfigError:
    return ConfigError(f"notifications.receivers {receiver.name}: template", problem, "mend the file")


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
