"""What the OpenAPI and AsyncAPI documents say holds: no request and no message makes a 5xx or a crash."""

from __future__ import annotations

import json
import re
import socket
import string
from contextlib import suppress
from typing import Any, cast

import pytest
import schemathesis
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from dangerous_driving.contracts import RiskLevel
from dangerous_driving.ledger.frames import record_detections
from dangerous_driving.ledger.schema import Partitions
from dangerous_driving.realtime.asyncapi import asyncapi_document
from dangerous_driving.realtime.envelopes import CLIENT_MESSAGES, SERVER_MESSAGES, UnreadableError, read
from dangerous_driving.tasks.derivation import tasks_from_detection
from tests.conftest import REPOSITORY
from tests.realtime.conftest import BridgeFactory, Listener, RunningBridge, a_frame, a_sighting, an_answer

pytestmark = pytest.mark.integration

SEARCH = settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


TOKEN = "correct horse battery staple"


@pytest.fixture
def bridge(start_bridge: BridgeFactory) -> RunningBridge:
    """An open bridge with something in it, and with no limit on rates, since a search asks for much."""
    return filled(start_bridge(token_role="admin", **UNLIMITED))


@pytest.fixture
def guarded(start_bridge: BridgeFactory) -> RunningBridge:
    """The same with a token."""
    return filled(start_bridge(token=TOKEN, token_role="admin", **UNLIMITED))


UNLIMITED = {"request_burst": 10**6, "message_burst": 10**6, "connect_burst": 10**6}


def filled(bridge: RunningBridge) -> RunningBridge:
    frame = a_frame(store=bridge.store)
    record_detections(bridge.engine, Partitions(), [frame], tasks_from_detection(frame), window_length=3600)
    bridge.decide(a_sighting(frame))
    return bridge


# REST


def test_no_request_makes_a_5xx_or_an_answer_that_is_not_documented(guarded: RunningBridge) -> None:
    schema = schemathesis.openapi.from_url(f"{guarded.url}/api/openapi.json")
    operations = [cast("Any", result).ok() for result in schema.get_all_operations()]
    assert len(operations) >= 15
    for operation in operations:

        @SEARCH
        @given(case=operation.as_strategy())
        def search(case: Any) -> None:
            headers = {"Authorization": f"Bearer {TOKEN}"}
            response = case.call(base_url=guarded.url, headers=headers)
            case.validate_response(response, headers=headers)
            assert response.status_code < 500

        search()
    with guarded.http() as http:
        assert http.get("/healthz").status_code == 200


def test_known_ids_in_all_routes_are_answered(bridge: RunningBridge) -> None:
    with bridge.http() as http:
        (alert,) = http.get("/api/alerts").json()["items"]
        document = http.get("/api/openapi.json").json()
        for path, methods in document["paths"].items():
            if "get" not in methods:
                continue
            names = {
                "alert_id": alert["alertId"], "camera_id": "north", "message_id": alert["lastRequestId"],
                "task_id": alert["lastTaskId"],
            }  # fmt: skip
            answer = http.get(path.format_map(names), params={"at": alert["lastSeenAt"]})
            assert answer.status_code == 200, path


# the socket

NASTY = st.sampled_from(
    [
        "'; DROP TABLE alert; --", "<script>alert(1)</script>", "../../etc/passwd", "\x00", "\ud800", "𝕏" * 100, "a" * 5000,
        "NaN", "-1", "",
    ]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | NASTY | st.text(string.printable, max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.sampled_from(["cameras", "minimumLevel", "types", "alertId", "note", "by", "cameraId", "nonce", "other"])
MESSAGES = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=200),
    VALUES.map(json.dumps),
    st.fixed_dictionaries(
        {"type": st.sampled_from([*CLIENT_MESSAGES, "alert", ""]), "data": st.dictionaries(FIELDS, VALUES, max_size=4)}
    ).map(json.dumps),
    st.just("[" * 10_000),
)


@settings(SEARCH, max_examples=200)
@given(MESSAGES)
def test_anything_is_read_or_refused(message: str | bytes) -> None:
    with suppress(UnreadableError):
        read(message if isinstance(message, str) else None)


def test_nothing_that_a_client_sends_ends_the_bridge(bridge: RunningBridge) -> None:
    @settings(SEARCH, max_examples=40)
    @given(st.lists(MESSAGES, max_size=8))
    def search(messages: list[str | bytes]) -> None:
        with bridge.socket() as client:
            for message in messages:
                if isinstance(message, str):
                    try:
                        message.encode()
                    except UnicodeEncodeError:
                        continue  # no text of a WebSocket
                client.connection.send(message)
            seen = {kind for kind, _ in client.settle()}
            assert seen <= {kind.value for kind in SERVER_MESSAGES}

    with bridge.socket() as steady:
        search()
        steady.settle()
    assert bridge.failure is None


@pytest.mark.parametrize(
    "query",
    ["?last=", "?last=%00", "?last=x:y", "?last='--", "?last=unknown", "?last=a:99999999999", "?after=%00", "?after=9999-12-31T23:59:59Z",
     "?after=0001-01-01T00:00:00Z", "?last=" + "a" * 5000, "?token=%ff", "?%ff=%ff"],
)  # fmt: skip
def test_any_query_is_answered(bridge: RunningBridge, query: str) -> None:
    with bridge.socket(query) as client:
        assert client.next("connection_ack")
        client.settle()


@pytest.mark.parametrize(
    "rubbish", [b"", b"GET /ws HTTP/1.1\r\n\r\n", b"\x00" * 1000, b"GET /ws HTTP/9.9\r\nUpgrade: x\r\n\r\n"]
)
def test_what_is_no_http_harms_nobody(bridge: RunningBridge, rubbish: bytes) -> None:
    with bridge.socket() as steady, socket.create_connection(("127.0.0.1", bridge.port)) as raw:
        raw.sendall(rubbish)
        steady.settle()


def test_frames_that_break_the_protocol_end_their_connection_alone(bridge: RunningBridge) -> None:
    with bridge.socket() as steady:
        for payload in (b"\xff" * 14, b"\x83\x80\x00\x00\x00\x00", b"\xf1\x80\x00\x00\x00\x00"):
            with connect(f"ws://127.0.0.1:{bridge.port}/ws") as client:
                client.socket.sendall(payload)
                with pytest.raises(ConnectionClosed):
                    Listener(client).next("nothing more")
        steady.settle()


# the documents


def schema_of(document: dict[str, Any], name: str) -> Draft202012Validator:
    # references stand as in the document, whose root is the same
    payload = document["components"]["messages"][name]["payload"]
    return Draft202012Validator(payload | {"components": document["components"]})


def test_the_asyncapi_document_is_the_one_in_the_documentation() -> None:
    kept = yaml.safe_load((REPOSITORY / "docs" / "asyncapi.yaml").read_text(encoding="utf-8"))
    assert kept == asyncapi_document(), "write it anew: make api-documents"


def test_the_asyncapi_document_names_every_message_both_ways() -> None:
    document = asyncapi_document()
    names = {*CLIENT_MESSAGES, *(kind.value for kind in SERVER_MESSAGES)}
    assert set(document["components"]["messages"]) == set(document["channels"]["bridge"]["messages"]) == names
    said = {
        operation["action"]: {reference["$ref"].rpartition("/")[2] for reference in operation["messages"]}
        for operation in document["operations"].values()
    }
    assert said == {"send": {kind.value for kind in SERVER_MESSAGES}, "receive": set(CLIENT_MESSAGES)}
    for name in names:
        Draft202012Validator.check_schema(document["components"]["messages"][name]["payload"])
    text = json.dumps(document)
    for reference in set(re.findall(r'"\$ref": "#/([^"]+)"', text)):
        place: Any = document
        for part in reference.split("/"):
            place = place[part]


def test_what_the_bridge_sends_is_what_the_asyncapi_document_says(bridge: RunningBridge) -> None:
    document = asyncapi_document()
    seen: set[str] = set()
    with bridge.http() as http:
        assert http.get("/api/asyncapi.json").json() == document
        with bridge.socket() as client:
            frame = a_frame()
            bridge.feed(frame)
            bridge.feed(an_answer(frame, RiskLevel.MEDIUM))
            bridge.decide(a_sighting(frame))
            client.send("nonsense")
            client.send("ping", nonce="1")
            client.send("check_camera", cameraId="north")
            http.post("/api/cameras/north/stop", json={})
            while seen != {kind.value for kind in SERVER_MESSAGES}:
                kind, data = client.receive()
                seen.add(kind)
                errors = list(schema_of(document, kind).iter_errors({"type": kind, "data": data}))
                assert not errors, (kind, errors[0].message)


@SEARCH
@given(st.sampled_from(sorted(CLIENT_MESSAGES)), st.dictionaries(FIELDS, VALUES, max_size=3))
def test_what_is_read_is_what_the_asyncapi_document_allows(kind: str, data: dict[str, Any]) -> None:
    message = {"type": kind, "data": data}
    try:
        read(json.dumps(message))
    except UnreadableError:
        return
    assert not list(schema_of(asyncapi_document(), kind).iter_errors(json.loads(json.dumps(message))))
