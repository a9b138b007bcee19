"""The backend itself: what each operation demands, what it changes, what it answers.

Nothing here knows sockets. `Backend.answer` takes a `Call` and returns an `Answer`; the HTTP side (`app`) reads the
request, applies faults that concern the connection, and writes the answer. On the way, the call's ledger entry is
filled with what was learned.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from nacl.signing import SigningKey

from broker.emulator.accounts import Account, Bearer, Bearers
from broker.emulator.calls import BISCUIT_HEADER, Answer, Call, as_json, refuse
from broker.emulator.exchanges import ExchangeLedger
from broker.emulator.families import TokenPair
from broker.emulator.faults import Action, FaultRule, Phase, Seen, Switchboard
from broker.emulator.issuer import Issuer, Pkcs8Form, encode_private_key, seal_task_id
from broker.emulator.ledger import Ledger
from broker.emulator.oauth import AuthorizationServer, Body
from broker.emulator.profiles import AgentAuth, Profile
from broker.emulator.refusal import Refusal
from broker.emulator.registry import Agent, Registry, Task
from broker.emulator.resource import resource_answer
from broker.emulator.routing import Operation
from broker.emulator.settings import EmulatorSettings
from broker.emulator.subjects import DEFAULT_SUBJECT
from broker.emulator.verify import (
    ASSERTION_SCHEME,
    check_freshness,
    format_ssh_public_key,
    parse_agent_registration,
    parse_assertion,
    parse_json_object,
    parse_task_registration,
)

IDENTITY_LIFETIME = timedelta(days=30)
SUBJECT_TOKEN_LIFETIME = timedelta(minutes=10)
_ACCOUNT_HEADER = "chatgpt-account-id"
_FEDRAMP_HEADER = "x-openai-fedramp"
# 16 random bytes are 22 characters of base64url without padding.
_BISCUIT_REQUEST_ID = re.compile(r"codex-agent-identity-[A-Za-z0-9_-]{22}")
_METHODS = {
    Operation.AGENT_REGISTER: "POST",
    Operation.TASK_REGISTER: "POST",
    Operation.BISCUIT: "GET",
    Operation.JWKS: "GET",
    Operation.OAUTH: "POST",
    Operation.OAUTH_REVOKE: "POST",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedIdentity:
    """An identity JWT and what it says; `repr` shows neither the token nor the key."""

    jwt: str = field(repr=False)
    private_key: str = field(repr=False)
    agent_runtime_id: str
    public_key: str
    account: Account
    expires_in: int


class Backend:
    """The state of one emulated backend and its operations.

    Attributes:
        settings: The settings in force; `change` replaces them.
        ledger: Every request received.
        faults: The fault switches.
        registry: Agents, tasks and biscuits.
        issuer: Signs JWTs.
        bearers: The access tokens accepted.
        oauth: The issuer: logins, clients, workloads.
    """

    def __init__(self, settings: EmulatorSettings, *, time_source: Callable[[], float]) -> None:
        self.settings = settings
        self.ledger = Ledger()
        self.faults = Switchboard()
        self.registry = Registry()
        self.issuer = Issuer()
        self.bearers = Bearers()
        self.oauth = AuthorizationServer(self.issuer, self.bearers, lambda: self.settings)
        self._time_source = time_source
        self._handlers: dict[Operation, Callable[[Call], Answer]] = {
            Operation.AGENT_REGISTER: self._register_agent,
            Operation.TASK_REGISTER: self._register_task,
            Operation.BISCUIT: self._issue_biscuit,
            Operation.JWKS: self._publish_keys,
            Operation.OAUTH: self._issue_tokens,
            Operation.OAUTH_REVOKE: self._revoke_token,
            Operation.RESOURCE: self._resource,
        }

    @property
    def exchanges(self) -> ExchangeLedger:
        """Everything the issuer decided, in order, and the totals of it."""
        return self.oauth.exchanges

    def now(self) -> datetime:
        """The backend's clock: the machine's time plus the configured offset."""
        return datetime.fromtimestamp(self._time_source() + self.settings.clock_offset_seconds, UTC)

    @property
    def profile(self) -> Profile:
        """The profile in force."""
        return self.settings.profile_rules

    def change(self, **changes: Any) -> None:
        """Replace settings that may change while running.

        Raises:
            ValueError: For a value that is not possible; nothing was changed.
        """
        self.settings = replace(self.settings, **changes)

    def issue_identity(
        self,
        *,
        account: Account | None = None,
        lifetime: timedelta = IDENTITY_LIFETIME,
        pkcs8: Pkcs8Form = "v2",
        registered: bool = True,
        claims: dict[str, Any] | None = None,
        header: dict[str, Any] | None = None,
    ) -> IssuedIdentity:
        """Make a key, register an agent for it, and issue the JWT that hands both to a client.

        Args:
            account: Whom it belongs to; unset, a made-up business account.
            lifetime: Until the JWT expires; negative for one that already has.
            pkcs8: The form of the private key inside.
            registered: Whether the backend knows the agent; False issues a JWT that no backend will honour.
            claims: Claims to replace or (with None) leave out, for tokens that must be refused.
            header: The same for the JOSE header.
        """
        account = account or default_account()
        key = SigningKey.generate()
        now = self.now()
        agent = self.registry.register_agent(bytes(key.verify_key), account, now=now, origin="issued")
        if not registered:
            self.registry.forget_agent(agent.agent_runtime_id)
        private_key = encode_private_key(key, pkcs8)
        token = self.issuer.identity_jwt(
            agent_runtime_id=agent.agent_runtime_id,
            private_key=private_key,
            account=account,
            now=now,
            lifetime=lifetime,
            claims=claims,
            header=header,
        )
        return IssuedIdentity(
            jwt=token,
            private_key=private_key,
            agent_runtime_id=agent.agent_runtime_id,
            public_key=format_ssh_public_key(agent.public_key),
            account=account,
            expires_in=int(lifetime.total_seconds()),
        )

    def mint_token(
        self,
        *,
        account: Account | None = None,
        lifetime: timedelta | None = None,
        refresh_lifetime: timedelta | None = None,
        client_id: str | None = None,
    ) -> TokenPair:
        """Log in: issue an access token the backend accepts, and the refresh token that renews it.

        Args:
            account: Whom it proves; unset, a made-up business account.
            lifetime: Of this access token and of those that refreshes give; negative for one that has expired.
                Unset, what the settings say at the time of each.
            refresh_lifetime: The same for refresh tokens.
            client_id: The only client that may refresh it; unset, any.
        """
        return self.oauth.families.login(
            account or default_account(),
            now=self.now(),
            access_lifetime=lifetime,
            refresh_lifetime=refresh_lifetime,
            client_id=client_id,
        )

    def accept_bearer(
        self, token: str, *, account: Account | None = None, lifetime: timedelta = timedelta(days=1)
    ) -> None:
        """Accept a bearer of somebody else's making, an API key for instance, for an account (unset, a made-up one)."""
        account = account or default_account()
        bearer = Bearer(account=account, expire_time=self.now() + lifetime, subject=account.chatgpt_user_id or "")
        self.bearers.add(token, bearer)

    def mint_subject_token(
        self,
        *,
        account: Account | None = None,
        lifetime: timedelta = SUBJECT_TOKEN_LIFETIME,
        audience: str | None = None,
        subject: str = DEFAULT_SUBJECT,
        trusted: bool = True,
    ) -> str:
        """Issue the token of a workload, as a platform projects it into a file, to be exchanged here.

        Args:
            account: What the subject stands for from now on; unset, a made-up business account.
            lifetime: Negative for a token that has expired.
            audience: Unset, the one that the settings accept.
            subject: The workload.
            trusted: False signs with a key that the emulator does not accept.
        """
        return self.oauth.subjects.issue(
            account=account or default_account(),
            audience=audience or self.settings.subject_audience,
            now=self.now(),
            lifetime=lifetime,
            subject=subject,
            trusted=trusted,
        )

    def answer(self, call: Call) -> Answer:
        """Check a call, act on it, and say what to send back; the entry gets verdict and refusal."""
        try:
            answer = self._dispatch(call)
        except Refusal as refusal:
            call.entry.verdict = "refused"
            call.entry.refusal = refusal.code
            return refuse(refusal)
        if call.entry.verdict == "pending":
            call.entry.verdict = "verified"
        return answer

    def claim(self, phase: Phase, call: Call) -> FaultRule | None:
        """Fire the rule of a phase that matches a call, and note it in the call's entry."""
        seen = Seen(
            method=call.method,
            path=call.path,
            operation=call.route.operation,
            grant=call.grant,
            agent_runtime_id=call.entry.agent_runtime_id,
            fingerprint=call.entry.credential_fingerprint,
        )
        rule = self.faults.claim(phase, seen)
        if rule is not None:
            call.entry.faults.append(rule.rule_id)
        return rule

    def _dispatch(self, call: Call) -> Answer:
        operation = call.route.operation
        expected = _METHODS.get(operation)
        if expected is not None and call.method != expected:
            raise Refusal(405, "method_not_allowed", f"this path takes {expected} only")
        handler = self._handlers.get(operation)
        if handler is None:
            raise Refusal(404, "route_unknown", "the backend has no such path")
        return handler(call)

    def _register_agent(self, call: Call) -> Answer:
        profile = self.profile
        self._check_base(call, profile)
        call.forbid(_ACCOUNT_HEADER)
        if profile.agent_auth is AgentAuth.NOT_OFFERED:
            raise Refusal(404, "agent_register_not_offered", "this profile registers no agents")
        if profile.agent_auth is AgentAuth.BEARER:
            call.forbid(BISCUIT_HEADER)
            account = self._check_bearer(call).account
            _check_fedramp(call, account)
        else:
            account = self._check_biscuit(call)
        public_key = parse_agent_registration(
            parse_json_object(call.header("content-type"), call.body),
            capabilities=profile.capabilities,
            ttl=profile.agent_ttl,
        )
        if profile.agent_auth is AgentAuth.BEARER:
            self._judge_bearer(call)
        agent = self.registry.register_agent(public_key, account, now=call.now, origin="registered")
        call.entry.agent_runtime_id = agent.agent_runtime_id
        return as_json({"agent_runtime_id": agent.agent_runtime_id})

    def _register_task(self, call: Call) -> Answer:
        profile = self.profile
        self._check_base(call, profile)
        agent = self.registry.agent(call.route.agent_runtime_id or "")
        call.entry.agent_runtime_id = agent.agent_runtime_id
        call.forbid(_ACCOUNT_HEADER)
        if profile.task_biscuit:
            account = self._check_biscuit(call)
            if account.account_id != agent.account.account_id:
                raise Refusal(401, "account_mismatch", "the biscuit belongs to another account than the agent")
        else:
            call.forbid("authorization")
            call.forbid(BISCUIT_HEADER)
        registration = parse_task_registration(
            parse_json_object(call.header("content-type"), call.body),
            allow_external_task_ref=profile.external_task_ref,
        )
        registration.verify_signature(agent.agent_runtime_id, agent.public_key)
        check_freshness(registration.timestamp, now=call.now, window=self.settings.freshness)
        self._judge_agent(call, agent)
        task = self.registry.register_task(agent, registration.external_task_ref, now=call.now)
        call.entry.account_id = agent.account.account_id
        _note_task(call, task)
        shape = self.settings.task_answer
        value = seal_task_id(task.task_id, agent.public_key) if shape.sealed else task.task_id
        return as_json({shape.value: value})

    def _issue_biscuit(self, call: Call) -> Answer:
        if not self.profile.biscuits:
            raise Refusal(404, "biscuit_not_offered", "this profile has no biscuits")
        account = self._check_bearer(call).account
        call.forbid(BISCUIT_HEADER)
        if not _BISCUIT_REQUEST_ID.fullmatch(call.header("x-request-id") or ""):
            raise Refusal(400, "request_id_invalid", "X-Request-Id must be codex-agent-identity-{16 random bytes}")
        if call.header("x-original-method") != "POST":
            raise Refusal(400, "original_method_invalid", "X-Original-Method must be POST")
        url = call.header("x-original-url")
        if not url:
            raise Refusal(400, "original_url_invalid", "X-Original-Url must name the call to be made")
        self._judge_bearer(call)
        biscuit = self.registry.issue_biscuit(account, method="POST", url=url, now=call.now)
        return as_json({}, headers=((BISCUIT_HEADER, biscuit),))

    def _publish_keys(self, call: Call) -> Answer:
        call.entry.verdict = "not_required"
        return as_json(self.issuer.jwks())

    def _issue_tokens(self, call: Call) -> Answer:
        answer, exchange = self.oauth.token(_body(call), now=call.now)
        call.entry.account_id = exchange.account_id
        return as_json(answer, headers=(("cache-control", "no-store"),))

    def _revoke_token(self, call: Call) -> Answer:
        self.oauth.revoke(_body(call), now=call.now)
        return as_json({})

    def _resource(self, call: Call) -> Answer:
        credentials = call.header("authorization")
        if credentials is None:
            raise Refusal(401, "authorization_missing", "there is no Authorization header")
        scheme = credentials.partition(" ")[0]
        if scheme == ASSERTION_SCHEME:
            seen = self._check_assertion(call, credentials.removeprefix(f"{ASSERTION_SCHEME} "))
        elif scheme == "Bearer":
            bearer = self._check_bearer(call)
            account = bearer.account
            _check_account(call, account, required=bearer.account_header)
            _check_fedramp(call, account)
            self._judge_bearer(call)
            seen = {"kind": "bearer", "account_id": account.account_id, "fedramp": account.fedramp}
        else:
            raise Refusal(401, "scheme_unknown", "the scheme must be AgentAssertion or Bearer, in this spelling")
        return resource_answer(call, seen)

    def _check_base(self, call: Call, profile: Profile) -> None:
        if call.route.base not in profile.bases:
            served = ", ".join(sorted(profile.bases))
            raise Refusal(404, "wrong_base", f"profile {profile.name} serves agent calls under {served}")

    def _check_assertion(self, call: Call, credentials: str) -> dict[str, Any]:
        assertion = parse_assertion(credentials)
        agent = self.registry.agent(assertion.agent_runtime_id)
        call.entry.agent_runtime_id = agent.agent_runtime_id
        assertion.verify_signature(agent.public_key)
        check_freshness(assertion.timestamp, now=call.now, window=self.settings.freshness)
        task = self.registry.task_of(assertion)
        _note_task(call, task)
        call.entry.account_id = agent.account.account_id
        _check_account(call, agent.account, required=self.profile.account_header)
        _check_fedramp(call, agent.account)
        self._judge_agent(call, agent)
        rule = self.claim(Phase.ASSERTION_VERDICT, call)
        if rule is not None and rule.action is Action.STALE_TASK:
            task.stale = True
            raise Refusal(401, "task_stale", "the task is no longer accepted; register a new one")
        if rule is not None:
            raise Refusal(401, "route_rejects_assertions", "this route does not take assertions")
        return {
            "kind": "agent_assertion",
            "agent_runtime_id": agent.agent_runtime_id,
            "task_id": task.task_id,
            "external_task_ref": task.external_task_ref,
            "account_id": agent.account.account_id,
            "fedramp": agent.account.fedramp,
        }

    def _judge_agent(self, call: Call, agent: Agent) -> None:
        """Let a fault decide that an agent, whose signature is good, is accepted nowhere any more."""
        if self.claim(Phase.AGENT_VERDICT, call) is not None:
            agent.dead = True
            raise Refusal(401, "agent_dead", "this agent is no longer accepted; register a new one")

    def _check_bearer(self, call: Call) -> Bearer:
        credentials = call.header("authorization")
        if credentials is None:
            raise Refusal(401, "authorization_missing", "there is no Authorization header")
        scheme, _, token = credentials.partition(" ")
        if scheme != "Bearer":
            raise Refusal(401, "bearer_required", "this call takes a Bearer token")
        bearer = self.bearers.verify(token, call.now)
        call.entry.account_id = bearer.account.account_id
        return bearer

    def _judge_bearer(self, call: Call) -> None:
        """Let a fault refuse a bearer that is good."""
        if self.claim(Phase.BEARER_VERDICT, call) is not None:
            raise Refusal(401, "bearer_rejected", "this bearer is not accepted here")

    def _check_biscuit(self, call: Call) -> Account:
        call.forbid("authorization")
        call.forbid(_FEDRAMP_HEADER)
        biscuit = call.header(BISCUIT_HEADER)
        if biscuit is None:
            raise Refusal(401, "biscuit_missing", "there is no X-OpenAI-Authorization header")
        account = self.registry.spend_biscuit(biscuit, method=call.method, url=call.url, now=call.now)
        call.entry.account_id = account.account_id
        return account


def default_account() -> Account:
    """The account used where none is named."""
    return Account(
        account_id="account-emulator",
        chatgpt_user_id="user-emulator",
        email="emulator@example.com",
        plan_type="business",
    )


def _body(call: Call) -> Body:
    return Body(content_type=call.header("content-type"), content=call.body, authorization=call.header("authorization"))


def _note_task(call: Call, task: Task) -> None:
    call.entry.task_id = task.task_id
    call.entry.external_task_ref = task.external_task_ref


def _check_account(call: Call, account: Account, *, required: bool) -> None:
    """Compare the account header, where the credential's account is known."""
    if account.account_id is None:
        return
    sent = call.header(_ACCOUNT_HEADER)
    if sent is None and required:
        raise Refusal(401, "account_header_missing", "there is no chatgpt-account-id header")
    if sent is not None and sent != account.account_id:
        raise Refusal(401, "account_mismatch", "chatgpt-account-id is not the account of the credential")


def _check_fedramp(call: Call, account: Account) -> None:
    """Demand `x-openai-fedramp: true` for a FedRAMP account and its absence for any other."""
    sent = call.header(_FEDRAMP_HEADER)
    if account.fedramp and sent is None:
        raise Refusal(401, "fedramp_header_missing", "a FedRAMP account must send x-openai-fedramp: true")
    if sent is not None and sent != "true":
        raise Refusal(400, "fedramp_header_invalid", "x-openai-fedramp is true or absent")
    if sent is not None and not account.fedramp:
        raise Refusal(401, "fedramp_header_unexpected", "the account is not a FedRAMP account")
