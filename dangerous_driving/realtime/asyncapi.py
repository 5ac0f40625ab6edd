"""The WebSocket as an AsyncAPI 3 document, made from the models that read and write its messages."""

from __future__ import annotations

import sys
from typing import Any

from pydantic.json_schema import models_json_schema

from dangerous_driving import __version__
from dangerous_driving.realtime.envelopes import (
    CLIENT_MESSAGES,
    MAX_CAMERAS,
    MAX_CLIENT_MESSAGE,
    SERVER_MESSAGES,
    ServerType,
)

_ABOUT = {
    ServerType.CONNECTION_ACK: "The first message: the bridge's clock, who the client is, what it missed",
    ServerType.CAMERA_STATUS: "A camera and how it is: all of them at first, then each change",
    ServerType.DETECTION_RESULT: "What was found in one frame; left out for a client that is slow",
    ServerType.RISK_ASSESSMENT: "The answer for one group, provisional or final; left out for a client that is slow",
    ServerType.ALERT: "An alert, whole, after each change; never left out. Recognised by alertId and version",
    ServerType.STREAM_STOPPED: "An operator stopped a camera",
    ServerType.ERROR: "A message of the client was not understood, or not carried out",
    ServerType.PONG: "The answer to a ping",
}
_CLIENT_ABOUT = {
    "ping": "Asks for a pong; answered in order, so that what was sent before it has been handled",
    "subscribe": "More cameras (from all: only these), or another minimum level",
    "unsubscribe": "Fewer cameras; without cameras, none at all",
    "acknowledge": "Somebody takes care of this alert (operator)",
    "reject": "This alert is a false alarm (operator)",
    "start_stream": "Watch this camera again (operator)",
    "stop_stream": "Stop watching this camera (operator)",
    "check_camera": "How this camera is, read anew; answered by camera_status (operator)",
}
_DESCRIPTION = f"""JSON text both ways: `{{"type": …, "data": …}}`, names in camelCase.

Connect to `/ws`. Resume with `?last=ALERTID:VERSION` (the last alert that was seen) or `?after=TIME`; alerts that changed
since are sent again, a few of them twice: tell by `alertId` and `version`. The token comes as `Authorization: Bearer`, as
the subprotocol `bearer.BASE64URL` beside `dangerous-driving.v1`, or as `?token=`.

A message of a client has at most {MAX_CLIENT_MESSAGE} bytes (else close code 1009) and names at most {MAX_CAMERAS} cameras.
The bridge closes with 4401 (no token, or one that is not accepted or has expired), 4408 (too slow: connect again and
resume), 1008 (too many messages, or too many that make no sense in a row), 1012 (it stops: connect again), and answers the
handshake with HTTP 403 (the page's origin), 429 or 503 with Retry-After (too many connections)."""


def asyncapi_document() -> dict[str, Any]:
    """The document; its schemas are those of the models themselves."""
    models = [(model, "serialization") for model in dict.fromkeys(SERVER_MESSAGES.values())]
    models += [(model, "validation") for model in dict.fromkeys(CLIENT_MESSAGES.values())]
    references, definitions = models_json_schema(
        models,  # type: ignore[arg-type]
        by_alias=True,
        ref_template="#/components/schemas/{model}",
    )
    messages: dict[str, Any] = {}
    for kind, model in SERVER_MESSAGES.items():
        messages[kind.value] = _message(kind.value, _ABOUT[kind], references[(model, "serialization")])
    for name, client_model in CLIENT_MESSAGES.items():
        messages[name] = _message(name, _CLIENT_ABOUT[name], references[(client_model, "validation")])

    def operation(action: str, names: list[str], summary: str) -> dict[str, Any]:
        return {
            "action": action,
            "channel": {"$ref": "#/channels/bridge"},
            "summary": summary,
            "messages": [{"$ref": f"#/channels/bridge/messages/{name}"} for name in names],
        }

    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "dangerous-driving realtime bridge",
            "version": __version__,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {
            "bridge": {
                "address": "/ws",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
            }
        },
        # as AsyncAPI 3 has it, from the side of this application: the bridge
        "operations": {
            "toClient": operation("send", [kind.value for kind in SERVER_MESSAGES], "What the bridge sends"),
            "fromClient": operation("receive", list(CLIENT_MESSAGES), "What a client may send"),
        },
        "components": {"messages": messages, "schemas": definitions.get("$defs", {})},
    }


def main() -> None:
    """Print it as YAML."""
    import yaml

    sys.stdout.write(yaml.safe_dump(asyncapi_document(), sort_keys=False, allow_unicode=True, width=120))


def _message(name: str, about: str, schema: dict[str, Any]) -> dict[str, Any]:
    required = ["type"] if name == "ping" or name.endswith("subscribe") else ["type", "data"]
    return {
        "name": name,
        "summary": about,
        "payload": {
            "type": "object",
            "properties": {"type": {"const": name}, "data": schema},
            "required": required,
        },
    }


if __name__ == "__main__":
    main()
