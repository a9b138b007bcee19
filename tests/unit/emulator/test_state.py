"""Registry, accounts, issuer, ledger, faults, settings and routing of the emulator, without sockets."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from nacl.public import SealedBox
from nacl.signing import SigningKey

from broker.emulator.accounts import Account, Bearer, Bearers, fingerprint
from broker.emulator.backend import Backend
from broker.emulator.faults import Action, FaultRule, Phase, Seen, Switchboard
from broker.emulator.issuer import (
    IDENTITY_AUDIENCE,
    IDENTITY_ISSUER,
    Issuer,
    encode_private_key,
    seal_task_id,
)
from broker.emulator.ledger import Ledger
from broker.emulator.profiles import Base, TaskAnswer
from broker.emulator.refusal import Refusal
from broker.emulator.registry import BISCUIT_LIFETIME, Registry
from broker.emulator.routing import Operation, Route, route
from broker.emulator.settings import EmulatorSettings
from broker.emulator.verify import Assertion

NOW = datetime(2026, 11, 21, tzinfo=UTC)
ACCOUNT = Account(account_id="acc-1", chatgpt_user_id="user-1", email="a@example.com", fedramp=True)
KEY = SigningKey(b"\x07" * 32)


def refused(call: Any, *args: Any, **kwargs: Any) -> str:
    """Run something that must refuse and return the code."""
    with pytest.raises(Refusal) as caught:
        call(*args, **kwargs)
    return caught.value.code


def test_registering_is_never_idempotent() -> None:
    """The same key twice is two agents and the same reference twice is two tasks; the counts show both."""
    registry = Registry()
    first = registry.register_agent(bytes(KEY.verify_key), ACCOUNT, now=NOW, origin="registered")
    second = registry.register_agent(bytes(KEY.verify_key), ACCOUNT, now=NOW, origin="registered")
    one = registry.register_task(first, "thread-1", now=NOW)
    two = registry.register_task(first, "thread-1", now=NOW)
    assert first.agent_runtime_id != second.agent_runtime_id
    assert one.task_id != two.task_id
    shown = [(agent["agents_with_this_key"], agent["tasks"]) for agent in registry.agents_json()]
    assert shown == [(2, 2), (2, 0)]
    assert [task.task_id for task in registry.tasks(first.agent_runtime_id)] == [one.task_id, two.task_id]


def test_a_forgotten_agent_takes_its_tasks_along() -> None:
    """After an agent is forgotten, neither it nor its tasks are known, and others are untouched."""
    registry = Registry()
    gone = registry.register_agent(bytes(KEY.verify_key), ACCOUNT, now=NOW, origin="registered")
    kept = registry.register_agent(bytes(KEY.verify_key), ACCOUNT, now=NOW, origin="registered")
    lost = registry.register_task(gone, None, now=NOW)
    left = registry.register_task(kept, None, now=NOW)
    assert registry.forget_agent(gone.agent_runtime_id)
    assert not registry.forget_agent(gone.agent_runtime_id)
    assert refused(registry.agent, gone.agent_runtime_id) == "agent_unknown"
    assertion = Assertion(gone.agent_runtime_id, lost.task_id, "2026-11-21T00:00:00Z", b"")
    assert refused(registry.task_of, assertion) == "task_unknown"
    assert [task.task_id for task in registry.tasks()] == [left.task_id]


def test_a_biscuit_is_good_for_one_call_once() -> None:
    """It is refused for another method or URL without being spent, and refused the second time."""
    registry = Registry()
    biscuit = registry.issue_biscuit(ACCOUNT, method="POST", url="http://b/register", now=NOW)
    good = {"method": "POST", "url": "http://b/register", "now": NOW}
    assert refused(registry.spend_biscuit, biscuit, **{**good, "method": "GET"}) == "biscuit_for_other_call"
    assert refused(registry.spend_biscuit, biscuit, **{**good, "url": "http://b/other"}) == "biscuit_for_other_call"
    assert registry.spend_biscuit(biscuit, **good) == ACCOUNT
    assert refused(registry.spend_biscuit, biscuit, **good) == "biscuit_unknown"


def test_a_biscuit_goes_stale() -> None:
    """A biscuit is refused from the end of its lifetime on."""
    registry = Registry()
    biscuit = registry.issue_biscuit(ACCOUNT, method="POST", url="http://b/register", now=NOW)
    late = {"method": "POST", "url": "http://b/register", "now": NOW + BISCUIT_LIFETIME}
    assert refused(registry.spend_biscuit, biscuit, **late) == "biscuit_expired"


def test_bearers_expire() -> None:
    """A bearer is good until its expiry and refused at it; an unknown one is refused always."""
    bearers = Bearers()
    bearer = Bearer(account=ACCOUNT, expire_time=NOW, subject="user-1")
    bearers.add("token", bearer)
    assert bearers.verify("token", NOW - timedelta(seconds=1)) == bearer
    assert refused(bearers.verify, "token", NOW) == "bearer_expired"
    assert refused(bearers.verify, "tokem", NOW) == "bearer_unknown"


@pytest.mark.parametrize("form", ["v1", "v2"])
def test_identity_jwt_verifies_against_the_key_set(form: Any) -> None:
    """The JWT carries every claim of the protocol and verifies with the published key of its `kid`."""
    issuer = Issuer()
    private_key = encode_private_key(KEY, form)
    options = {"agent_runtime_id": "agent-1", "private_key": private_key, "account": ACCOUNT, "now": NOW}
    token = issuer.identity_jwt(**options, lifetime=timedelta(hours=1))
    keys = jwt.PyJWKSet.from_dict(issuer.jwks())
    verified = jwt.decode(
        token,
        keys[jwt.get_unverified_header(token)["kid"]],
        algorithms=["RS256"],
        audience=IDENTITY_AUDIENCE,
        issuer=IDENTITY_ISSUER,
        options={"verify_exp": False, "verify_iat": False, "require": ["exp", "iat"]},
    )
    assert verified == {
        "iss": IDENTITY_ISSUER,
        "aud": IDENTITY_AUDIENCE,
        "iat": int(NOW.timestamp()),
        "exp": int(NOW.timestamp()) + 3600,
        "agent_runtime_id": "agent-1",
        "agent_private_key": private_key,
        "account_id": "acc-1",
        "chatgpt_user_id": "user-1",
        "email": "a@example.com",
        "plan_type": "business",
        "chatgpt_account_is_fedramp": True,
    }


@pytest.mark.parametrize(
    ("form", "encoded"),
    [
        ("v1", "MC4CAQAwBQYDK2VwBCIEIAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH"),
        (
            "v2",
            (
                "MFECAQEwBQYDK2VwBCIEIAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHgSEA6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7q"
                "aRRG0iw="
            ),
        ),
    ],
)
def test_private_keys_have_the_golden_form(form: Any, encoded: str) -> None:
    """Both PKCS#8 forms match their golden bytes."""
    assert encoded == encode_private_key(KEY, form)


def test_a_jwt_can_be_made_wrong_on_purpose() -> None:
    """Claims and header fields can be replaced or left out, so that a broker's refusals can be tested."""
    issuer = Issuer()
    token = issuer.identity_jwt(
        agent_runtime_id="agent-1",
        private_key="key",
        account=ACCOUNT,
        now=NOW,
        lifetime=timedelta(seconds=-1),
        claims={"aud": "other", "account_id": None},
        header={"kid": None, "typ": "at+jwt"},
    )
    claims = jwt.decode(token, options={"verify_signature": False})
    assert (claims["aud"], "account_id" in claims) == ("other", False)
    assert jwt.get_unverified_header(token) == {"alg": "RS256", "typ": "at+jwt"}


def test_only_what_an_issuer_signed_itself_verifies() -> None:
    """Claims under a signature of others, under none, or of another issuer are refused, also with a known `kid`."""
    issuer = Issuer()
    token, other = issuer.sign({"sub": "a"}), issuer.sign({"sub": "b"})
    head, payload, signature = token.split(".")
    unsigned = jwt.encode(
        {"sub": "a"}, None, algorithm="none", headers=jwt.get_unverified_header(token) | {"alg": "none"}
    )
    assert issuer.verify(token) == {"sub": "a"}
    for wrong in (
        f"{head}.{other.split('.')[1]}.{signature}",
        f"{head}.{payload}.",
        unsigned,
        Issuer().sign({}),
        "x",
        "",
    ):
        with pytest.raises(ValueError, match="not signed here"):
            issuer.verify(wrong)


def test_rotation_keeps_or_drops_the_old_key() -> None:
    """A new key comes first; the old one stays in the set only when asked for."""
    issuer = Issuer()
    first = issuer.rotate(keep_old=False)
    second = issuer.rotate(keep_old=True)
    assert [key["kid"] for key in issuer.jwks()["keys"]] == [second, first]
    third = issuer.rotate(keep_old=False)
    assert [key["kid"] for key in issuer.jwks()["keys"]] == [third]


def test_access_token_shows_account_and_user() -> None:
    """An importer that decodes the token finds account, user, plan and address where Codex looks for them."""
    claims = jwt.decode(
        Issuer().access_token(account=ACCOUNT, now=NOW, lifetime=timedelta(hours=1)),
        options={"verify_signature": False},
    )
    assert claims["https://api.openai.com/auth"] == {
        "chatgpt_account_id": "acc-1",
        "chatgpt_user_id": "user-1",
        "user_id": "user-1",
        "chatgpt_plan_type": "business",
        "chatgpt_account_is_fedramp": True,
    }
    assert claims["https://api.openai.com/profile"] == {"email": "a@example.com"}


def test_sealed_task_id_opens_with_the_agents_key() -> None:
    """What is sealed to the public key opens with the private one, through libsodium's own conversion."""
    sealed = seal_task_id("task_123", bytes(KEY.verify_key))
    opened = SealedBox(KEY.to_curve25519_private_key()).decrypt(sealed, encoder=_Base64)
    assert opened == b"task_123"


class _Base64:
    @staticmethod
    def decode(data: str) -> bytes:
        """Decode as `nacl.encoding` encoders do."""
        import base64

        return base64.b64decode(data, validate=True)


def test_no_repr_shows_a_secret() -> None:
    """Pairs, identities and the collections that hold them print without any secret value."""
    backend = Backend(EmulatorSettings(port=0), time_source=NOW.timestamp)
    pair, identity = backend.mint_token(), backend.issue_identity()
    biscuit = backend.registry.issue_biscuit(ACCOUNT, method="POST", url="u", now=NOW)
    printed = repr([pair, identity, backend.oauth, backend.bearers, backend.registry, backend.issuer])
    secrets = (pair.access_token, pair.refresh_token, pair.id_token, identity.jwt, identity.private_key, biscuit)
    assert [secret for secret in secrets if secret in printed] == []


def _open(ledger: Ledger, path: str, operation: str = "resource") -> Any:
    return ledger.open(time="t", method="GET", path=path, operation=operation, base=None, header_names=[])


def test_ledger_filters_and_counts() -> None:
    """Filters combine; the counts are those of the selection."""
    ledger = Ledger()
    for path, kind in (("/a/1", "bearer"), ("/a/2", "none"), ("/b", "bearer")):
        _open(ledger, path).credential_kind = kind
    assert [entry.seq for entry in ledger.entries(path="/a")] == [1, 2]
    assert [entry.seq for entry in ledger.entries(since=1, kind="bearer")] == [3]
    shown = ledger.as_json(operation="resource")
    assert (shown["count"], shown["by_operation"], shown["last_seq"]) == (3, {"resource": 3}, 3)


def test_ledger_has_a_ceiling_and_its_sequence_survives_clearing() -> None:
    """The oldest entries are dropped and counted; numbers are never used twice."""
    ledger = Ledger(capacity=2)
    for _ in range(3):
        _open(ledger, "/a")
    assert ([entry.seq for entry in ledger.entries()], ledger.dropped) == ([2, 3], 1)
    ledger.clear()
    assert _open(ledger, "/a").seq == 4


def _claim(board: Switchboard, phase: Phase = Phase.BEFORE, **request: Any) -> str | None:
    found = {"method": "POST", "path": "/api/accounts/v1/agent/register", "operation": Operation.AGENT_REGISTER}
    rule = board.claim(phase, Seen(**{**found, **request}))
    return None if rule is None else rule.rule_id


def test_faults_fire_in_order_and_run_out() -> None:
    """The first matching rule fires until it is used up, then the next; used-up rules still show their count."""
    board = Switchboard()
    board.add(FaultRule(action=Action.STATUS, count=2))
    board.add(FaultRule(action=Action.GARBAGE, count=None))
    assert [_claim(board) for _ in range(4)] == ["fault-1", "fault-1", "fault-2", "fault-2"]
    assert [(rule["fired"], rule["count"]) for rule in (r.as_json() for r in board.rules())] == [(2, 0), (2, None)]


@pytest.mark.parametrize(
    ("rule", "request_", "fires"),
    [
        ({"method": "GET"}, {}, False),
        ({"method": "GET"}, {"method": "GET"}, True),
        ({"path_prefix": "/api"}, {}, True),
        ({"path_prefix": "/backend-api"}, {}, False),
        ({"operation": Operation.OAUTH}, {}, False),
        ({"operation": Operation.AGENT_REGISTER}, {}, True),
        ({}, {"phase": Phase.AFTER}, False),
        ({"grant": "refresh_token"}, {}, False),
        ({"grant": "refresh_token"}, {"grant": "client_credentials"}, False),
        ({"grant": "refresh_token"}, {"grant": "refresh_token"}, True),
        ({"agent_runtime_id": "agent-1"}, {"agent_runtime_id": "agent-2"}, False),
        ({"agent_runtime_id": "agent-1"}, {"agent_runtime_id": "agent-1"}, True),
        ({"fingerprint": "0" * 16}, {"fingerprint": "1" * 16}, False),
        ({"fingerprint": "0" * 16}, {"fingerprint": "0" * 16}, True),
    ],
)
def test_faults_match_only_what_they_are_about(rule: Any, request_: Any, fires: bool) -> None:
    """Method, path, operation and phase must all match; a rule that does not fire is not used up."""
    board = Switchboard()
    board.add(FaultRule(action=Action.STATUS, **rule))
    assert (_claim(board, **request_) is not None) == fires
    assert board.rules()[0].count == (0 if fires else 1)


def test_removing_a_fault_lets_go_of_what_hangs() -> None:
    """Removal sets the event a hanging request waits for; other rules stay."""
    board = Switchboard()
    first, second = (board.add(FaultRule(action=Action.HANG)) for _ in range(2))
    assert board.remove(first.rule_id) == 1
    assert (first.released.is_set(), second.released.is_set()) == (True, False)
    assert board.remove() == 1
    assert (board.remove(), isinstance(second.released, asyncio.Event)) == (0, True)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"action": "explode"},
        {"action": "status", "statos": 1},
        {"action": "status", "status": 99},
        {"action": "status", "status": True},
        {"action": "status", "count": 0},
        {"action": "status", "retry_after": "1\r\nx: y"},
        {"action": "status", "headers": {"x y": "1"}},
        {"action": "status", "headers": {"x": "1\n"}},
        {"action": "status", "operation": "nothing"},
        {"action": "status", "grant": 1},
        {"action": "agent_dead", "agent_runtime_id": ""},
        {"action": "bearer_reject", "fingerprint": "token"},
        {"action": "status", "method": "get"},
        {"action": "status", "path_prefix": "x"},
        {"action": "delay"},
        {"action": "delay", "seconds": -1},
        {"action": "delay", "seconds": 1e12},
        {"action": "delay", "seconds": float("nan")},
        {"action": "clock_offset"},
        {"action": "redirect"},
        {"action": "route_reject"},
        {"action": "oversize", "size": 2**40},
    ],
    ids=json.dumps,
)
def test_refuses_faults_that_mean_nothing(body: dict[str, Any]) -> None:
    """A rule with an unknown, impossible or missing field is refused instead of being half applied."""
    assert refused(FaultRule.from_json, body) == "fault_invalid"


def test_reads_a_fault_with_its_defaults() -> None:
    """Unset fields take their documented values; a numeric Retry-After becomes header text."""
    rule = FaultRule.from_json({"action": "status", "retry_after": 3})
    assert (rule.status, rule.count, rule.retry_after) == (503, 1, "3")
    assert FaultRule.from_json({"action": "redirect", "location": "http://x/"}).status == 302


@pytest.mark.parametrize(
    "change",
    [
        {"token_format": "paper"},
        {"refresh_error_style": "song"},
        {"access_token_seconds": 0},
        {"refresh_token_seconds": float("inf")},
        {"reuse_grace_seconds": -1},
        {"federation_rule_id": ""},
        {"subject_audience": ""},
        {"host": "0.0.0.0"},
        {"host": "::"},
        {"host": "localhost"},
        {"host": "192.0.2.1"},
        {"host": ""},
        {"port": -1},
        {"port": 65536},
        {"profile": "codex-2027-01"},
        {"task_answer": "id"},
        {"freshness_seconds": 0},
        {"freshness_seconds": float("nan")},
        {"clock_offset_seconds": float("inf")},
    ],
    ids=str,
)
def test_settings_refuse_what_cannot_be_served(change: dict[str, Any]) -> None:
    """Addresses beyond loopback and impossible values raise when the settings are made."""
    with pytest.raises(ValueError, match=next(iter(change))):
        EmulatorSettings(**change)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1"])
def test_settings_take_loopback_literals(host: str) -> None:
    """Every loopback literal is accepted, and a task answer may be given by its field name."""
    settings = EmulatorSettings(host=host, task_answer="taskId")  # type: ignore[arg-type]
    assert settings.task_answer is TaskAnswer.TASK_ID_CAMEL


def test_a_refused_change_changes_nothing() -> None:
    """A change with an impossible value leaves every setting as it was."""
    backend = Backend(EmulatorSettings(port=0), time_source=lambda: 0.0)
    before = backend.settings
    with pytest.raises(ValueError, match="freshness_seconds"):
        backend.change(profile="codex-2026-05", freshness_seconds=-1)
    assert backend.settings == before


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/api/accounts/v1/agent/register", Route(Operation.AGENT_REGISTER, Base.AUTHAPI)),
        ("/backend-api/v1/agent/register", Route(Operation.AGENT_REGISTER, Base.CHATGPT)),
        ("/api/accounts/v1/agent/a.b-c_1/task/register", Route(Operation.TASK_REGISTER, Base.AUTHAPI, "a.b-c_1")),
        ("/backend-api/v1/agent/x/task/register", Route(Operation.TASK_REGISTER, Base.CHATGPT, "x")),
        ("/backend-api/authenticate_app_v2", Route(Operation.BISCUIT, Base.CHATGPT)),
        ("/backend-api/wham/agent-identities/jwks", Route(Operation.JWKS)),
        ("/oauth/token", Route(Operation.OAUTH)),
        ("/oauth/revoke", Route(Operation.OAUTH_REVOKE)),
        ("/backend-api/anything", Route(Operation.RESOURCE)),
        ("/backend-api/v1/agent/a/b/task/register", Route(Operation.RESOURCE)),
        ("/api/accounts/v1/agent/register/", Route(Operation.UNKNOWN)),
        ("/backend-api", Route(Operation.UNKNOWN)),
        ("/", Route(Operation.UNKNOWN)),
    ],
)
def test_paths_mean_one_operation_each(path: str, expected: Route) -> None:
    """Each path is understood, exactly as sent."""
    assert route(path) == expected


def test_fingerprints_tell_apart_and_reveal_nothing() -> None:
    """Two secrets have two fingerprints of 16 hex digits, in which neither stands."""
    assert fingerprint("secret") != fingerprint("secret2")
    assert len(fingerprint("secret")) == 16
