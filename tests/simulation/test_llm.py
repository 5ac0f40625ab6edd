"""The simulated LLM over real HTTP, as a client sees it."""

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from pydantic import SecretStr

from dangerous_driving.assessment.key_pool import key_hash
from dangerous_driving.assessment.keys import Key
from dangerous_driving.errors import ConfigError
from dangerous_driving.simulation.llm import MODEL, serve, serving

KEYS = [Key(SecretStr(f"sk-{number}"), qps_limit=100, rpm_limit=100) for number in range(2)]
BODY = {"model": MODEL, "messages": [{"role": "user", "content": '{"objects": []}'}]}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(keys=KEYS, speed=50.0) as base_url:
        yield base_url


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=20, headers={"authorization": "Bearer sk-0"}) as opened:
        yield opened
        opened.post(url.removesuffix("/v1") + "/admin/faults", json={"action": "restore"}).raise_for_status()


def admin(client: httpx.Client, **order: object) -> httpx.Response:
    return client.post(str(client.base_url).removesuffix("/v1/") + "/admin/faults", json=order)


def test_an_answer_in_one_piece(client: httpx.Client) -> None:
    response = client.post("/chat/completions", json=BODY)
    answer = response.json()
    assert response.headers["x-simulated"] == "true"
    assert answer["model"] == MODEL
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert json.loads(answer["choices"][0]["message"]["content"])["riskLevel"] == "none"
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]


def test_an_answer_in_parts(client: httpx.Client) -> None:
    body = {**BODY, "stream": True, "stream_options": {"include_usage": True}}
    response = client.post("/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert chunks.pop()["usage"]["completion_tokens"] > 0
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == client.post("/chat/completions", json=BODY).json()["choices"][0]["message"]["content"]
    assert len(chunks) > 5


def test_max_tokens_cuts_the_answer(client: httpx.Client) -> None:
    choice = client.post("/chat/completions", json={**BODY, "max_tokens": 1}).json()["choices"][0]
    assert (choice["finish_reason"], len(choice["message"]["content"])) == ("length", 4)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"no json", 400),
        (b"[]", 400),
        (b'{"model": "simulated-vl"}', 400),
        (json.dumps({**BODY, "max_tokens": "many"}).encode(), 400),
        (json.dumps({**BODY, "model": "gpt-4o"}).encode(), 404),
    ],
)
def test_requests_that_are_wrong(client: httpx.Client, body: bytes, status: int) -> None:
    response = client.post("/chat/completions", content=body)
    assert response.status_code == status
    assert response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/models", "/chat/completions"])
@pytest.mark.parametrize("authorization", ["", "Bearer sk-unknown", "Basic sk-0"])
def test_unknown_keys_are_rejected(client: httpx.Client, path: str, authorization: str) -> None:
    headers = {"authorization": authorization}
    response = client.get(path, headers=headers) if path == "/models" else client.post(path, json=BODY, headers=headers)
    assert response.status_code == 401


def test_the_list_of_models(client: httpx.Client) -> None:
    assert [model["id"] for model in client.get("/models").json()["data"]] == [MODEL]


def test_faults_by_command(client: httpx.Client) -> None:
    first = key_hash("sk-0")
    admin(client, action="revoke", key=first).raise_for_status()
    assert client.get("/models").status_code == 401
    assert client.post("/chat/completions", json=BODY).status_code == 401
    assert client.post("/chat/completions", json=BODY, headers={"authorization": "Bearer sk-1"}).status_code == 200
    admin(client, action="restore", key=first).raise_for_status()
    admin(client, action="throttle", amount=0).raise_for_status()
    response = client.post("/chat/completions", json=BODY)
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    state = admin(client, action="restore").json()
    assert state["keys"][0]["rejected"] >= 1
    assert state["keys"][0]["rate_limited"] >= 1
    assert state == client.get(str(client.base_url).removesuffix("/v1/") + "/admin/state").json()


@pytest.mark.parametrize(
    ("order", "status"),
    [
        ({"action": "explode"}, 422),
        ({"action": "break", "amount": 7}, 422),
        ({"action": "break", "often": True}, 422),
        ({"action": "break", "key": "key_hash_unknown"}, 404),
    ],
)
def test_orders_that_are_wrong(client: httpx.Client, order: dict[str, object], status: int) -> None:
    assert admin(client, **order).status_code == status


def test_health(client: httpx.Client) -> None:
    assert client.get(str(client.base_url).removesuffix("/v1/") + "/healthz").json() == {
        "status": "ok",
        "simulated": True,
    }


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}"):
            serve("127.0.0.1", port, stop=threading.Event())


def test_it_ends_although_somebody_is_waiting_for_an_answer() -> None:
    with ThreadPoolExecutor(1) as threads:
        with serving(speed=0.001) as url, httpx.Client(base_url=url, timeout=30) as client:
            asked = threads.submit(
                client.post, "/chat/completions", json={**BODY, "stream": True}, headers={"authorization": "Bearer sk"}
            )
            state = url.removesuffix("/v1") + "/admin/state"
            while not client.get(state).json()["requests"]:
                pass
        assert asked.exception(timeout=30) is not None
