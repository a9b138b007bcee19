"""The outbound HTTP client against the emulator in every profile, and against servers that misbehave."""

import asyncio
import gzip
import json
import ssl
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import IPv4Address
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from broker.assertion import InvalidBackendIdError, registration_signature
from broker.backend_api import BackendApi, BackendEndpoints, TaskAnswer
from broker.emulator import Account, Action, EmulatorServer, EmulatorSettings, FaultRule, Operation
from broker.emulator import TaskAnswer as AnsweredField
from broker.errors import (
    BackendDownError,
    BackendProtocolError,
    BackendThrottledError,
    BackendUnsupportedError,
    BearerUnavailableError,
    ClockSkewError,
    IdentityRejectedError,
)
from broker.identity_jwt import JwkSet, verify
from broker.keys import SigningKey
from broker.model import Secret, TaskKind, ThreadId
from broker.origins import Origin, parse_origin
from broker.outbound import (
    ExchangeRecord,
    FailureKind,
    GuardedHttp,
    HttpLimits,
    OriginNotAllowedError,
    OutboundFailure,
    OutboundRequest,
    Retried,
)
from broker.profiles import PRESETS, resolve_urls
from broker.sealed_box import open_task_id
from tests.support.http_faults import Behaviour, FaultServer, RecordingClock, drip, raw, respond

CANARY = "canary-0123456789abcdefghijklmnopqrstuvwxyz"
KEY = SigningKey.from_seed(bytes(range(32)))
OK = b'{"agent_runtime_id":"agent-1"}'


def loopback(url: str) -> Origin:
    """Return the origin of a server of these tests."""
    return parse_origin(url, allow_loopback_http=True)


def endpoints(root: str, profile: str, **changes: float) -> BackendEndpoints:
    """Return where a loopback backend of that profile is, laid out like the public one."""
    preset = PRESETS[profile]
    urls = resolve_urls(
        preset,
        base_url=f"{root}/backend-api",
        authapi_base_url=f"{root}/api/accounts",
        allow_loopback_http=True,
    )
    return BackendEndpoints(
        profile=preset, urls=urls, allowed_origins=frozenset({loopback(root)}), allow_loopback_http=True, **changes
    )


def soon(clock: RecordingClock, seconds: float = 30.0) -> float:
    """Return a deadline."""
    return clock.monotonic() + seconds


@pytest.fixture
def clock() -> RecordingClock:
    """Return a clock whose waits take no time."""
    return RecordingClock()


Open = Callable[..., GuardedHttp]


@pytest.fixture
async def open_http(clock: RecordingClock) -> AsyncIterator[Open]:
    """Return a maker of clients for one server, closed at the end."""
    opened: list[GuardedHttp] = []

    def make(server: FaultServer, **options: object) -> GuardedHttp:
        http = GuardedHttp(
            {loopback(server.url)},
            clock,
            allow_loopback_http=True,
            jitter=lambda: 0.0,
            **options,  # type: ignore[arg-type]
        )
        opened.append(http)
        return http

    yield make
    for http in opened:
        await http.aclose()


def post(url: str, *, timeout: float = 5.0, **changes: object) -> OutboundRequest:
    """Return a POST with a credential in it."""
    values: dict[str, object] = {
        "operation": "test",
        "method": "POST",
        "url": url,
        "timeout": timeout,
        "headers": {"authorization": Secret(f"Bearer {CANARY}")},
        "body": b"{}",
    }
    return OutboundRequest(**(values | changes))  # type: ignore[arg-type]


async def fails(work: Awaitable[object]) -> OutboundFailure:
    """Return the failure that something ends in, after a look for the credential in all it could show."""
    with pytest.raises(OutboundFailure) as caught:
        await work
    failure = caught.value
    assert failure.__cause__ is None
    # Of what is chained nothing may be httpx's, which quotes requests.
    assert not type(failure.__context__).__module__.startswith("http")
    assert CANARY not in f"{failure!r} {failure} {failure.note} {failure.preview} {failure.__context__!r}"
    return failure


# The profiles, against the emulator.


@pytest.fixture
async def emulator(request: pytest.FixtureRequest) -> AsyncIterator[EmulatorServer]:
    """Run an emulator in the profile that the test asks for."""
    profile = getattr(request, "param", "codex-2026-08")
    async with EmulatorServer(EmulatorSettings(port=0, profile=profile)) as server:
        yield server


async def register_task(api: BackendApi, runtime: str, clock: RecordingClock, **changes: object) -> TaskAnswer:
    """Register a task with this file's key."""
    values: dict[str, object] = {
        "agent_runtime_id": runtime,
        "sign": lambda time: registration_signature(KEY, runtime, time),
        "external_task_ref": None,
        "bearer": None,
        "deadline": soon(clock),
    }
    return await api.register_task(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("emulator", ["codex-2026-04", "codex-2026-05", "codex-2026-08"], indirect=True)
async def test_each_profile_registers_an_agent_and_a_task(emulator: EmulatorServer, clock: RecordingClock) -> None:
    """In each profile that registers agents, the backend verifies agent and task, and the sealed id opens."""
    profile = PRESETS[emulator.backend.profile.name]
    bearer = Secret(emulator.backend.mint_token().access_token)
    api = BackendApi(endpoints(emulator.url, profile.name), clock)
    try:
        runtime = await api.register_agent(
            public_key=KEY.ssh_public_key, bearer=bearer, fedramp=False, deadline=soon(clock)
        )
        reference = profile.external_task_ref(TaskKind.THREAD, ThreadId("thread-1"))
        answer = await register_task(api, runtime, clock, external_task_ref=reference, bearer=bearer)
    finally:
        await api.aclose()

    entries = [
        entry for entry in emulator.backend.ledger.entries() if entry.operation in {"agent_register", "task_register"}
    ]
    assert [entry.verdict for entry in entries] == ["verified", "verified"]
    assert [runtime, runtime] == [entry.agent_runtime_id for entry in entries]
    assert reference == entries[1].external_task_ref
    assert not answer.answer_lost
    assert open_task_id(KEY, answer.value) == entries[1].task_id


async def test_the_provider_profile_registers_tasks_of_issued_identities_only(clock: RecordingClock) -> None:
    """Generation B verifies a task of an identity that came by JWT, and no agent registration is ever sent."""
    async with EmulatorServer(EmulatorSettings(port=0, profile="codex-2026-04-provider")) as emulator:
        api = BackendApi(endpoints(emulator.url, "codex-2026-04-provider"), clock)
        try:
            identity = emulator.backend.issue_identity()
            key = SigningKey.from_pkcs8_base64(identity.private_key)
            answer = await register_task(
                api,
                identity.agent_runtime_id,
                clock,
                sign=lambda time: registration_signature(key, identity.agent_runtime_id, time),
            )
            with pytest.raises(BackendUnsupportedError):
                await api.register_agent(
                    public_key=KEY.ssh_public_key, bearer=Secret("x"), fedramp=False, deadline=soon(clock)
                )
        finally:
            await api.aclose()
        operations = [entry.operation for entry in emulator.backend.ledger.entries()]
    assert operations == ["task_register"]
    assert answer.sealed


@pytest.mark.parametrize("answered", list(AnsweredField))
async def test_all_four_answer_fields_are_read(answered: AnsweredField, clock: RecordingClock) -> None:
    """Each of the four fields of a task registration's answer yields the id the backend registered."""
    async with EmulatorServer(EmulatorSettings(port=0, task_answer=answered)) as emulator:
        api = BackendApi(endpoints(emulator.url, "codex-2026-08"), clock)
        try:
            bearer = Secret(emulator.backend.mint_token().access_token)
            runtime = await api.register_agent(
                public_key=KEY.ssh_public_key, bearer=bearer, fedramp=False, deadline=soon(clock)
            )
            answer = await register_task(api, runtime, clock)
        finally:
            await api.aclose()
        (task,) = emulator.backend.registry.tasks(runtime)
    assert answer.sealed == answered.sealed
    assert task.task_id == (open_task_id(KEY, answer.value) if answer.sealed else answer.value)


async def test_the_backends_keys_verify_the_identity_it_issued(emulator: EmulatorServer, clock: RecordingClock) -> None:
    """An identity JWT of the emulator verifies with the key document fetched from it."""
    api = BackendApi(endpoints(emulator.url, "codex-2026-08"), clock)
    identity = emulator.backend.issue_identity(
        account=Account(account_id="acc-1", chatgpt_user_id="user-1", fedramp=True)
    )
    try:
        keys = JwkSet.from_document(await api.fetch_jwks(soon(clock)))
    finally:
        await api.aclose()
    claims = verify(identity.jwt, keys, clock.now())
    assert (identity.agent_runtime_id, "acc-1", "user-1", True) == (
        claims.agent_runtime_id,
        claims.account_id,
        claims.chatgpt_user_id,
        claims.fedramp,
    )


async def test_a_clock_that_is_off_is_learned_from_the_refusal_and_corrected(
    emulator: EmulatorServer, clock: RecordingClock
) -> None:
    """A registration signed 290 s and more off is refused once; what the refusal's Date taught makes the next pass."""
    emulator.backend.change(freshness_seconds=5)
    clock.wall_offset = -250
    api = BackendApi(endpoints(emulator.url, "codex-2026-08"), clock)
    try:
        identity = emulator.backend.issue_identity()
        key = SigningKey.from_pkcs8_base64(identity.private_key)

        def sign(time: str) -> str:
            return registration_signature(key, identity.agent_runtime_id, time)

        refusal = await fails(register_task(api, identity.agent_runtime_id, clock, sign=sign))
        answer = await register_task(api, identity.agent_runtime_id, clock, sign=sign)
    finally:
        await api.aclose()
    assert refusal.kind is FailureKind.REFUSED
    assert answer.sealed
    assert abs(api.clock_offset - 250) < 3


@pytest.mark.parametrize(("headers", "expected"), [((), 1000), ((("age", "5"),), 0)])
async def test_a_date_from_a_cache_is_not_learned(
    headers: tuple[tuple[str, str], ...], expected: float, clock: RecordingClock
) -> None:
    """The date of an answer counts, on a refusal too, unless a cache says that it kept the answer for a while."""
    date = format_datetime(datetime.fromtimestamp(clock.now() + 1000, UTC), usegmt=True)
    async with FaultServer(respond(404, headers=(("date", date), *headers))) as server:
        api = BackendApi(endpoints(server.url, "codex-2026-08"), clock)
        await fails(api.fetch_jwks(soon(clock)))
        await api.aclose()
    assert abs(api.clock_offset - expected) < 5


async def test_nothing_is_signed_when_the_clocks_are_too_far_apart(
    emulator: EmulatorServer, clock: RecordingClock
) -> None:
    """Once the offset is known to be over the limit, registering a task fails before anything is sent."""
    clock.wall_offset = 400
    api = BackendApi(endpoints(emulator.url, "codex-2026-08"), clock)
    try:
        await api.fetch_jwks(soon(clock))
        with pytest.raises(ClockSkewError):
            await register_task(api, "agent-1", clock)
    finally:
        await api.aclose()
    assert [entry.operation for entry in emulator.backend.ledger.entries()] == ["jwks"]


@pytest.mark.parametrize(
    ("seconds", "offset", "requests"),
    [(0, 0, 0), (59, 0, 0), (61, 0, 1), (61, 200, 3), (61, 2000, 3)],
    ids=["just heard", "young", "old", "old and changed", "old and changed too far"],
)
async def test_a_clock_is_measured_when_it_was_not_heard_and_until_it_is_sure(
    emulator: EmulatorServer, clock: RecordingClock, seconds: float, offset: float, requests: int
) -> None:
    """Young dates cost nothing, an old one a request, and a date that contradicts the others as many as outvote them."""
    api = BackendApi(endpoints(emulator.url, "codex-2026-08"), clock)
    try:
        for _ in range(4):
            await api.fetch_jwks(soon(clock))
        emulator.backend.ledger.clear()
        clock.slept.append(seconds)
        clock.wall_offset = seconds
        emulator.backend.change(clock_offset_seconds=seconds + offset)
        await api.measure_clock(max_age=60.0, deadline=soon(clock))
    finally:
        await api.aclose()
    assert len(list(emulator.backend.ledger.entries(operation="jwks"))) == requests
    assert abs(api.clock_offset - offset) < 3


async def test_a_clock_that_cannot_be_measured_stays_as_it_was(clock: RecordingClock) -> None:
    """An answer of any status will do; without a date, or without an answer, it is asked for once and left at that."""
    dated = respond(404, headers=(("date", format_datetime(datetime.now(UTC), usegmt=True)),))
    for answer in (respond(), dated, raw(b"")):
        async with FaultServer(answer) as server:
            api = BackendApi(endpoints(server.url, "codex-2026-08"), clock)
            await api.measure_clock(max_age=60.0, deadline=soon(clock))
            await api.aclose()
            assert len(server.requests) == 1
            assert api.clock_offset == 0.0


async def test_a_biscuit_is_fetched_for_each_registration_and_each_try(clock: RecordingClock) -> None:
    """Generation A fetches one biscuit a registration, a fresh one for a repeated try, and sends no bearer with it."""
    async with EmulatorServer(EmulatorSettings(port=0, profile="codex-2026-04")) as emulator:
        emulator.backend.faults.add(FaultRule(action=Action.STATUS, operation=Operation.AGENT_REGISTER, status=503))
        api = BackendApi(endpoints(emulator.url, "codex-2026-04"), clock)
        try:
            await api.register_agent(
                public_key=KEY.ssh_public_key,
                bearer=Secret(emulator.backend.mint_token().access_token),
                fedramp=True,
                deadline=soon(clock),
            )
        finally:
            await api.aclose()
        entries = list(emulator.backend.ledger.entries())
    assert [entry.operation for entry in entries] == ["biscuit", "agent_register", "biscuit", "agent_register"]
    assert len({entry.credential_fingerprint for entry in entries if entry.operation == "agent_register"}) == 2
    for entry in entries:
        if entry.operation == "agent_register":
            assert {"authorization", "x-openai-fedramp"}.isdisjoint(entry.header_names)


async def test_a_biscuit_profile_needs_a_bearer_for_its_tasks(clock: RecordingClock) -> None:
    """Without a bearer a generation A task is not registered, and nothing is sent."""
    async with FaultServer() as server:
        api = BackendApi(endpoints(server.url, "codex-2026-04"), clock)
        with pytest.raises(BearerUnavailableError):
            await register_task(api, "agent-1", clock)
        await api.aclose()
        assert server.requests == []


@pytest.mark.parametrize("headers", [(), (("x-openai-authorization", ""),), (("x-openai-authorization", "a\tb"),)])
async def test_an_answer_without_a_usable_biscuit_breaks_the_protocol(
    headers: tuple[tuple[str, str], ...], clock: RecordingClock
) -> None:
    """A biscuit that is missing, empty or unfit for a header is never sent on."""
    async with FaultServer(respond(200, b"anything", content_type="text/plain", headers=headers)) as server:
        api = BackendApi(endpoints(server.url, "codex-2026-04"), clock)
        failure = await fails(register_task(api, "agent-1", clock, bearer=Secret("b")))
        await api.aclose()
    assert (failure.kind, failure.answer_lost) == (FailureKind.PROTOCOL, False)
    assert len(server.requests) == 1


async def test_the_registration_of_an_agent_is_exactly_what_upstream_sends(clock: RecordingClock) -> None:
    """The default profile's request has upstream's fields, `ttl` as null, the bearer and the FedRAMP header."""
    async with FaultServer(respond(body=OK)) as server:
        api = BackendApi(endpoints(server.url, "codex-2026-08"), clock)
        runtime = await api.register_agent(
            public_key="ssh-ed25519 AAAA", bearer=Secret("tok"), fedramp=True, deadline=soon(clock)
        )
        await api.aclose()
    (request,) = server.requests
    body = json.loads(request.body)
    assert runtime == "agent-1"
    assert (request.method, request.target) == ("POST", "/api/accounts/v1/agent/register")
    assert {"agent_version", "agent_harness_id", "running_location"} == set(body.pop("abom"))
    assert body == {"agent_public_key": "ssh-ed25519 AAAA", "capabilities": ["responsesapi"], "ttl": None}
    assert (request.headers["authorization"], request.headers["x-openai-fedramp"]) == ("Bearer tok", "true")
    assert "cookie" not in request.headers


@pytest.mark.parametrize("runtime", ["a/b", "..", "a:b", "", "x" * 129, "a b", "é"])
async def test_an_agent_id_that_could_leave_its_place_is_never_put_into_a_path(
    runtime: str, clock: RecordingClock
) -> None:
    """An id with other characters than a backend's ids have is refused before anything is sent."""
    async with FaultServer() as server:
        api = BackendApi(endpoints(server.url, "codex-2026-08"), clock)
        with pytest.raises(InvalidBackendIdError):
            await register_task(api, runtime, clock, sign=lambda _: "signature")
        await api.aclose()
        assert server.requests == []


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"agent_runtime_id":null}',
        b'{"agent_runtime_id":7}',
        b'{"agent_runtime_id":["a"]}',
        b'{"agent_runtime_id":""}',
        b'{"agent_runtime_id":"a:b"}',
        b'{"agent_runtime_id":"a\\r\\nb"}',
        b'{"agent_runtime_id":".."}',
        b'{"agent_runtime_id":"' + b"a" * 129 + b'"}',
        b'{"agentRuntimeId":"a"}',
    ],
)
async def test_an_agent_id_that_cannot_be_used_breaks_the_protocol(body: bytes, clock: RecordingClock) -> None:
    """An answer without a clean `agent_runtime_id` is a protocol failure, is not tried again, and may have left one."""
    async with FaultServer(respond(body=body)) as server:
        api = BackendApi(endpoints(server.url, "codex-2026-08"), clock)
        failure = await fails(
            api.register_agent(public_key="k", bearer=Secret("t"), fedramp=False, deadline=soon(clock))
        )
        await api.aclose()
    assert (failure.kind, failure.answer_lost, failure.attempts) == (FailureKind.PROTOCOL, True, 1)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"taskId":"t2","task_id":"t1","encrypted_task_id":"s"}', ("t1", False)),
        (b'{"encryptedTaskId":"s2","taskId":"t2"}', ("t2", False)),
        (b'{"task_id":null,"encrypted_task_id":"s1","encryptedTaskId":"s2"}', ("s1", True)),
        (b'{"encryptedTaskId":"s2"}', ("s2", True)),
    ],
)
async def test_a_plain_task_id_wins_over_a_sealed_one(
    body: bytes, expected: tuple[str, bool], clock: RecordingClock
) -> None:
    """Of several answer fields the first of the profile's order is taken."""
    async with FaultServer(respond(body=body)) as server:
        api = BackendApi(endpoints(server.url, "codex-2026-08"), clock)
        answer = await register_task(api, "agent-1", clock)
        await api.aclose()
    assert expected == (answer.value, answer.sealed)
    assert answer.value not in repr(answer)


@pytest.mark.parametrize(
    ("profile", "body"),
    [
        ("codex-2026-08", b"{}"),
        ("codex-2026-08", b'{"task_id":"a b"}'),
        ("codex-2026-08", b'{"task_id":7}'),
        ("codex-2026-08", b'{"encrypted_task_id":""}'),
        ("codex-2026-08", b'{"encrypted_task_id":' + b'"' + b"A" * 4097 + b'"}'),
        ("codex-2026-08", b'{"taskID":"t"}'),
        ("codex-2026-04-provider", b"[]"),
    ],
)
async def test_a_task_id_that_cannot_be_used_breaks_the_protocol(
    profile: str, body: bytes, clock: RecordingClock
) -> None:
    """An answer without a usable task id is a protocol failure that may have left an orphan."""
    async with FaultServer(respond(body=body)) as server:
        api = BackendApi(endpoints(server.url, profile), clock)
        failure = await fails(register_task(api, "agent-1", clock))
        await api.aclose()
    assert (failure.kind, failure.answer_lost) == (FailureKind.PROTOCOL, True)


async def test_each_try_is_signed_anew_and_a_lost_answer_is_remembered(clock: RecordingClock) -> None:
    """A task registered on the second try says that the first, whose answer was cut, may have left an orphan."""
    signed: list[str] = []

    def sign(time: str) -> str:
        signed.append(time)
        return f"signature-{len(signed)}"

    async with FaultServer(raw(b"HTTP/1.1 200 OK\r\ncontent-le"), respond(body=b'{"task_id":"t"}')) as server:
        api = BackendApi(endpoints(server.url, "codex-2026-08"), clock)
        answer = await register_task(api, "agent-1", clock, sign=sign)
        await api.aclose()
    assert TaskAnswer("t", sealed=False, answer_lost=True) == answer
    assert [json.loads(request.body)["signature"] for request in server.requests] == ["signature-1", "signature-2"]


# Failures: what each answer of a stranger is taken for.

JSON = "content-type: application/json\r\n"


def http(head: str, body: bytes = b"", *, length: int | None = None) -> bytes:
    """Return the bytes of a 200 answer."""
    size = len(body) if length is None else length
    return f"HTTP/1.1 200 OK\r\n{head}content-length: {size}\r\n\r\n".encode("latin-1") + body


BOMB = gzip.compress(b'{"a":"' + b"a" * 10_000_000 + b'"}')

FAULTS: dict[str, tuple[Behaviour, FailureKind, bool]] = {
    # name: what is answered, what that is, whether the request may have been processed
    "closes without a word": (raw(b""), FailureKind.DOWN, True),
    "cut in the status line": (raw(b"HTTP/1.1 20"), FailureKind.DOWN, True),
    "cut in the headers": (raw(b"HTTP/1.1 200 OK\r\ncontent-"), FailureKind.DOWN, True),
    "cut before the body": (raw(http(JSON, b"", length=10)), FailureKind.DOWN, True),
    "cut in the body": (raw(http(JSON, b'{"a"', length=10)), FailureKind.DOWN, True),
    "cut in a chunk": (
        raw(f"HTTP/1.1 200 OK\r\n{JSON}transfer-encoding: chunked\r\n\r\n5\r\n{{".encode()),
        FailureKind.DOWN,
        True,
    ),
    "silent": (raw(b"", close=False), FailureKind.DOWN, True),
    "silent after the head": (raw(http(JSON, b"", length=10), close=False), FailureKind.DOWN, True),
    "drips for ever": (drip(http(JSON, b"", length=65_000), b" "), FailureKind.DOWN, True),
    "500": (respond(500), FailureKind.DOWN, True),
    "502": (respond(502), FailureKind.DOWN, True),
    "503": (respond(503), FailureKind.DOWN, False),
    "504": (respond(504), FailureKind.DOWN, True),
    "599": (respond(599), FailureKind.DOWN, True),
    "429": (respond(429), FailureKind.THROTTLED, False),
    "400": (respond(400), FailureKind.REFUSED, False),
    "401": (respond(401), FailureKind.REFUSED, False),
    "403": (respond(403), FailureKind.REFUSED, False),
    "404": (respond(404), FailureKind.REFUSED, False),
    "408": (respond(408), FailureKind.REFUSED, False),
    "401 whose body never comes": (
        raw(b"HTTP/1.1 401 No\r\ncontent-length: 9\r\n\r\n", close=False),
        FailureKind.REFUSED,
        False,
    ),
    "401 cut": (raw(b"HTTP/1.1 401 No\r\ncontent-length: 9\r\n\r\nab"), FailureKind.REFUSED, False),
    "401 without end": (
        drip(b"HTTP/1.1 401 No\r\ncontent-length: 99999999\r\n\r\n", b"x" * 4096),
        FailureKind.REFUSED,
        False,
    ),
    "304": (respond(304, b""), FailureKind.PROTOCOL, False),
    **{
        f"{status} to {name}": (respond(status, headers=(("location", target),)), FailureKind.PROTOCOL, False)
        for status in (301, 302, 303, 307, 308)
        for name, target in (("itself", "/other"), ("another host", "https://evil.example/"), ("nowhere", ""))
    },
    "a status without meaning": (respond(799), FailureKind.PROTOCOL, True),
    "500 compressed": (respond(500, BOMB, headers=(("content-encoding", "gzip"),)), FailureKind.DOWN, True),
    "garbage": (raw(b"\x00\x01\x02 not HTTP\r\n\r\n"), FailureKind.PROTOCOL, True),
    "an FTP greeting": (raw(b"220 ready\r\n\r\n"), FailureKind.PROTOCOL, True),
    "HTTP/0.9": (raw(b"<html></html>\r\n\r\n"), FailureKind.PROTOCOL, True),
    "a head without end": (raw(b"HTTP/1.1 200 OK\r\nx: " + b"a" * 200_000 + b"\r\n\r\n"), FailureKind.PROTOCOL, True),
    "9 KiB of headers": (respond(headers=(("x", "a" * 9000),)), FailureKind.PROTOCOL, True),
    "two lengths": (raw(http(f"{JSON}content-length: 5\r\n", b"{}")), FailureKind.PROTOCOL, True),
    "a length below zero": (raw(http(JSON, b"{}", length=-1)), FailureKind.PROTOCOL, True),
    "204": (raw(b"HTTP/1.1 204 No Content\r\n\r\n"), FailureKind.PROTOCOL, True),
    "no body": (respond(body=b""), FailureKind.PROTOCOL, True),
    "64 KiB and one": (respond(body=b'{"a":"' + b"a" * 65_529 + b'"}'), FailureKind.PROTOCOL, True),
    "1 GiB announced": (drip(http(JSON, b"", length=2**30), b" " * 65_536), FailureKind.PROTOCOL, True),
    "chunks without end": (
        drip(
            f"HTTP/1.1 200 OK\r\n{JSON}transfer-encoding: chunked\r\n\r\n".encode(), b"1000\r\n" + b" " * 4096 + b"\r\n"
        ),
        FailureKind.PROTOCOL,
        True,
    ),
    "gzip bomb": (respond(body=BOMB, headers=(("content-encoding", "gzip"),)), FailureKind.PROTOCOL, True),
    "unknown encoding": (respond(headers=(("content-encoding", "br"),)), FailureKind.PROTOCOL, True),
    "no content type": (respond(content_type=None), FailureKind.PROTOCOL, True),
    "HTML with 200": (respond(body=b"<html>", content_type="text/html"), FailureKind.PROTOCOL, True),
    "JSON called text": (respond(content_type="text/plain"), FailureKind.PROTOCOL, True),
    "JSON in latin-1": (respond(content_type="application/json; charset=latin-1"), FailureKind.PROTOCOL, True),
    "HTML called JSON": (respond(body=b"<html>"), FailureKind.PROTOCOL, True),
    "half an object": (respond(body=b'{"a":'), FailureKind.PROTOCOL, True),
    "two objects": (respond(body=b"{}{}"), FailureKind.PROTOCOL, True),
    "a list": (respond(body=b"[]"), FailureKind.PROTOCOL, True),
    "a number": (respond(body=b"7"), FailureKind.PROTOCOL, True),
    "null": (respond(body=b"null"), FailureKind.PROTOCOL, True),
    "NaN": (respond(body=b'{"a":NaN}'), FailureKind.PROTOCOL, True),
    "Infinity": (respond(body=b'{"a":-Infinity}'), FailureKind.PROTOCOL, True),
    "1e999": (respond(body=b'{"a":1e999}'), FailureKind.PROTOCOL, True),
    "5,000 digits": (respond(body=b'{"a":' + b"1" * 5000 + b"}"), FailureKind.PROTOCOL, True),
    "a name twice": (respond(body=b'{"a":1,"a":1}'), FailureKind.PROTOCOL, True),
    "a name twice further in": (respond(body=b'{"b":[{"a":1,"\\u0061":1}]}'), FailureKind.PROTOCOL, True),
    "17 levels": (respond(body=b'{"a":' * 17 + b"1" + b"}" * 17), FailureKind.PROTOCOL, True),
    "30,000 levels": (respond(body=b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}"), FailureKind.PROTOCOL, True),
    "not UTF-8": (respond(body=b'{"a":"\xff"}'), FailureKind.PROTOCOL, True),
    "a byte order mark": (respond(body=b"\xef\xbb\xbf{}"), FailureKind.PROTOCOL, True),
    "half a surrogate pair": (respond(body=b'{"a":"\\ud800"}'), FailureKind.PROTOCOL, True),
    "a raw control character": (respond(body=b'{"a":"\x01"}'), FailureKind.PROTOCOL, True),
}


ENDLESS = {"silent", "silent after the head", "drips for ever", "401 whose body never comes"}


@pytest.mark.parametrize("name", FAULTS)
async def test_what_a_fault_is_taken_for(name: str, open_http: Open, clock: RecordingClock) -> None:
    """Each misbehaviour ends in its kind of failure within the time limit and says whether it may have been processed."""
    behaviour, kind, answer_lost = FAULTS[name]
    timeout = 0.4 if name in ENDLESS else 10.0
    async with FaultServer(behaviour) as server:
        failure = await fails(open_http(server).exchange(post(server.url, timeout=timeout), deadline=soon(clock)))
    assert (kind, answer_lost) == (failure.kind, failure.answer_lost)
    assert len(server.requests) == 1


@pytest.mark.parametrize("name", ["1 GiB announced", "chunks without end", "gzip bomb", "401 without end"])
async def test_a_flood_is_not_kept_in_memory(name: str, open_http: Open, clock: RecordingClock) -> None:
    """However much is sent, what Python holds for it stays below two megabytes."""
    async with FaultServer(FAULTS[name][0]) as server:
        client = open_http(server)
        tracemalloc.start()
        try:
            await fails(client.exchange(post(server.url, timeout=10.0), deadline=soon(clock)))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("application/json; charset=utf-8", b'{"a":1}'),
        ('Application/JSON;charset="UTF-8"', b'{"a":[1,2.5e3,"\\ud83d\\ude00"]}'),
        ("application/jwk-set+json", b'{"a":' * 16 + b"1" + b"}" * 16),
    ],
)
async def test_strict_does_not_mean_picky(
    content_type: str, body: bytes, open_http: Open, clock: RecordingClock
) -> None:
    """What JSON services really send is read."""
    async with FaultServer(respond(body=body, content_type=content_type)) as server:
        answer = await open_http(server).exchange(post(server.url), deadline=soon(clock))
    assert json.loads(body) == answer.body


async def test_a_get_never_loses_an_answer(open_http: Open, clock: RecordingClock) -> None:
    """What changes nothing at the other side leaves nothing behind."""
    async with FaultServer(raw(b"")) as server:
        request = post(server.url, method="GET", body=None)
        failure = await fails(open_http(server).exchange(request, deadline=soon(clock)))
    assert not failure.answer_lost


async def test_a_refused_connection_was_never_processed(open_http: Open, clock: RecordingClock) -> None:
    """Nobody listening is DOWN, nothing is lost, and the note says why."""
    async with FaultServer() as server:
        client, url = open_http(server), server.url
    failure = await fails(client.exchange(post(url), deadline=soon(clock)))
    assert (failure.kind, failure.answer_lost) == (FailureKind.DOWN, False)
    assert "no connection" in failure.note


async def test_an_untrusted_certificate_gets_nothing(tmp_path: Path, clock: RecordingClock) -> None:
    """A server whose certificate does not verify sees no request; with its root trusted it does."""
    server_side, trusting = make_tls(tmp_path)
    async with FaultServer(respond(body=OK), tls=server_side) as server:
        distrusting = GuardedHttp({parse_origin(server.url)}, clock)
        failure = await fails(distrusting.exchange(post(server.url), deadline=soon(clock)))
        await distrusting.aclose()
        assert (failure.kind, failure.answer_lost, server.requests) == (FailureKind.DOWN, False, [])

        client = GuardedHttp({parse_origin(server.url)}, clock, tls=trusting)
        await client.exchange(post(server.url), deadline=soon(clock))
        await client.aclose()
        assert len(server.requests) == 1


def make_tls(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return a server's settings with a self-signed certificate for 127.0.0.1, and a client's that trust it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "server.pem"
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    return server, ssl.create_default_context(cafile=str(pem))


# Where requests go, and what goes along.


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.2:{port}/",
        "http://127.0.0.1:1/",
        "http://localhost:{port}/",
        "https://127.0.0.1:{port}/",
        "http://127.0.0.1:{port}@evil.example/",
        "http://evil.example/",
        "http://127.0.0.1.evil.example:{port}/",
        "http://127.1:{port}/",
        "http://[::1]:{port}/",
        "ftp://127.0.0.1:{port}/",
        "",
    ],
)
async def test_only_listed_origins_are_called(url: str, open_http: Open, clock: RecordingClock) -> None:
    """A URL whose origin differs in any part from the listed one opens no connection at all."""
    async with FaultServer() as server:
        target = url.format(port=loopback(server.url).port)
        with pytest.raises(OriginNotAllowedError):
            await open_http(server).exchange(post(target), deadline=soon(clock))
        assert server.connections == 0


async def test_a_listed_host_that_cannot_be_decoded_is_not_called(clock: RecordingClock) -> None:
    """A punycode label that stands for nothing is refused in the same way as an origin that is not listed."""
    client = GuardedHttp({parse_origin("https://xn--a.example")}, clock)
    with pytest.raises(OriginNotAllowedError):
        await client.exchange(post("https://xn--a.example/"), deadline=soon(clock))


async def test_no_redirect_carries_anything_anywhere(open_http: Open, clock: RecordingClock) -> None:
    """A server that is redirected to, even on the same host, hears nothing."""
    async with FaultServer() as evil:
        for status in (301, 302, 303, 307, 308):
            for target in (evil.url, f"{evil.url}/x", f"//{evil.url.removeprefix('http://')}/"):
                async with FaultServer(respond(status, headers=(("location", target),))) as server:
                    failure = await fails(open_http(server).exchange(post(server.url), deadline=soon(clock)))
                assert failure.kind is FailureKind.PROTOCOL
        assert evil.connections == 0


async def test_the_environment_changes_nothing(
    open_http: Open, clock: RecordingClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Proxies, a netrc file and certificate paths of the environment are not used."""
    async with FaultServer() as proxy, FaultServer() as server:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
            monkeypatch.setenv(name.lower(), proxy.url)
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login canary password canary\n")
        netrc.chmod(0o600)
        monkeypatch.setenv("NETRC", str(netrc))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing"))
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        await open_http(server).exchange(post(server.url, headers={}), deadline=soon(clock))
        assert proxy.connections == 0
    assert "authorization" not in server.requests[0].headers


async def test_cookies_are_not_kept(open_http: Open, clock: RecordingClock) -> None:
    """A cookie that an answer sets does not come back with the next request."""
    async with FaultServer(respond(headers=(("set-cookie", "a=b; Path=/"),))) as server:
        client = open_http(server)
        for _ in range(2):
            await client.exchange(post(server.url), deadline=soon(clock))
    assert ["cookie" in request.headers for request in server.requests] == [False, False]


async def test_a_request_asks_for_plain_json_and_says_who_it_is(open_http: Open, clock: RecordingClock) -> None:
    """The headers of a request are these and no others."""
    async with FaultServer() as server:
        await open_http(server).send_json(
            "test", server.url, {"ä": 1}, headers={"authorization": Secret("x y")}, timeout=5, deadline=soon(clock)
        )
    (request,) = server.requests
    assert {
        "host",
        "accept",
        "accept-encoding",
        "connection",
        "user-agent",
        "authorization",
        "content-type",
        "content-length",
    } == set(request.headers)
    assert (request.headers["accept-encoding"], request.headers["accept"]) == ("identity", "application/json")
    assert request.body == '{"ä":1}'.encode()


async def test_a_form_is_encoded_with_its_secrets(open_http: Open, clock: RecordingClock) -> None:
    """Form fields arrive decoded as they were, also those that were hidden."""
    async with FaultServer() as server:
        await open_http(server).send_form(
            "test", server.url, {"grant_type": "a b&c", "token": Secret("s=1")}, timeout=5, deadline=soon(clock)
        )
    (request,) = server.requests
    assert request.body == b"grant_type=a+b%26c&token=s%3D1"
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"


@pytest.mark.parametrize("value", ["a\r\nx: y", "a\nb", "a\x00", "ä", "", " a", "a ", "a\x7f"])
async def test_a_credential_that_does_not_fit_a_header_is_not_sent(
    value: str, open_http: Open, clock: RecordingClock
) -> None:
    """A value that could end its header line is refused before a connection is used, and is not shown."""
    async with FaultServer() as server:
        request = post(server.url, headers={"authorization": Secret(value)})
        failure = await fails(open_http(server).exchange(request, deadline=soon(clock)))
        assert (failure.kind, failure.answer_lost, server.requests) == (FailureKind.REFUSED, False, [])


async def test_a_request_that_cannot_be_written_is_not_sent(open_http: Open, clock: RecordingClock) -> None:
    """What is no HTTP method is our own mistake, and nobody hears of it."""
    async with FaultServer() as server:
        failure = await fails(open_http(server).exchange(post(server.url, method="BAD METHOD"), deadline=soon(clock)))
        assert (failure.kind, failure.problem) == (FailureKind.PROTOCOL, "the request cannot be written as HTTP")
        assert server.requests == []


# Trying again.


def again(
    server: FaultServer, client: GuardedHttp, clock: RecordingClock, *, seconds: float = 60.0, timeout: float = 10.0
) -> Awaitable[object]:
    """Send this file's request with retries."""
    deadline = soon(clock, seconds)
    request = post(server.url, timeout=timeout)
    return client.retrying(lambda: client.exchange(request, deadline=deadline), deadline=deadline)


@pytest.mark.parametrize(
    ("behaviour", "seconds"),
    [(respond(503), 10), (respond(500), 10), (respond(429), 10), (raw(b""), 10), (raw(b"", close=False), 0.2)],
)
async def test_a_transient_failure_is_tried_up_to_three_times(
    behaviour: Behaviour, seconds: float, open_http: Open, clock: RecordingClock
) -> None:
    """5xx, 429, a lost connection and a time-out are tried again, with growing waits between."""
    async with FaultServer(behaviour) as server:
        failure = await fails(again(server, open_http(server), clock, timeout=seconds))
    assert 3 == len(server.requests) == failure.attempts
    assert clock.slept == [0.1, 0.2]


@pytest.mark.parametrize("behaviour", [respond(400), respond(401), respond(302), respond(body=b"[]")])
async def test_other_failures_are_not_tried_again(behaviour: Behaviour, open_http: Open, clock: RecordingClock) -> None:
    """Refusals and protocol failures stand after one try."""
    async with FaultServer(behaviour) as server:
        await fails(again(server, open_http(server), clock))
    assert (len(server.requests), clock.slept) == (1, [])


async def test_success_after_a_failure_says_what_may_be_lost(open_http: Open, clock: RecordingClock) -> None:
    """A 500 may have been processed, and the answer of the second try says so."""
    async with FaultServer(respond(500), respond(body=b'{"a":1}')) as server:
        result = await again(server, open_http(server), clock)
    assert isinstance(result, Retried)
    assert result.answer_lost
    assert result.value.body == {"a": 1}


async def test_an_answer_lost_early_is_not_forgotten_by_a_clean_failure(open_http: Open, clock: RecordingClock) -> None:
    """A cut answer followed by a refusal is a refusal whose answer may be lost."""
    async with FaultServer(raw(b""), respond(400)) as server:
        failure = await fails(again(server, open_http(server), clock))
    assert (failure.kind, failure.answer_lost, failure.attempts) == (FailureKind.REFUSED, True, 2)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", 0.0),
        ("7", 7.0),
        ("60", 60.0),
        ("61", 60.0),
        ("999999999", 60.0),
        ("1000000000", None),
        ("1e9", None),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 60.0),
        ("Fri, 31 Foo 2026 23:59:59 GMT", None),
        ("Friday, 31-Dec-99 23:59:59 GMT", None),
    ],
)
async def test_retry_after_is_read_capped_and_never_trusted(
    value: str, expected: float | None, open_http: Open, clock: RecordingClock
) -> None:
    """Seconds and dates count up to a minute; anything else is as if nothing had been said."""
    async with FaultServer(respond(429, headers=(("retry-after", value),))) as server:
        failure = await fails(open_http(server).exchange(post(server.url), deadline=soon(clock)))
    assert expected == failure.retry_after
    assert expected == failure.as_error().retry_after


async def test_retry_after_as_a_date_is_relative_to_our_clock(open_http: Open, clock: RecordingClock) -> None:
    """A date half a minute ahead is about half a minute."""
    date = format_datetime(datetime.fromtimestamp(clock.now() + 30, UTC), usegmt=True)
    async with FaultServer(respond(503, headers=(("retry-after", date),))) as server:
        failure = await fails(open_http(server).exchange(post(server.url), deadline=soon(clock)))
    assert failure.retry_after is not None
    assert 25 < failure.retry_after <= 30


async def test_retry_after_is_honoured(open_http: Open, clock: RecordingClock) -> None:
    """The wait before the next try is at least as long as the other side asked for."""
    async with FaultServer(respond(429, headers=(("retry-after", "3"),)), respond()) as server:
        await again(server, open_http(server), clock)
    assert clock.slept == [3.0]


async def test_no_wait_ends_after_the_deadline(open_http: Open, clock: RecordingClock) -> None:
    """A try that could not be made in time is not waited for; the caller learns how long to wait itself."""
    async with FaultServer(respond(429, headers=(("retry-after", "10"),))) as server:
        failure = await fails(again(server, open_http(server), clock, seconds=5.0))
    assert (len(server.requests), clock.slept, failure.retry_after) == (1, [], 10.0)


async def test_a_deadline_that_has_passed_sends_nothing(open_http: Open, clock: RecordingClock) -> None:
    """No time left is DOWN without a connection."""
    async with FaultServer() as server:
        failure = await fails(open_http(server).exchange(post(server.url), deadline=soon(clock, -1)))
        assert (failure.problem, failure.answer_lost) == ("no time was left to send it", False)
        assert server.connections == 0


async def test_the_deadline_cuts_the_time_of_a_try(open_http: Open, clock: RecordingClock) -> None:
    """A silent server is given up at the deadline, though the try alone would be allowed an hour."""
    async with FaultServer(raw(b"", close=False)) as server, asyncio.timeout(10):
        failure = await fails(open_http(server).exchange(post(server.url, timeout=3600), deadline=soon(clock, 0.2)))
    assert failure.problem == "it timed out"


# Many at once.


class CrowdedTransport(httpx.AsyncBaseTransport):
    """Answers slowly and counts how many calls are under way."""

    def __init__(self) -> None:
        self.running = self.peak = self.answered = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer after everybody else had a turn."""
        self.running += 1
        self.peak = max(self.peak, self.running)
        for _ in range(20):
            await asyncio.sleep(0)
        self.running -= 1
        self.answered += 1
        return httpx.Response(302)


async def test_at_most_so_many_calls_are_under_way_to_one_origin(clock: RecordingClock) -> None:
    """Of 40 calls 16 are under way at a time to each origin, and all are answered in the end."""
    transports: dict[Origin, CrowdedTransport] = {}
    origins = [parse_origin(f"https://{name}.example") for name in ("a", "b")]
    client = GuardedHttp(origins, clock, transport=lambda origin: transports.setdefault(origin, CrowdedTransport()))
    calls = [fails(client.exchange(post(str(origin)), deadline=soon(clock))) for origin in origins for _ in range(40)]
    await asyncio.gather(*calls)
    await client.aclose()
    assert [(transports[origin].peak, transports[origin].answered) for origin in origins] == [(16, 40), (16, 40)]


async def test_waiting_for_a_turn_ends_at_the_deadline(open_http: Open, clock: RecordingClock) -> None:
    """A call that never gets its turn was not sent and loses nothing."""
    async with FaultServer(raw(b"", close=False)) as server:
        client = open_http(server, limits=HttpLimits(max_concurrent_per_origin=1))
        first = asyncio.create_task(fails(client.exchange(post(server.url), deadline=soon(clock, 0.5))))
        await server.asked.wait()
        second = await fails(client.exchange(post(server.url), deadline=soon(clock, 0.1)))
        assert (second.kind, second.answer_lost, len(server.requests)) == (FailureKind.DOWN, False, 1)
        assert (await first).answer_lost


class LeakyTransport(httpx.AsyncBaseTransport):
    """Plays a connection pool that has lost its connections: every call waits for one in vain."""

    def __init__(self, hold: int = 0) -> None:
        self.closed = False
        self.asked = asyncio.Event()
        self.release = asyncio.Event()
        self._hold = hold

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Fail as httpx does then; the first few calls only when they are released."""
        self.asked.set()
        if self._hold:
            self._hold -= 1
            await self.release.wait()
        raise httpx.PoolTimeout("none came free")

    async def aclose(self) -> None:
        """Remember that it was closed."""
        self.closed = True


async def test_a_replaced_client_is_closed_by_its_last_user(clock: RecordingClock) -> None:
    """While another call still uses the client that failed it stays open, and is closed after it."""
    leaky = LeakyTransport(hold=1)
    transports: list[httpx.AsyncBaseTransport] = [leaky, LeakyTransport()]
    client = GuardedHttp(
        {parse_origin("https://backend.example")}, clock, transport=lambda _: transports.pop(0), jitter=lambda: 0.0
    )
    held = asyncio.create_task(fails(client.exchange(post("https://backend.example"), deadline=soon(clock))))
    await leaky.asked.wait()
    await fails(client.exchange(post("https://backend.example"), deadline=soon(clock)))
    assert not leaky.closed
    leaky.release.set()
    await held
    assert leaky.closed
    assert transports == []
    await client.aclose()


async def test_a_pool_that_lost_its_connections_is_replaced(clock: RecordingClock) -> None:
    """After a pool time-out the next try has a new client, the old one is closed, and nothing is lost."""
    leaky = LeakyTransport()

    async def body() -> AsyncIterator[bytes]:
        yield b'{"a":1}'

    sound = httpx.MockTransport(
        lambda _: httpx.Response(200, headers={"content-type": "application/json"}, content=body())
    )
    transports: list[httpx.AsyncBaseTransport] = [leaky, sound]
    origin = parse_origin("https://backend.example")
    client = GuardedHttp({origin}, clock, transport=lambda _: transports.pop(0), jitter=lambda: 0.0)
    request = post("https://backend.example/x")
    failure = await fails(client.exchange(request, deadline=soon(clock)))
    assert (failure.kind, failure.answer_lost, leaky.closed) == (FailureKind.DOWN, False, True)
    assert (await client.exchange(request, deadline=soon(clock))).body == {"a": 1}
    await client.aclose()


async def test_connections_are_kept_between_calls(open_http: Open, clock: RecordingClock) -> None:
    """Two calls after each other share a connection."""
    async with FaultServer() as server:
        client = open_http(server)
        for _ in range(2):
            await client.exchange(post(server.url), deadline=soon(clock))
        assert server.connections == 1


async def test_a_cancelled_call_leaves_the_next_one_alone(open_http: Open, clock: RecordingClock) -> None:
    """A call that is given up half-way does not get its answer into the next call's hands."""
    async with FaultServer(raw(http(JSON, b'{"a":1}', length=9), close=False), respond(body=b'{"b":2}')) as server:
        client = open_http(server, limits=HttpLimits(max_concurrent_per_origin=1))
        given_up = asyncio.create_task(client.exchange(post(server.url), deadline=soon(clock)))
        await server.asked.wait()
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        answer = await client.exchange(post(server.url), deadline=soon(clock))
    assert answer.body == {"b": 2}


async def test_each_try_is_recorded(open_http: Open, clock: RecordingClock) -> None:
    """The hook hears of each try with its status and failure, and of nothing that a stranger chose."""
    records: list[ExchangeRecord] = []
    async with FaultServer(respond(503), raw(b""), respond()) as server:
        await again(server, open_http(server, on_exchange=records.append), clock)
        origin = loopback(server.url)
    assert [
        ("test", origin, 503, FailureKind.DOWN),
        ("test", origin, None, FailureKind.DOWN),
        ("test", origin, 200, None),
    ] == [(record.operation, record.origin, record.status, record.failure) for record in records]


# What a failure shows.


@pytest.mark.parametrize(
    "body",
    [
        f'{{"error":{{"message":"no","token":"{CANARY}"}}}}',
        f'{{"refresh_token" : "{CANARY}"}}',
        '{"client_secret":"canary\\"-0123"}'.replace("canary", CANARY[:20]),
        f"Authorization: Bearer {CANARY}",
        f"authorization: agentassertion {CANARY[:10]}",
        f"saw eyJhbGciOiJub25lIn0.eyJhIjoi{CANARY[:8]}.x",
        f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{CANARY[:12]}",
        f"raw {CANARY} raw",
        f"{'a' * 4084} {CANARY}",
        f'{{"code":"{CANARY}"}}',
    ],
)
async def test_what_is_shown_of_an_error_body_holds_no_secret(
    body: str, open_http: Open, clock: RecordingClock
) -> None:
    """No piece of a token in an error body, however it is wrapped or cut, gets into the note for the log."""
    async with FaultServer(respond(401, body.encode())) as server:
        failure = await fails(open_http(server).exchange(post(server.url), deadline=soon(clock)))
    assert CANARY[:8] not in f"{failure.note}{failure.code}"


async def test_an_error_body_is_cut_to_one_line(open_http: Open, clock: RecordingClock) -> None:
    """The note holds at most 512 bytes of the body, without line breaks or terminal codes, and the plain code."""
    body = ('{"error":{"code":"token_expired","message":"' + "ä \\n\\u001b[31m" * 200 + '"}}').encode()
    async with FaultServer(respond(401, body.replace(b"\\n", b" \r\n"))) as server:
        failure = await fails(open_http(server).exchange(post(server.url), deadline=soon(clock)))
    assert failure.preview.isprintable()
    assert len(failure.preview.encode()) <= 515
    assert failure.preview.startswith('{"error":{"code":"token_expired"')


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error":{"code":"token_expired"}}', "token_expired"),
        (b'{"error":"invalid_grant"}', "invalid_grant"),
        (b'{"code":"refused"}', "refused"),
        (b'{"error":{"message":"no"},"code":"refused"}', "refused"),
        (b'{"error":{"code":"refresh_token_invalidated"}}', "refresh_token_invalidated"),
        (b'{"error":"Refresh_Token_Invalidated"}', "Refresh_Token_Invalidated"),
        (b'{"error":{"code":"rT_kJhgFdsaQwErTyUiOpLkJhGfDs"}}', None),
        (b'{"error":{"code":"has spaces"}}', None),
        (b'{"error":{"code":7}}', None),
        (b'{"error":{}}', None),
        (b"<html>", None),
    ],
)
async def test_an_error_code_is_read_where_it_is_a_plain_word(
    body: bytes, expected: str | None, open_http: Open, clock: RecordingClock
) -> None:
    """The code stands in `error.code`, `error` or `code`."""
    async with FaultServer(respond(400, body)) as server:
        failure = await fails(open_http(server).exchange(post(server.url), deadline=soon(clock)))
    assert expected == failure.code


@pytest.mark.parametrize(
    ("status", "error"),
    [(503, BackendDownError), (429, BackendThrottledError), (302, BackendProtocolError), (403, IdentityRejectedError)],
)
async def test_a_failure_has_its_usual_reading(
    status: int, error: type[Exception], open_http: Open, clock: RecordingClock
) -> None:
    """Each kind is one outcome for the caller of a registration."""
    async with FaultServer(respond(status)) as server:
        failure = await fails(open_http(server).exchange(post(server.url), deadline=soon(clock)))
    assert isinstance(failure.as_error(), error)


async def test_a_backends_own_urls_must_be_allowed() -> None:
    """Endpoints whose own origins are not on the list are refused where they are built."""
    preset = PRESETS["codex-2026-08"]
    urls = resolve_urls(preset, base_url="https://chatgpt.com")
    with pytest.raises(ValueError, match="must be of allowed origins"):
        BackendEndpoints(profile=preset, urls=urls, allowed_origins=frozenset({parse_origin("https://chatgpt.com")}))
