"""The bridge as an ASGI application: WebSocket, REST, the page, and what a supervisor asks for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import JSONResponse
from sqlalchemy import Engine
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from dangerous_driving import __version__
from dangerous_driving.errors import DangerousDrivingError, LedgerError, ObjectNotFoundError, ObjectStoreError
from dangerous_driving.ledger import overview
from dangerous_driving.objects import ObjectStore
from dangerous_driving.observability.metrics import exposition
from dangerous_driving.realtime.access import Access
from dangerous_driving.realtime.acts import Acts
from dangerous_driving.realtime.asyncapi import asyncapi_document
from dangerous_driving.realtime.envelopes import ConnectionAck
from dangerous_driving.realtime.feedback import FeedbackDesk
from dangerous_driving.realtime.guard import Guard
from dangerous_driving.realtime.hardening import Hardening
from dangerous_driving.realtime.history_rest import HistoryRest
from dangerous_driving.realtime.hub import Hub
from dangerous_driving.realtime.operations_rest import OperationsRest
from dangerous_driving.realtime.pictures import Pictures
from dangerous_driving.realtime.quiet_rest import QuietRest
from dangerous_driving.realtime.rates import Rates
from dangerous_driving.realtime.rest import Rest
from dangerous_driving.realtime.socket import SocketEndpoint
from dangerous_driving.settings import Settings

PAGE = Path(__file__).parent / "page"

#: s; the database must answer a readiness check in this time
READY_SECONDS = 3.0


def create_app(
    settings: Settings,
    engine: Engine,
    store: ObjectStore,
    hub: Hub,
    desk: FeedbackDesk,
    *,
    reader_healthy: Callable[[], bool] = lambda: True,
    lag: Callable[[], dict[str, int] | None] = lambda: None,
) -> ASGIApp:
    """Put the bridge together. `hub` is fed by whoever runs it; `reader_healthy` says whether it is.

    Raises:
        ConfigError: neither a token nor open access is set.
    """
    access = Access.of(settings.realtime)
    app = FastAPI(
        title="dangerous-driving realtime bridge",
        version=__version__,
        openapi_url="/api/openapi.json",
        # their pages load scripts from elsewhere
        docs_url=None,
        redoc_url=None,
    )

    guard = Guard(access)
    acts = Acts(engine, hub, desk)

    def greeting() -> ConnectionAck:
        return ConnectionAck(
            server_time=datetime.now(UTC),
            simulated_llm=settings.llm.simulated,
            demo=settings.realtime.demo_banner,
        )

    app.include_router(Rest(settings, engine, hub, acts, Pictures(engine, store, hub), lag).router(guard))
    app.include_router(HistoryRest(engine).router(guard))
    app.include_router(OperationsRest(engine, acts).router(guard))
    app.include_router(QuietRest(settings, engine, acts).router(guard))
    socket = SocketEndpoint(settings.realtime, hub, engine, acts, access, greeting)

    @app.websocket("/ws")
    async def ws(websocket: WebSocket) -> None:
        await socket.serve(websocket)

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> dict[str, str]:
        return {"service": "realtime", "status": "ok"}

    @app.get("/readyz", include_in_schema=False)
    async def readyz(response: Response) -> dict[str, str | None]:
        reason = await _not_ready(engine, reader_healthy)
        response.status_code = 503 if reason else 200
        return {"service": "realtime", "status": "not ready" if reason else "ready", "reason": reason}

    @app.get("/metrics", include_in_schema=False)
    async def metrics(request: Request) -> Response:
        body, content_type = exposition(request.headers.get("Accept"))
        return Response(body, headers={"Content-Type": content_type})

    @app.get("/api/asyncapi.json", include_in_schema=False)
    async def asyncapi() -> JSONResponse:
        return JSONResponse(asyncapi_document())

    @app.exception_handler(DangerousDrivingError)
    async def failed(_request: Request, error: Exception) -> JSONResponse:
        return _answer_of(error)

    app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
    requests = Rates(settings.realtime.request_rate, settings.realtime.request_burst, time.monotonic)
    return Hardening(app, access, requests)


async def _not_ready(engine: Engine, reader_healthy: Callable[[], bool]) -> str | None:
    if not reader_healthy():
        return "the topics are not read"
    try:
        async with asyncio.timeout(READY_SECONDS):
            await asyncio.to_thread(overview.ping, engine)
    except (LedgerError, TimeoutError):
        return "the database does not answer"
    return None


def _answer_of(error: Exception) -> JSONResponse:
    # the errors' texts name settings and addresses: they are for the operator's log, not for a page
    if isinstance(error, ObjectNotFoundError):
        return JSONResponse({"detail": "there is no such picture"}, 404)
    part = "object store" if isinstance(error, ObjectStoreError) else "database"
    return JSONResponse({"detail": f"the {part} does not answer: try again"}, 503, {"Retry-After": "2"})
