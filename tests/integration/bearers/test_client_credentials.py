"""The client credentials grant for real: against the emulator's strict issuer, over HTTP."""

import base64
from pathlib import Path
from typing import Any

import pytest

from broker.bearer import Phase
from broker.bearer.token_endpoint import Client, ProofFile
from broker.emulator.clients import DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET, ClientAuth
from broker.errors import IssuerDownError, ReauthRequiredError
from tests.support.brokers import running_emulator
from tests.support.clocks import JumpingClock
from tests.support.sources import accepted, opened, secret_file

GRANT = "client_credentials"


def section(url: str, folder: Path, **more: Any) -> dict[str, Any]:
    """Return the settings of a source at the emulator's default client."""
    return {
        "type": "client_credentials",
        "token_url": f"{url}/oauth/token",
        "client_id": DEFAULT_CLIENT_ID,
        "client_secret_file": secret_file(folder / "secret", f"{DEFAULT_CLIENT_SECRET}\n"),
        **more,
    }


async def test_a_token_is_obtained_and_accepted(tmp_path: Path) -> None:
    """What was asked for is what the issuer was told, the end is what it said, and a backend takes the token."""
    async with running_emulator() as emulator:
        asked = section(
            emulator.url, tmp_path, scopes=["backend.read"], audience="backend", resource="https://backend.example/"
        )
        clock = JumpingClock()
        async with opened(clock=clock, service=asked) as sources:
            before = clock.now()
            bearer = await sources["service"].refresh()
            assert bearer.obtain_time is not None
            assert before <= bearer.obtain_time <= clock.now()
            # The token says whole seconds, the answer says how many from the request: the earlier counts.
            assert bearer.expire_time == pytest.approx(bearer.obtain_time + 3600, abs=1.0)
            assert sources["service"].phase(clock.now()) is Phase.FRESH
        assert await accepted(emulator.url, bearer) == 200
        (exchange,) = emulator.backend.exchanges.entries(grant=GRANT)
        assert (exchange.outcome, exchange.client_id, exchange.scope, exchange.audience) == (
            "issued",
            DEFAULT_CLIENT_ID,
            "backend.read",
            "backend",
        )


@pytest.mark.parametrize("auth", ["basic", "post"])
async def test_the_secret_is_shown_as_configured(tmp_path: Path, auth: str) -> None:
    """Each way works with a client that may use no other; id and secret may hold what a form must encode."""
    async with running_emulator() as emulator:
        registered = emulator.backend.oauth.clients.register(
            client_id="team a/b:c+%", client_secret="s:e%+&=c/r?t#", auth=ClientAuth(f"client_secret_{auth}")
        )
        one = section(emulator.url, tmp_path, client_id=registered.client_id, auth=auth)
        secret_file(tmp_path / "secret", registered.client_secret)
        async with opened(service=one) as sources:
            assert await accepted(emulator.url, await sources["service"].refresh()) == 200


@pytest.mark.parametrize("auth", ["basic", "post"])
async def test_the_secret_hides_on_its_way(tmp_path: Path, auth: Any) -> None:
    """Neither header nor form field can be printed by accident: they are revealed only to be sent."""
    client = Client("c", ProofFile(Path(secret_file(tmp_path / "secret", "canary-secret"))), auth)
    printed = f"{await client.proof()} {client!r} {vars(client.secret_file)}"
    assert "canary" not in printed
    assert base64.b64encode(b"c:canary-secret").decode() not in printed


async def test_a_token_is_renewed_before_it_ends(tmp_path: Path) -> None:
    """In the advisory window a refresh ahead brings the next one; meanwhile the old one is served."""
    async with running_emulator() as emulator:
        clock = JumpingClock()
        async with opened(clock=clock, service=section(emulator.url, tmp_path)) as sources:
            source = sources["service"]
            first = await source.refresh()
            clock.ahead += 3600 - 300
            assert source.phase(clock.now()) is Phase.ADVISORY
            source.refresh_soon()
            assert source.current() is first
            second = await source.refresh()
            assert second.token != first.token
            assert emulator.backend.exchanges.count(GRANT, "issued") == 2


async def test_a_rejected_token_is_replaced(tmp_path: Path) -> None:
    """Who names the rejected token gets another; who names it again gets that one with no exchange."""
    async with running_emulator() as emulator, opened(service=section(emulator.url, tmp_path)) as sources:
        old = await sources["service"].refresh()
        new = await sources["service"].refresh(beyond=old)
        assert new.token != old.token
        assert await sources["service"].refresh(beyond=old) == new
        assert emulator.backend.exchanges.count(GRANT) == 2


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"client_id": "nobody"}, "invalid_client"),
        ({"scopes": ["everything"]}, "invalid_scope"),
    ],
    ids=["client", "scope"],
)
async def test_a_refusal_is_for_good(tmp_path: Path, changes: dict[str, Any], code: str) -> None:
    """A 4xx needs a person: later tries fail without asking the issuer again."""
    async with running_emulator() as emulator:
        clock = JumpingClock()
        async with opened(clock=clock, service=section(emulator.url, tmp_path, **changes)) as sources:
            for _ in range(3):
                with pytest.raises(ReauthRequiredError) as caught:
                    await sources["service"].refresh()
                assert code in caught.value.note
                clock.ahead += 3600
            assert emulator.backend.exchanges.count(GRANT) == 1


async def test_a_new_secret_heals(tmp_path: Path) -> None:
    """A rotated secret is refused, remembered, and tried again once the file holds another one."""
    async with running_emulator() as emulator:
        clock = JumpingClock()
        async with opened(clock=clock, service=section(emulator.url, tmp_path)) as sources:
            secret_file(tmp_path / "secret", "yesterdays-secret")
            for _ in range(2):
                with pytest.raises(ReauthRequiredError):
                    await sources["service"].refresh()
                clock.ahead += 60
            assert emulator.backend.exchanges.count(GRANT) == 1
            secret_file(tmp_path / "secret", DEFAULT_CLIENT_SECRET)
            assert await accepted(emulator.url, await sources["service"].refresh()) == 200


@pytest.mark.parametrize(
    ("content", "error"),
    [(None, IssuerDownError), ("two words", ReauthRequiredError), ("", ReauthRequiredError)],
    ids=["missing", "two words", "empty"],
)
async def test_nothing_is_asked_without_a_usable_secret(
    tmp_path: Path, content: str | None, error: type[Exception]
) -> None:
    """A secret that is not there yet may come; one that is no secret needs a person. Either heals by itself."""
    async with running_emulator() as emulator:
        clock = JumpingClock()
        async with opened(clock=clock, service=section(emulator.url, tmp_path)) as sources:
            if content is None:
                (tmp_path / "secret").unlink()
            else:
                secret_file(tmp_path / "secret", content)
            with pytest.raises(error):
                await sources["service"].refresh()
            assert emulator.backend.exchanges.count(GRANT) == 0
            secret_file(tmp_path / "secret", DEFAULT_CLIENT_SECRET)
            clock.ahead += 60
            await sources["service"].refresh()


async def test_the_issuers_short_tokens_are_used_to_their_end(tmp_path: Path) -> None:
    """A token of 20 s is due in its second half and never after its margin."""
    async with running_emulator(access_token_seconds=20.0) as emulator:
        clock = JumpingClock()
        async with opened(clock=clock, service=section(emulator.url, tmp_path)) as sources:
            bearer = await sources["service"].refresh()
            assert sources["service"].phase(clock.now()) is Phase.FRESH
            assert bearer.expire_time is not None
            assert sources["service"].phase(bearer.expire_time - 9) is Phase.MANDATORY
            assert sources["service"].phase(bearer.expire_time - 5) is Phase.ABSENT


async def test_an_opaque_token_lives_as_long_as_the_answer_says(tmp_path: Path) -> None:
    """Without claims in the token the answer's `expires_in` is its end."""
    async with (
        running_emulator(token_format="opaque", access_token_seconds=600.0) as emulator,
        opened(service=section(emulator.url, tmp_path, lifetime_seconds=5)) as sources,
    ):
        bearer = await sources["service"].refresh()
        assert bearer.expire_time == (bearer.obtain_time or 0) + 600
