"""The strict issuer without HTTP: what one refresh token is worth, and what its reuse costs."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest

from broker.auth_json import TokensOnly, parse_auth_json
from broker.emulator import Account, Backend, EmulatorSettings, ErrorStyle, TokenFormat, TokenPair
from broker.emulator.accounts import fingerprint
from broker.emulator.exchanges import Exchange, ExchangeLedger
from broker.emulator.oauth import Body
from broker.emulator.refusal import Refusal

NOW = datetime(2026, 11, 21, tzinfo=UTC)
ACCOUNT = Account(account_id="acc-1", chatgpt_user_id="user-1", email="a@example.com")


@dataclass
class Issuer:
    """A backend whose clock stands still until moved, and the refreshes of a client of it."""

    backend: Backend = field(init=False)
    seconds: float = NOW.timestamp()

    def __post_init__(self) -> None:
        self.backend = Backend(
            EmulatorSettings(port=0, token_format=TokenFormat.OPAQUE), time_source=lambda: self.seconds
        )

    def login(self, **options: Any) -> TokenPair:
        """Log in."""
        return self.backend.mint_token(account=ACCOUNT, **options)

    def refresh(self, refresh_token: Any, **fields: Any) -> dict[str, Any]:
        """Refresh, as Codex does."""
        ask = {"grant_type": "refresh_token", "client_id": "app", "refresh_token": refresh_token, **fields}
        body = Body(content_type="application/json", content=json.dumps(ask).encode(), authorization=None)
        return self.backend.oauth.token(body, now=self.backend.now())[0]

    def refused(self, refresh_token: Any, **fields: Any) -> str:
        """Refresh, which must be refused, and return the precise cause."""
        with pytest.raises(Refusal) as caught:
            self.refresh(refresh_token, **fields)
        return caught.value.code

    def accepts(self, access_token: str) -> bool:
        """Whether the rest of the backend takes an access token."""
        try:
            return self.backend.bearers.verify(access_token, self.backend.now()).account == ACCOUNT
        except Refusal:
            return False

    def change(self, **settings: Any) -> None:
        """Turn a switch."""
        self.backend.change(**settings)

    @property
    def damage(self) -> tuple[int, int]:
        """How many double uses there were, and how many logins ended."""
        return self.backend.exchanges.double_uses, self.backend.exchanges.families_revoked


@pytest.fixture
def issuer() -> Issuer:
    """An issuer with opaque tokens."""
    return Issuer()


def test_a_refresh_spends_its_token_for_the_next(issuer: Issuer) -> None:
    """Each token works once and gives the next; access tokens given before stay good."""
    login = issuer.login()
    first = issuer.refresh(login.refresh_token)
    second = issuer.refresh(first["refresh_token"])
    tokens = (login.refresh_token, first["refresh_token"], second["refresh_token"])
    assert len(set(tokens)) == 3
    assert all(map(issuer.accepts, (login.access_token, first["access_token"], second["access_token"])))
    generations = [exchange.generation for exchange in issuer.backend.exchanges.entries(grant="refresh_token")]
    assert (generations, issuer.damage) == ([0, 1], (0, 0))


def test_one_reuse_ends_the_whole_family(issuer: Issuer) -> None:
    """The spent token is named as reused, the newest token is worth nothing from then on, other logins live."""
    login, other = issuer.login(), issuer.login()
    newest = issuer.refresh(login.refresh_token)
    assert issuer.refused(login.refresh_token) == "refresh_token_reused"
    assert issuer.refused(newest["refresh_token"]) == "refresh_token_invalidated"
    assert issuer.refused(login.refresh_token) == "refresh_token_reused"
    assert issuer.refresh(other.refresh_token)["access_token"]
    assert issuer.damage == (2, 1)
    assert [family.ended_by for family in issuer.backend.oauth.families] == ["reuse", None]


def test_access_tokens_outlive_their_family_unless_told_otherwise(issuer: Issuer) -> None:
    """By default they go on until they expire; with the switch they die with the login, and only with it."""
    lenient, other = issuer.login(), issuer.login()
    issuer.refresh(lenient.refresh_token)
    issuer.refused(lenient.refresh_token)
    assert issuer.accepts(lenient.access_token)
    issuer.change(revocation_ends_access_tokens=True)
    strict = issuer.login()
    fresh = issuer.refresh(strict.refresh_token)
    issuer.refused(strict.refresh_token)
    assert [issuer.accepts(token) for token in (strict.access_token, fresh["access_token"])] == [False, False]
    assert issuer.accepts(other.access_token)


def test_without_family_revocation_only_the_spent_token_is_refused(issuer: Issuer) -> None:
    """The newest token goes on working, and the double use is counted all the same."""
    issuer.change(family_revocation=False)
    login = issuer.login()
    newest = issuer.refresh(login.refresh_token)
    assert issuer.refused(login.refresh_token) == "refresh_token_reused"
    assert issuer.refresh(newest["refresh_token"])["access_token"]
    assert issuer.damage == (1, 0)


def test_an_issuer_that_does_not_rotate_leaves_the_refresh_token_out(issuer: Issuer) -> None:
    """The answer holds no refresh token, the old one works again and again, and nothing counts as reuse."""
    issuer.change(rotate_refresh_tokens=False)
    login = issuer.login()
    answers = [issuer.refresh(login.refresh_token) for _ in range(2)]
    assert ["refresh_token" in answer for answer in answers] == [False, False]
    assert answers[0]["access_token"] != answers[1]["access_token"]
    assert issuer.damage == (0, 0)


def test_within_the_grace_the_same_pair_is_answered_again(issuer: Issuer) -> None:
    """A repeat gets the same tokens with the time that is left of them, and ends nothing."""
    issuer.change(reuse_grace_seconds=10)
    login = issuer.login()
    answer = issuer.refresh(login.refresh_token)
    issuer.seconds += 9
    assert issuer.refresh(login.refresh_token) == {**answer, "expires_in": answer["expires_in"] - 9}
    last = list(issuer.backend.exchanges.entries())[-1]
    assert (last.outcome, last.reused, last.issued_refresh) == ("repeated", True, fingerprint(answer["refresh_token"]))
    assert issuer.damage == (1, 0)


@pytest.mark.parametrize("ending", ["the time is over", "the next token was used", "the token before the last"])
def test_the_grace_has_ends(issuer: Issuer, ending: str) -> None:
    """After the grace, or once the next token was used, a repeat is a reuse like any other."""
    issuer.change(reuse_grace_seconds=10)
    login = issuer.login()
    newest = issuer.refresh(login.refresh_token)["refresh_token"]
    if ending == "the time is over":
        issuer.seconds += 10
    else:
        newest = issuer.refresh(newest)["refresh_token"]
        if ending == "the token before the last":
            newest = issuer.refresh(newest)["refresh_token"]
    assert issuer.refused(login.refresh_token) == "refresh_token_reused"
    assert issuer.refused(newest) == "refresh_token_invalidated"


def test_a_refresh_token_expires_unspent(issuer: Issuer) -> None:
    """From the end of its lifetime on it is expired, which is neither a reuse nor the end of anything."""
    issuer.change(refresh_token_seconds=60)
    login, lasting = issuer.login(), issuer.login(refresh_lifetime=timedelta(seconds=61))
    issuer.seconds += 60
    assert issuer.refused(login.refresh_token) == "refresh_token_expired"
    assert issuer.refresh(lasting.refresh_token)["access_token"]
    assert issuer.damage == (0, 0)


def test_a_spent_token_is_a_reuse_however_old_it_is(issuer: Issuer) -> None:
    """Expiry does not hide that it was spent."""
    issuer.change(refresh_token_seconds=60)
    login = issuer.login()
    issuer.refresh(login.refresh_token)
    issuer.seconds += 3600
    assert issuer.refused(login.refresh_token) == "refresh_token_reused"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"refresh_token": "rt_never_issued"}, "refresh_token_invalidated"),
        ({"refresh_token": ""}, "invalid_request"),
        ({"refresh_token": 5}, "invalid_request"),
        ({"refresh_token": None}, "invalid_request"),
        ({"client_id": ""}, "invalid_request"),
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({"grant_type": ""}, "invalid_request"),
    ],
    ids=str,
)
def test_what_is_no_refresh_is_refused_and_spends_nothing(issuer: Issuer, fields: Any, code: str) -> None:
    """A wrong request has its own code, and the right one afterwards works."""
    login = issuer.login()
    assert issuer.refused(**{"refresh_token": login.refresh_token, **fields}) == code
    assert issuer.refresh(login.refresh_token)["access_token"]


def test_lifetimes_are_the_logins_own_or_the_settings(issuer: Issuer) -> None:
    """A login that asked for a lifetime keeps it through refreshes; any other follows the settings of the day."""
    own, any_ = issuer.login(lifetime=timedelta(seconds=90)), issuer.login()
    issuer.change(access_token_seconds=30)
    answers = [issuer.refresh(pair.refresh_token)["expires_in"] for pair in (own, any_)]
    assert (own.expires_in, any_.expires_in, answers) == (90, 3600, [90, 30])


@pytest.mark.parametrize(
    ("style", "status", "body"),
    [
        (ErrorStyle.NESTED_CODE, 401, {"error": {"code": "refresh_token_reused", "message": "MESSAGE"}}),
        (ErrorStyle.ERROR_STRING, 401, {"error": "refresh_token_reused", "error_description": "MESSAGE"}),
        (ErrorStyle.TOP_LEVEL_CODE, 401, {"code": "refresh_token_reused", "message": "MESSAGE"}),
        (ErrorStyle.INVALID_GRANT, 400, {"error": "invalid_grant", "error_description": "MESSAGE"}),
    ],
)
def test_a_refusal_is_said_in_the_style_that_is_set(
    issuer: Issuer, style: ErrorStyle, status: int, body: dict[str, Any]
) -> None:
    """The cause stands where the style has it, or nowhere; the ledger knows it in every style."""
    issuer.change(refresh_error_style=style)
    login = issuer.login()
    issuer.refresh(login.refresh_token)
    with pytest.raises(Refusal) as caught:
        issuer.refresh(login.refresh_token)
    expected = json.loads(json.dumps(body).replace("MESSAGE", caught.value.message))
    assert (caught.value.status, caught.value.as_json()) == (status, expected)
    assert issuer.backend.exchanges.count("refresh_token", "refresh_token_reused") == 1


def test_a_login_may_belong_to_one_client(issuer: Issuer) -> None:
    """Another client cannot refresh it, which costs the owner nothing."""
    login = issuer.login(client_id="owner")
    assert issuer.refused(login.refresh_token, client_id="thief") == "refresh_token_of_other_client"
    assert issuer.refresh(login.refresh_token, client_id="owner")["access_token"]


def test_a_client_with_a_secret_must_prove_itself_to_refresh(issuer: Issuer) -> None:
    """The name alone is not enough where the client has a secret."""
    login = issuer.login(client_id="client-emulator")
    assert issuer.refused(login.refresh_token, client_id="client-emulator") == "invalid_client"
    proof = {"client_id": "client-emulator", "client_secret": "secret-emulator"}
    assert issuer.refresh(login.refresh_token, **proof)["access_token"]


@pytest.mark.parametrize(("form", "id_token"), [(TokenFormat.JWT, True), (TokenFormat.OPAQUE, False)])
def test_an_opaque_issuer_leaves_the_id_token_as_it_was(issuer: Issuer, form: TokenFormat, id_token: bool) -> None:
    """Access tokens are JWTs or not, as set; a refresh without a JWT carries no id token, a login always does."""
    issuer.change(token_format=form)
    login = issuer.login()
    answer = issuer.refresh(login.refresh_token)
    assert (answer["access_token"].count(".") == 2, "id_token" in answer) == (id_token, id_token)
    assert login.id_token is not None
    claims = jwt.decode(login.id_token, options={"verify_signature": False})
    assert claims["https://api.openai.com/auth"]["chatgpt_account_id"] == "acc-1"


@pytest.mark.parametrize("form", TokenFormat)
def test_auth_json_is_one_that_an_importer_reads(issuer: Issuer, form: TokenFormat) -> None:
    """The broker's own reader finds account, user and all tokens in it."""
    issuer.change(token_format=form)
    login = issuer.login()
    read = parse_auth_json(login.auth_json().encode())
    assert isinstance(read, TokensOnly)
    tokens = read.tokens
    assert tokens.refresh_token is not None
    assert (tokens.access_token.reveal(), tokens.refresh_token.reveal()) == (login.access_token, login.refresh_token)
    assert (tokens.account_id, tokens.claims.unverified_user_id) == ("acc-1", "user-1")


def test_the_exchange_ledger_says_all_but_the_secrets(issuer: Issuer) -> None:
    """Login, refresh and reuse stand in it in order, each with its family, place in it, and fingerprints."""
    login = issuer.login()
    answer = issuer.refresh(login.refresh_token)
    issuer.refused(login.refresh_token)
    spent, newest = fingerprint(login.refresh_token or ""), fingerprint(answer["refresh_token"])
    known = {"time": "2026-11-21T00:00:00+00:00", "family": "family-1", "subject": "user-1", "account_id": "acc-1"}
    asked = {**known, "grant": "refresh_token", "client_id": "app", "presented": spent, "generation": 0}
    access = [fingerprint(login.access_token), fingerprint(answer["access_token"])]
    expected = [
        Exchange(seq=1, **known, grant="login", issued_access=access[0], issued_refresh=spent),
        Exchange(seq=2, **asked, issued_access=access[1], issued_refresh=newest),
        Exchange(seq=3, **asked, outcome="refresh_token_reused", reused=True),
    ]
    assert list(issuer.backend.exchanges.entries()) == expected
    shown = json.dumps(issuer.backend.exchanges.as_json())
    secrets = (login.refresh_token, login.access_token, answer["refresh_token"], answer["access_token"])
    assert [secret for secret in secrets if secret in shown] == []


def test_the_exchange_ledger_forgets_entries_but_no_totals() -> None:
    """Beyond its capacity the oldest entries go; what was counted stays, and `since` still finds its place."""
    ledger = ExchangeLedger(capacity=2)
    for number in range(5):
        ledger.append(Exchange(grant="refresh_token", reused=number % 2 == 0), now=NOW)
    assert ([exchange.seq for exchange in ledger.entries()], ledger.dropped) == ([4, 5], 3)
    assert [exchange.seq for exchange in ledger.entries(since=4)] == [5]
    assert list(ledger.entries(since=5)) == []
    assert (ledger.count("refresh_token"), ledger.count("refresh_token", "issued"), ledger.double_uses) == (5, 5, 3)
    assert (ledger.count("login"), ledger.as_json(since=5)["totals"]) == (0, {"refresh_token": {"issued": 5}})
