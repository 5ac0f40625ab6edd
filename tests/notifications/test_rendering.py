"""Words of notifications; what a model wrote is untrusted."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.contracts import AlertState, RiskLevel, Verdict
from dangerous_driving.errors import ConfigError
from dangerous_driving.notifications.mail import message_of
from dangerous_driving.notifications.rendering import Item, Renderer, one_line
from dangerous_driving.settings.notifications import EmailReceiver, WebhookReceiver
from tests.alerts.conftest import NOON
from tests.notifications.conftest import SECRET, alert

EMAIL = EmailReceiver(name="mail", kind="email", host="mx", sender="dd@city.example", recipients=("ada@city.example",))


def item(number: int = 0, held: str | None = None, kind: Any = "ring", **changes: Any) -> Item:
    return Item(f"id-{number}", kind, RiskLevel.HIGH, alert(number, **changes), held)


def test_a_message_says_what_where_and_when_and_how_to_get_there() -> None:
    found = Renderer(EMAIL, page_url="https://page/").render(item(), at=NOON)
    assert found.subject == "HIGH alert: pedestrian_conflict, Camera crossing"
    for part in ("Camera: crossing", "2026-03-01T12:00:00.000Z", "A person is close", "https://page/#alert=alert-0"):
        assert part in found.text
        assert part.removeprefix("Camera: ") in found.html
    content = json.loads(found.body)
    assert (content["id"], content["type"]) == ("id-0", "alert.ring")
    assert content["data"]["alert"]["alertId"] == "alert-0"


def test_what_is_simulated_provisional_withdrawn_or_judged_says_so() -> None:
    renderer = Renderer(EMAIL)
    assert renderer.render(item(simulated=True), at=NOON).subject.startswith("[SIMULATED]")
    assert "Not confirmed yet" in renderer.render(item(state=AlertState.PROVISIONAL), at=NOON).text
    assert "taken back" in renderer.render(item(kind="withdrawn", state=AlertState.WITHDRAWN), at=NOON).text
    judged = item(kind="judged", verdict=Verdict.REJECTED, verdict_by="Ada")
    assert "false alarm by Ada" in renderer.render(judged, at=NOON).text


def test_a_digest_tells_each_of_its_alerts() -> None:
    digest = Item("digest", "digest", RiskLevel.HIGH, None)
    members = [item(number, held="quiet_hours", camera_id=f"cam{number}") for number in range(3)]
    found = Renderer(EMAIL).render(digest, at=NOON, members=members)
    assert found.subject == "3 alerts: cam0, cam1, cam2"
    assert found.text.count("held during quiet hours") == 3
    assert [each["id"] for each in json.loads(found.body)["data"]["notifications"]] == ["id-0", "id-1", "id-2"]


def test_texts_are_chinese_for_those_who_want_them() -> None:
    found = Renderer(EMAIL.model_copy(update={"language": "zh"})).render(item(), at=NOON)
    assert found.subject == "高 告警: pedestrian_conflict, 摄像头 crossing"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}


NASTY = st.one_of(
    st.text(),
    st.sampled_from(
        ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "{{ 7 * 7 }}", "{% include 'x' %}", "a\r\nBcc: x@y",
         '"><a href="javascript:1">', "\u202eevil", "\x00\x1b[31m", "\ud800", "a\u2028b"]
    ),
)  # fmt: skip


@given(NASTY, NASTY, NASTY)
def test_a_model_s_text_stays_text(description: str, risk_type: str, by: str) -> None:
    """No tags, no headers, no templates, no control characters come out of it."""
    nasty = item(description=description, risk_types=(risk_type,), verdict=Verdict.REJECTED, verdict_by=by)
    found = Renderer(EMAIL).render(nasty, at=NOON)
    tags = Tags()
    tags.feed(found.html)
    assert tags.seen <= {"html", "head", "meta", "title", "body", "div", "h2", "small", "p", "br", "b", "img", "a"}
    assert tags.attributes <= {"charset", "style"}
    assert "\n" not in found.subject
    assert not set(found.text) & {"\x00", "\x1b", "\u202e"}
    assert json.loads(found.body)["data"]["alert"]["alertId"] == "alert-0"
    message = message_of(EMAIL, nasty, found, None)
    headers = message.as_bytes().partition(b"\r\n\r\n")[0]
    assert b"\nBcc" not in headers
    assert message["To"] == "ada@city.example"


@given(st.text())
def test_one_line_is_one_line(text: str) -> None:
    assert len(one_line(text).splitlines()) <= 1


def webhook(template: Path) -> WebhookReceiver:
    values = {"name": "chat", "kind": "webhook", "url": "https://chat/hook", "secret": SECRET, "template": template}
    return WebhookReceiver.model_validate(values)


def test_a_receiver_s_own_template_makes_its_body(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text('{"text": {{ (subject ~ ": " ~ first.description) | tojson }}}', encoding="utf-8")
    found = Renderer(webhook(file)).render(item(description='say "hi"\n</b>'), at=NOON)
    assert json.loads(found.body) == {"text": 'HIGH alert: pedestrian_conflict, Camera crossing: say "hi" </b>'}


@pytest.mark.parametrize(
    ("template", "problem"),
    [('{"text": "{{ first.description }}"}', "no JSON"), ("{{ nothing }}", "undefined"), ("{{ first.x() }}", "x")],
)
def test_a_template_that_fails_names_the_receiver(tmp_path: Path, template: str, problem: str) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(template, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"receivers chat: template.*{problem}"):
        Renderer(webhook(file)).render(item(description='a "quoted" word'), at=NOON)


def test_a_template_that_is_none_is_refused_at_the_start(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    with pytest.raises(ConfigError, match="cannot be read"):
        Renderer(webhook(file))
    file.write_text("{{ unclosed", encoding="utf-8")
    with pytest.raises(ConfigError, match="receivers chat: template"):
        Renderer(webhook(file))
