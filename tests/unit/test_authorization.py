"""The authorizer over a real store and a scripted backend: which identity, how long, under which names, how often signed."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from broker import errors
from broker.audit import AuditLog
from broker.authorization import AuthorizationRequest, AuthorizationSettings, Authorizer
from broker.bearer import EXPIRY_MARGIN_SECONDS, Bearer
from broker.bearer.static import StaticSource
from broker.enrollment import NamedSource
from broker.errors import BrokerError
from broker.model import (
    Authorization,
    Caller,
    CredentialKind,
    DecisionReason,
    IdentityName,
    IdentityState,
    ScopeName,
    Secret,
)
from broker.scopes import ScopeOverride, build_catalogue
from broker.snapshots import DELETED_REMEMBERED_SECONDS
from tests.support.stores import NOW
from tests.support.workshop import Workshop, plain, workshop

CALLER = Caller("spiffe://one", "test")
OTHER = Caller("spiffe://other", "test")


@dataclass(frozen=True)
class Call:
    """A call as the edge hands it on."""

    caller: Caller
    request_id: str = "r"


class Desk:
    """An authorizer with a way to ask it."""

    def __init__(self, shop: Workshop, folder: Path) -> None:
        self.shop = shop
        self.audit = AuditLog(folder / "audit.jsonl", shop.clock, shop.metrics)

    def authorizer(self, scopes: dict[str, ScopeOverride] | None = None, **settings: Any) -> Authorizer:
        """Make an authorizer, as each replica has one."""
        wanted: dict[str, Any] = {
            "default_identity": None,
            "grant_bootstrap": True,
            "max_lease": 300.0,
            "max_staleness": 3600.0,
        }
        apis: Any = {"default": self.shop.api}
        return Authorizer(
            snapshots=self.shop.snapshots,
            registrar=self.shop.registrar,
            lifetimes=self.shop.lifetimes,
            scopes=build_catalogue(scopes or {}),
            apis=apis,
            keyring=self.shop.keyring,
            audit=self.audit,
            clock=self.shop.clock,
            metrics=self.shop.metrics,
            settings=AuthorizationSettings(**wanted | settings),
            jitter=random.Random(1),
        )

    async def ask(
        self,
        authorizer: Authorizer,
        scope: str = "inference",
        thread: str = "t",
        *,
        caller: Caller = CALLER,
        min_validity: float = 0.0,
        **fields: str,
    ) -> Authorization:
        """Ask for an authorization with patience."""
        request = AuthorizationRequest(ScopeName(scope), thread, **fields)
        deadline = self.shop.clock.monotonic() + 10
        answer = await authorizer.authorize(Call(caller), request, min_validity=min_validity, deadline=deadline)
        return answer.authorization

    async def refuse(self, authorizer: Authorizer, *arguments: Any, **fields: Any) -> type[BrokerError]:
        """Ask for what is refused and return the outcome."""
        with pytest.raises(BrokerError) as caught:
            await self.ask(authorizer, *arguments, **fields)
        return type(caught.value)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    """A desk over an empty store whose backend registers everything."""
    async with workshop(tmp_path) as shop:
        shop.api.tasks.append(plain("upstream-task-1"))
        made = Desk(shop, tmp_path)
        await made.audit.open()
        await shop.snapshots.warm_up()
        yield made
        await made.audit.close()


async def test_the_identity_is_the_named_one_else_a_default_else_the_only_one(desk: Desk) -> None:
    """Never the first of several: with two and no default the call is refused, and an unknown name says nothing more."""
    authorizer = desk.authorizer()
    assert await desk.refuse(authorizer) is errors.NotAllowedError
    await desk.shop.agent("one")
    assert (await desk.ask(authorizer)).identity == "one"
    await desk.shop.agent("two")
    assert await desk.refuse(authorizer) is errors.IdentityRequiredError
    assert (await desk.ask(authorizer, identity="two")).identity == "two"
    assert (await desk.ask(desk.authorizer(default_identity="two"))).identity == "two"
    own = replace(CALLER, default_identity=IdentityName("one"))
    assert (await desk.ask(desk.authorizer(default_identity="two"), caller=own)).identity == "one"
    assert await desk.refuse(authorizer, identity="three") is errors.NotAllowedError


async def test_equal_calls_of_a_second_share_one_signature(desk: Desk) -> None:
    """Within a second two scopes of one task give the same bytes, signed once; the next second signs anew."""
    authorizer = desk.authorizer()
    await desk.shop.agent()
    first = await desk.ask(authorizer)
    again = await desk.ask(authorizer, "thread.files")
    assert again.headers[0].value == first.headers[0].value
    assert desk.shop.tally("credential_broker_signatures_total") == 1
    desk.shop.clock.pass_(1)
    later = await desk.ask(authorizer)
    assert later.headers[0].value != first.headers[0].value
    assert (later.revision, later.connection_tag) == (first.revision, first.connection_tag)
    assert desk.shop.tally("credential_broker_signatures_total") == 2


async def test_when_it_was_used_is_forgotten_with_the_identity(desk: Desk) -> None:
    """What is kept by identity does not grow with identities of the past: it goes when a deleted one is forgotten."""
    authorizer, shop = desk.authorizer(), desk.shop
    view = await shop.agent()
    await desk.ask(authorizer)
    assert authorizer.last_use(view.identity.id) == shop.clock.now()
    await shop.enroller.delete(view.identity)
    assert authorizer.last_use(view.identity.id) is not None
    shop.clock.pass_(DELETED_REMEMBERED_SECONDS)
    await shop.snapshots.follow()
    assert authorizer.last_use(view.identity.id) is None


async def test_no_answer_is_repeated_past_its_end(desk: Desk) -> None:
    """A bearer that ends in the midst of a second is not handed out again in the rest of it."""
    authorizer, clock = desk.authorizer(), desk.shop.clock
    desk.shop.sources["vault"] = StaticSource(Bearer(Secret("sk"), clock.now() + EXPIRY_MARGIN_SECONDS + 0.4), clock)
    desk.shop.api.agents.append("runtime-1")
    await desk.shop.create(bearer=NamedSource("vault"))
    answer = await desk.ask(authorizer, "bootstrap")
    assert (await desk.ask(authorizer, "bootstrap")).revision == answer.revision
    clock.pass_(0.5)
    assert await desk.refuse(authorizer, "bootstrap") is errors.ReauthRequiredError


async def test_a_change_is_seen_within_the_second(desk: Desk) -> None:
    """What was answered is not given again once anything changed, were it in the same second."""
    authorizer = desk.authorizer()
    view = await desk.shop.agent()
    await desk.ask(authorizer)
    disabled = await desk.shop.store.write_identity(replace(view.identity, state=IdentityState.DISABLED))
    desk.shop.snapshots.publish_identity(disabled)
    assert await desk.refuse(authorizer) is errors.IdentityRevokedError


async def test_a_revision_is_the_callers_own(desk: Desk) -> None:
    """It differs by principal, is the same on every replica, fits its limit and shows neither task nor identity."""
    await desk.shop.agent()
    one, replica = desk.authorizer(), desk.authorizer()
    mine = (await desk.ask(one)).revision
    assert mine == (await desk.ask(replica)).revision
    assert mine != (await desk.ask(one, caller=OTHER)).revision
    assert mine != (await desk.ask(one, "bootstrap")).revision
    assert len(mine) <= 128
    assert "upstream-task-1" not in mine
    first, other = await desk.ask(one), await desk.ask(one, caller=OTHER)
    assert first.connection_tag == other.connection_tag != (await desk.ask(one, "bootstrap")).connection_tag


async def test_an_authorization_ends_at_the_earliest_of_its_ends(desk: Desk) -> None:
    """The profile's lifetime, the lease, the scope's bound and the login's end: the earliest holds."""
    view = await desk.shop.agent()
    assert (await desk.ask(desk.authorizer())).expire_time == NOW + 60
    assert (await desk.ask(desk.authorizer(), "bootstrap")).expire_time == NOW + 300
    assert (await desk.ask(desk.authorizer(max_lease=20.0))).expire_time == NOW + 20
    short = {"inference": ScopeOverride(max_lifetime=10.0)}
    answer = await desk.ask(desk.authorizer(short))
    assert answer.expire_time == NOW + 10
    assert NOW + 4 < answer.refresh_time < NOW + 6
    ending = await desk.shop.store.write_identity(replace(view.identity, expire_time=NOW + 7.5))
    desk.shop.snapshots.publish_identity(ending)
    answer = await desk.ask(desk.authorizer())
    assert (answer.expire_time, answer.offline_serving_until_time) == (NOW + 7.5, NOW + 7.5)
    desk.shop.clock.pass_(7.5)
    assert await desk.refuse(desk.authorizer()) is errors.ReauthRequiredError


async def test_a_wanted_validity_is_had_or_refused(desk: Desk) -> None:
    """What does not live that long is refused, by the caller's wish and by the scope's own bound."""
    await desk.shop.agent()
    authorizer = desk.authorizer({"thread.files": ScopeOverride(min_lifetime=61.0)})
    assert (await desk.ask(authorizer, min_validity=60.0)).expire_time == NOW + 60
    assert await desk.refuse(authorizer, min_validity=60.5) is errors.MinValidityTooLongError
    assert await desk.refuse(authorizer, "thread.files") is errors.MinValidityTooLongError


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({"scope": "no.such"}, errors.ScopeUnknownError),
        ({"thread": ""}, errors.ThreadIdRequiredError),
        ({"expected_account_id": "other"}, errors.AccountMismatchError),
        ({"target_url": "https://evil.example/x"}, errors.TargetNotAllowedError),
        ({"target_url": "https://backend.example.evil.example/"}, errors.TargetNotAllowedError),
    ],
)
async def test_a_request_that_does_not_fit_gets_nothing(
    desk: Desk, fields: dict[str, Any], outcome: type[BrokerError]
) -> None:
    """No header leaves, no task is registered."""
    await desk.shop.agent()
    assert await desk.refuse(desk.authorizer(), **fields) is outcome
    assert desk.shop.api.count("task") == 0


async def test_bootstrap_needs_its_grant(desk: Desk) -> None:
    """What the broker registers with is given to callers only where the configuration says so, and not listed else."""
    await desk.shop.agent()
    closed = desk.authorizer(grant_bootstrap=False)
    assert await desk.refuse(closed, "bootstrap.token_refresh") is errors.NotAllowedError
    assert not any(rule.is_bootstrap for rule in closed.rules())
    answer = await desk.ask(desk.authorizer(), "bootstrap.token_refresh")
    assert (answer.kind, answer.reason) == (CredentialKind.BEARER, DecisionReason.SCOPE_IS_BEARER_ONLY)


async def test_a_caller_that_runs_out_of_time_is_told_so_and_the_registration_goes_on(desk: Desk) -> None:
    """At its deadline a caller is answered by its column; the task is there for the next one."""
    gate = asyncio.Event()

    async def slowly() -> Any:
        await gate.wait()
        return plain("late")

    desk.shop.api.tasks.clear()
    desk.shop.api.tasks.append(slowly)
    await desk.shop.agent()
    authorizer = desk.authorizer()
    request = AuthorizationRequest(ScopeName("inference"), "t")
    with pytest.raises(errors.RegistrationInProgressError):
        await authorizer.authorize(Call(CALLER), request, min_validity=0, deadline=desk.shop.clock.monotonic() + 0.15)
    gate.set()
    assert (await desk.ask(authorizer)).kind is CredentialKind.AGENT_ASSERTION
    assert desk.shop.api.count("task") == 1


async def test_explaining_changes_nothing(desk: Desk) -> None:
    """The account ends with the row that decides, and neither registers nor records nor counts."""
    await desk.shop.agent()
    explanation = await desk.authorizer().explain(CALLER, AuthorizationRequest(ScopeName("inference"), "t"))
    assert explanation.steps[-1].held
    assert explanation.steps[-1].number == 11
    assert desk.shop.api.count("task") == 0
    assert desk.shop.tally("credential_broker_signatures_total") == 0
