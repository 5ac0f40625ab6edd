"""Who may use which route: viewers look, operators act, admins read what others did."""

from __future__ import annotations

from typing import Annotated

import structlog
from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from dangerous_driving.realtime.access import Access, Caller, NotAuthorisedError, Role
from dangerous_driving.realtime.acts import Actor

log = structlog.get_logger(__name__)

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")

_bearer = HTTPBearer(auto_error=False, description="realtime.token, or a signed token (dangerous-driving token issue)")


class Guard:
    """Dependencies of routes. Each refuses whoever may not use the route, and notes the caller on the request."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def __call__(
        self, request: Request, _scheme: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)] = None
    ) -> Caller:
        """Viewers for what only reads, operators for everything else: the rule for a route that names none."""
        return self._require(request, Role.VIEWER if request.method in SAFE_METHODS else Role.OPERATOR)

    def admin(self, request: Request) -> Caller:
        """Admins only."""
        return self._require(request, Role.ADMIN)

    def _require(self, request: Request, needed: Role) -> Caller:
        try:
            caller = self._access.identify(
                authorization=request.headers.get("authorization"), query=request.query_params.get("token")
            )
        except NotAuthorisedError as error:
            raise HTTPException(401, str(error), headers={"WWW-Authenticate": "Bearer"}) from error
        if not caller.role.covers(needed):
            log.warning("act_refused", actor=caller.name, role=caller.role.value, path=request.url.path)
            raise HTTPException(403, f"the role {needed} is needed; this token has {caller.role}")
        request.state.caller = caller
        return caller


def caller_of(request: Request) -> Caller:
    """Who makes this request, after a guard let it pass."""
    caller: Caller = request.state.caller
    return caller


def address_of(request: Request) -> str:
    """Where the request came from."""
    return request.client.host if request.client else ""


def actor_of(request: Request, said: str = "operator") -> Actor:
    """Who acts by this request; ``said`` is the name that its body gives."""
    return Actor(caller_of(request), address_of(request), said)
