"""The controls under `/_emulator/`: what a test or a person turns and reads.

They hand out private keys and tokens, so they answer on loopback only, to no web page: the server binds nothing
else, a request from another peer or with a foreign `Host` (a rebound DNS name) is refused, and so is any request
with an `Origin`, which only browsers send.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import wraps
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from broker.emulator.accounts import Account, fingerprint
from broker.emulator.backend import Backend, default_account
from broker.emulator.clients import ClientAuth
from broker.emulator.faults import FaultRule
from broker.emulator.refusal import Refusal
from broker.emulator.settings import MAX_SECONDS

_ACCOUNT_FIELDS = ("account_id", "chatgpt_user_id", "email", "plan_type", "fedramp")
# Every setting but where it listens, with the kinds of value it takes.
_CHANGEABLE: dict[str, tuple[type, ...]] = {
    "profile": (str,),
    "task_answer": (str,),
    "freshness_seconds": (int, float),
    "clock_offset_seconds": (int, float),
    "token_format": (str,),
    "access_token_seconds": (int, float),
    "refresh_token_seconds": (int, float),
    "rotate_refresh_tokens": (bool,),
    "reuse_grace_seconds": (int, float),
    "family_revocation": (bool,),
    "revocation_ends_access_tokens": (bool,),
    "refresh_error_style": (str,),
    "federation_rule_id": (str,),
    "subject_audience": (str,),
}
_Handler = Callable[[Request], Awaitable[Response]]


def controls(backend: Backend) -> Starlette:
    """Build the control application for one backend."""
    board = _Controls(backend)
    table: list[tuple[str, str, _Handler]] = [
        ("GET", "/settings", board.get_settings),
        ("POST", "/settings", board.change_settings),
        ("POST", "/identities", board.issue_identity),
        ("POST", "/tokens", board.mint_token),
        ("GET", "/exchanges", board.get_exchanges),
        ("GET", "/families", board.list_families),
        ("DELETE", "/families/{family}", board.end_family),
        ("GET", "/clients", board.list_clients),
        ("POST", "/clients", board.register_client),
        ("POST", "/subject-tokens", board.mint_subject_token),
        ("POST", "/jwks/rotate", board.rotate_jwks),
        ("GET", "/ledger", board.get_ledger),
        ("DELETE", "/ledger", board.clear_ledger),
        ("GET", "/agents", board.list_agents),
        ("DELETE", "/agents/{agent_runtime_id}", board.forget_agent),
        ("GET", "/tasks", board.list_tasks),
        ("GET", "/faults", board.list_faults),
        ("POST", "/faults", board.add_fault),
        ("DELETE", "/faults", board.remove_faults),
        ("DELETE", "/faults/{rule_id}", board.remove_faults),
    ]
    return Starlette(routes=[Route(path, _guarded(handler), methods=[method]) for method, path, handler in table])


class _Controls:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def get_settings(self, _request: Request) -> Response:
        settings = self._backend.settings
        return JSONResponse({name: getattr(settings, name) for name in _CHANGEABLE})

    async def change_settings(self, request: Request) -> Response:
        changes = await _body(request, allowed=tuple(_CHANGEABLE))
        for name, kinds in _CHANGEABLE.items():
            _expect(changes, name, *kinds)
        try:
            self._backend.change(**changes)
        except ValueError as error:
            raise Refusal(400, "setting_invalid", str(error)) from None
        return await self.get_settings(request)

    async def issue_identity(self, request: Request) -> Response:
        names = (*_ACCOUNT_FIELDS, "expires_in", "pkcs8", "registered", "claims", "header")
        body = await _body(request, allowed=names)
        options: dict[str, Any] = {}
        if "expires_in" in body:
            options["lifetime"] = _lifetime(body)
        if "pkcs8" in body:
            if body["pkcs8"] not in ("v1", "v2"):
                raise Refusal(400, "field_invalid", "pkcs8 must be v1 or v2")
            options["pkcs8"] = body["pkcs8"]
        for name, kind in (("registered", bool), ("claims", dict), ("header", dict)):
            _expect(body, name, kind)
            if name in body:
                options[name] = body[name]
        identity = self._backend.issue_identity(account=_account(body), **options)
        return JSONResponse(
            {
                "jwt": identity.jwt,
                "agent_private_key": identity.private_key,
                "agent_runtime_id": identity.agent_runtime_id,
                "public_key": identity.public_key,
                "expires_in": identity.expires_in,
                **identity.account.as_json(),
            },
            status_code=201,
        )

    async def mint_token(self, request: Request) -> Response:
        body = await _body(request, allowed=(*_ACCOUNT_FIELDS, "expires_in", "refresh_expires_in", "client_id"))
        options: dict[str, Any] = {}
        for option, name in (("lifetime", "expires_in"), ("refresh_lifetime", "refresh_expires_in")):
            if name in body:
                options[option] = _lifetime(body, name)
        _expect(body, "client_id", str)
        pair = self._backend.mint_token(account=_account(body), client_id=body.get("client_id"), **options)
        shown = {
            **pair.as_json(),
            "fingerprint": fingerprint(pair.access_token),
            "family": pair.family,
            "auth_json": pair.auth_json(),
            **pair.account.as_json(),
        }
        return JSONResponse(shown, status_code=201)

    async def get_exchanges(self, request: Request) -> Response:
        query = request.query_params
        shown = self._backend.exchanges.as_json(
            since=_since(request), grant=query.get("grant"), family=query.get("family")
        )
        return JSONResponse(shown)

    async def list_families(self, _request: Request) -> Response:
        families = [family.as_json() for family in self._backend.oauth.families]
        return JSONResponse({"count": len(families), "families": families})

    async def end_family(self, request: Request) -> Response:
        if not self._backend.oauth.families.end(request.path_params["family"]):
            raise Refusal(404, "family_unknown", "no living family has this name")
        return Response(status_code=204)

    async def list_clients(self, _request: Request) -> Response:
        clients = [client.as_json() for client in self._backend.oauth.clients.all()]
        return JSONResponse({"count": len(clients), "clients": clients})

    async def register_client(self, request: Request) -> Response:
        names = ("client_id", "client_secret", "auth", "scopes", "audiences")
        body = await _body(request, allowed=(*_ACCOUNT_FIELDS, *names))
        options: dict[str, Any] = {"account": _account(body, base=Account())}
        for name in ("client_id", "client_secret"):
            _expect(body, name, str)
            options[name] = body.get(name)
        if "auth" in body:
            if body["auth"] not in set(ClientAuth):
                raise Refusal(400, "field_invalid", f"auth must be one of {', '.join(ClientAuth)}")
            options["auth"] = ClientAuth(body["auth"])
        for name in ("scopes", "audiences"):
            if name in body:
                if not isinstance(body[name], list) or not all(isinstance(word, str) and word for word in body[name]):
                    raise Refusal(400, "field_invalid", f"{name} must be a list of words")
                options[name] = tuple(body[name])
        client = self._backend.oauth.clients.register(**options)
        return JSONResponse({**client.as_json(), "client_secret": client.client_secret}, status_code=201)

    async def mint_subject_token(self, request: Request) -> Response:
        body = await _body(request, allowed=(*_ACCOUNT_FIELDS, "expires_in", "audience", "subject", "trusted"))
        options: dict[str, Any] = {"lifetime": _lifetime(body)} if "expires_in" in body else {}
        for name, kind in (("audience", str), ("subject", str), ("trusted", bool)):
            _expect(body, name, kind)
            if name in body:
                options[name] = body[name]
        token = self._backend.mint_subject_token(account=_account(body), **options)
        settings = self._backend.settings
        shown = {
            "subject_token": token,
            "fingerprint": fingerprint(token),
            "federation_rule_id": settings.federation_rule_id,
            "audience": body.get("audience", settings.subject_audience),
        }
        return JSONResponse(shown, status_code=201)

    async def rotate_jwks(self, request: Request) -> Response:
        body = await _body(request, allowed=("keep_old",))
        _expect(body, "keep_old", bool)
        return JSONResponse({"kid": self._backend.issuer.rotate(keep_old=body.get("keep_old", True))})

    async def get_ledger(self, request: Request) -> Response:
        query = request.query_params
        shown = self._backend.ledger.as_json(
            since=_since(request), path=query.get("path"), kind=query.get("kind"), operation=query.get("operation")
        )
        return JSONResponse(shown)

    async def clear_ledger(self, _request: Request) -> Response:
        self._backend.ledger.clear()
        return Response(status_code=204)

    async def list_agents(self, _request: Request) -> Response:
        agents = self._backend.registry.agents_json()
        return JSONResponse({"count": len(agents), "agents": agents})

    async def forget_agent(self, request: Request) -> Response:
        if not self._backend.registry.forget_agent(request.path_params["agent_runtime_id"]):
            raise Refusal(404, "agent_unknown", "no agent of this id is registered")
        return Response(status_code=204)

    async def list_tasks(self, request: Request) -> Response:
        tasks = self._backend.registry.tasks(request.query_params.get("agent_runtime_id"))
        shown = [task.as_json() for task in tasks]
        return JSONResponse({"count": len(shown), "tasks": shown})

    async def list_faults(self, _request: Request) -> Response:
        return JSONResponse({"faults": [rule.as_json() for rule in self._backend.faults.rules()]})

    async def add_fault(self, request: Request) -> Response:
        rule = self._backend.faults.add(FaultRule.from_json(await _body(request)))
        return JSONResponse(rule.as_json(), status_code=201)

    async def remove_faults(self, request: Request) -> Response:
        rule_id = request.path_params.get("rule_id")
        removed = self._backend.faults.remove(rule_id)
        if rule_id is not None and not removed:
            raise Refusal(404, "fault_unknown", "there is no fault of this id")
        return JSONResponse({"removed": removed})


def _guarded(handler: _Handler) -> _Handler:
    @wraps(handler)
    async def guarded(request: Request) -> Response:
        try:
            _require_local(request)
            return await handler(request)
        except Refusal as refusal:
            error = {"error": {"code": refusal.code, "message": refusal.message}}
            return JSONResponse(error, status_code=refusal.status)

    return guarded


def _require_local(request: Request) -> None:
    peer = request.client.host if request.client is not None else ""
    if not _is_loopback(peer) or "origin" in request.headers:
        raise Refusal(403, "not_local", "the controls answer programs on this machine only")
    host = request.url.hostname or ""
    if host != "localhost" and not _is_loopback(host):
        raise Refusal(403, "not_local", "the controls answer under a loopback name only")


def _is_loopback(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_loopback
    except ValueError:
        return False


async def _body(request: Request, *, allowed: tuple[str, ...] | None = None) -> dict[str, Any]:
    """Read a control's JSON object; an empty body is an empty object."""
    raw = await request.body()
    try:
        body = json.loads(raw) if raw else {}
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise Refusal(400, "body_not_json", "the body must be a JSON object")
    unknown = body.keys() - set(allowed if allowed is not None else body)
    if unknown:
        raise Refusal(400, "field_unknown", f"unknown field {', '.join(sorted(unknown))}")
    return body


def _expect(body: dict[str, Any], name: str, *kinds: type) -> None:
    if name in body and (not isinstance(body[name], kinds) or (bool not in kinds and isinstance(body[name], bool))):
        raise Refusal(400, "field_invalid", f"{name} has the wrong type")


def _since(request: Request) -> int:
    since = request.query_params.get("since", "0")
    if not since.isdecimal():
        raise Refusal(400, "field_invalid", "since must be a sequence number")
    return int(since)


def _account(body: dict[str, Any], *, base: Account | None = None) -> Account:
    """The given account, else the default one, with what the body names replaced; null makes a field unknown."""
    values = (base or default_account()).as_json()
    for name in _ACCOUNT_FIELDS:
        kinds = (bool,) if name == "fedramp" else (str,) if name == "plan_type" else (str, type(None))
        _expect(body, name, *kinds)
        values[name] = body.get(name, values[name])
    return Account(**values)


def _lifetime(body: dict[str, Any], name: str = "expires_in") -> timedelta:
    _expect(body, name, int, float)
    if not abs(body[name]) <= MAX_SECONDS:
        raise Refusal(400, "field_invalid", f"{name} must be at most ten years")
    return timedelta(seconds=body[name])
