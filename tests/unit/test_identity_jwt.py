"""Agent Identity JWTs: a table of bad tokens, and the cache of the issuer's keys."""

import asyncio
import hmac
import json
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from broker.clock import Clock
from broker.identity_jwt import (
    AUDIENCE,
    ISSUER,
    KEY_SET_LIFETIME,
    KEY_SET_MAX_STALENESS,
    MIN_REFETCH_INTERVAL,
    IdentityJwtError,
    JwksCache,
    JwksError,
    JwkSet,
    JwtProblem,
    VerifiedIdentityClaims,
    peek,
    verify,
)
from broker.model import Secret

NOW = 1_790_000_000.0
KEY = rsa.generate_private_key(65_537, 2048)
OTHER_KEY = rsa.generate_private_key(65_537, 2048)
CANARY = "MFECAQEwBQYDK2VwBCIEIcanary"

HEADER: dict[str, Any] = {"alg": "RS256", "typ": "JWT", "kid": "key-1"}
CLAIMS: dict[str, Any] = {
    "iss": ISSUER,
    "aud": AUDIENCE,
    "iat": NOW - 10,
    "exp": NOW + 3600,
    "agent_runtime_id": "agent-1",
    "agent_private_key": CANARY,
    "account_id": "account-1",
    "chatgpt_user_id": "user-1",
    "email": "a@example.com",
    "plan_type": "hc",
    "chatgpt_account_is_fedramp": True,
}


def encode(data: bytes) -> str:
    """Encode as a part of a token."""
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def compact(value: object) -> bytes:
    """Write JSON."""
    return json.dumps(value).encode()


def number(value: int) -> str:
    """Write a big integer as a JWK does."""
    return encode(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def jwk(key: rsa.RSAPrivateKey = KEY, **changes: object) -> dict[str, object]:
    """Return a public key as an entry of the issuer's document; a change to None leaves a member out."""
    numbers = key.public_key().public_numbers()
    entry = {"kty": "RSA", "kid": "key-1", "use": "sig", "alg": "RS256", "n": number(numbers.n), "e": number(numbers.e)}
    return {name: value for name, value in (entry | changes).items() if value is not None}


def sign(
    payload: bytes,
    header: bytes = compact(HEADER),
    key: rsa.RSAPrivateKey = KEY,
    digest: hashes.HashAlgorithm | None = None,
) -> str:
    """Return a token over exactly these bytes."""
    signing_input = f"{encode(header)}.{encode(payload)}"
    signature = key.sign(signing_input.encode(), padding.PKCS1v15(), digest or hashes.SHA256())
    return f"{signing_input}.{encode(signature)}"


def token(header: Mapping[str, Any] | None = None, **claims: object) -> str:
    """Return a properly signed token with some claims or header members replaced, or left out with None."""
    payload = {name: value for name, value in (CLAIMS | claims).items() if value is not None}
    head = {name: value for name, value in (HEADER | dict(header or {})).items() if value is not None}
    return sign(compact(payload), compact(head))


def hmac_token(algorithm: str, digest: str, secret: bytes) -> str:
    """Return a token whose HMAC key is something public."""
    signing_input = f"{encode(compact(HEADER | {'alg': algorithm}))}.{encode(compact(CLAIMS))}"
    return f"{signing_input}.{encode(hmac.digest(secret, signing_input.encode(), digest))}"


def ec_token() -> str:
    """Return a token signed with ES256."""
    signing_input = f"{encode(compact(HEADER | {'alg': 'ES256'}))}.{encode(compact(CLAIMS))}"
    signature = ec.generate_private_key(ec.SECP256R1()).sign(signing_input.encode(), ec.ECDSA(hashes.SHA256()))
    return f"{signing_input}.{encode(signature)}"


PUBLIC_PEM = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
KEYS = JwkSet.from_document({"keys": [jwk()]})
GOOD = token()
HEAD, BODY, SIGNATURE = GOOD.split(".")
P = JwtProblem

BAD: dict[str, tuple[str, JwtProblem]] = {
    # not signed by the issuer's key with RS256
    "alg none": (f"{encode(compact(HEADER | {'alg': 'none'}))}.{BODY}.", P.NOT_A_JWT),
    "alg none with a signature": (f"{encode(compact(HEADER | {'alg': 'none'}))}.{BODY}.{SIGNATURE}", P.ALGORITHM),
    "alg None": (f"{encode(compact(HEADER | {'alg': 'None'}))}.{BODY}.{SIGNATURE}", P.ALGORITHM),
    "alg nOnE": (f"{encode(compact(HEADER | {'alg': 'nOnE'}))}.{BODY}.{SIGNATURE}", P.ALGORITHM),
    "alg empty": (token({"alg": ""}), P.ALGORITHM),
    "alg missing": (token({"alg": None}), P.ALGORITHM),
    "alg a list": (token({"alg": ["RS256"]}), P.ALGORITHM),
    "alg rs256": (token({"alg": "rs256"}), P.ALGORITHM),
    "alg RS256 with a space": (token({"alg": "RS256 "}), P.ALGORITHM),
    "HS256 with the public key": (hmac_token("HS256", "sha256", PUBLIC_PEM), P.ALGORITHM),
    "HS384 with the public key": (hmac_token("HS384", "sha384", PUBLIC_PEM), P.ALGORITHM),
    "HS256 with the modulus": (hmac_token("HS256", "sha256", str(jwk()["n"]).encode()), P.ALGORITHM),
    "HS256 with nothing": (hmac_token("HS256", "sha256", b""), P.ALGORITHM),
    "HMAC that calls itself RS256": (hmac_token("RS256", "sha256", PUBLIC_PEM), P.SIGNATURE),
    "RS512": (sign(compact(CLAIMS), compact(HEADER | {"alg": "RS512"}), digest=hashes.SHA512()), P.ALGORITHM),
    "RS384": (sign(compact(CLAIMS), compact(HEADER | {"alg": "RS384"}), digest=hashes.SHA384()), P.ALGORITHM),
    "PS256": (token({"alg": "PS256"}), P.ALGORITHM),
    "ES256": (ec_token(), P.ALGORITHM),
    "EdDSA": (token({"alg": "EdDSA"}), P.ALGORITHM),
    "SHA-512 that calls itself RS256": (sign(compact(CLAIMS), digest=hashes.SHA512()), P.SIGNATURE),
    "another key": (sign(compact(CLAIMS), key=OTHER_KEY), P.SIGNATURE),
    "another payload": (f"{HEAD}.{encode(compact(CLAIMS | {'account_id': 'account-2'}))}.{SIGNATURE}", P.SIGNATURE),
    "another header": (f"{encode(compact(HEADER | {'typ': 'at+jwt'}))}.{BODY}.{SIGNATURE}", P.SIGNATURE),
    "signature cut": (f"{HEAD}.{BODY}.{SIGNATURE[:-10]}", P.SIGNATURE),
    "signature with a bit turned": (f"{HEAD}.{BODY}.{'B' if SIGNATURE[0] == 'A' else 'A'}{SIGNATURE[1:]}", P.SIGNATURE),
    "signature zero": (f"{HEAD}.{BODY}.{encode(bytes(256))}", P.SIGNATURE),
    "signature one": (f"{HEAD}.{BODY}.{encode(bytes(255) + bytes([1]))}", P.SIGNATURE),
    "signature of another token": (f"{HEAD}.{BODY}.{token(account_id='b').split('.')[2]}", P.SIGNATURE),
    # the key's name
    "no kid": (token({"kid": None}), P.KEY_ID_MISSING),
    "empty kid": (token({"kid": ""}), P.KEY_ID_MISSING),
    "kid a number": (token({"kid": 1}), P.KEY_ID_MISSING),
    "kid null": (sign(compact(CLAIMS), b'{"alg":"RS256","kid":null}'), P.KEY_ID_MISSING),
    "other kid": (token({"kid": "key-2"}), P.KEY_ID_UNKNOWN),
    "kid in other letters": (token({"kid": "KEY-1"}), P.KEY_ID_UNKNOWN),
    "kid a path": (token({"kid": "../../dev/null"}), P.KEY_ID_UNKNOWN),
    "jku to another key": (
        sign(compact(CLAIMS), compact(HEADER | {"jku": "https://evil.example/jwks", "kid": "evil"}), OTHER_KEY),
        P.KEY_ID_UNKNOWN,
    ),
    "jwk of another key": (sign(compact(CLAIMS), compact(HEADER | {"jwk": jwk(OTHER_KEY)}), OTHER_KEY), P.SIGNATURE),
    "x5u to another key": (
        sign(compact(CLAIMS), compact(HEADER | {"x5u": "https://evil.example/pem"}), OTHER_KEY),
        P.SIGNATURE,
    ),
    "x5c of another key": (sign(compact(CLAIMS), compact(HEADER | {"x5c": ["AAAA"]}), OTHER_KEY), P.SIGNATURE),
    "crit": (token({"crit": ["exp"]}), P.CRITICAL),
    "crit empty": (token({"crit": []}), P.CRITICAL),
    "b64 false": (token({"b64": False, "crit": ["b64"]}), P.CRITICAL),
    "b64 false alone": (token({"b64": False}), P.CRITICAL),
    # the form
    "nothing": ("", P.NOT_A_JWT),
    "a word": ("token", P.NOT_A_JWT),
    "dots": ("..", P.NOT_A_JWT),
    "two parts": (f"{HEAD}.{BODY}", P.NOT_A_JWT),
    "four parts": (f"{GOOD}.AAAA", P.NOT_A_JWT),
    "five parts, as encrypted": (f"{GOOD}.AAAA.AAAA", P.NOT_A_JWT),
    "empty signature": (f"{HEAD}.{BODY}.", P.NOT_A_JWT),
    "empty payload": (f"{HEAD}..{SIGNATURE}", P.NOT_A_JWT),
    "empty header": (f".{BODY}.{SIGNATURE}", P.NOT_A_JWT),
    "padded payload": (f"{HEAD}.{encode(b'{} ')}=.{SIGNATURE}", P.NOT_A_JWT),
    "padded signature": (f"{GOOD}==", P.NOT_A_JWT),
    "stray bits": (f"{HEAD}.{BODY}.{SIGNATURE[:-1]}{'h' if SIGNATURE[-1] != 'h' else 'i'}", P.NOT_A_JWT),
    "standard base64": (GOOD.replace("-", "+").replace("_", "/") + "+", P.NOT_A_JWT),
    "a part that is no base64": (f"{HEAD}.{BODY}.A", P.NOT_A_JWT),
    "white space before": (f" {GOOD}", P.NOT_A_JWT),
    "a line break after": (f"{GOOD}\n", P.NOT_A_JWT),
    "a line break within": (f"{HEAD}\n.{BODY}.{SIGNATURE}", P.NOT_A_JWT),
    "Bearer before": (f"Bearer {GOOD}", P.NOT_A_JWT),
    "not ASCII": (f"{GOOD}\u0430", P.NOT_A_JWT),
    "huge": (token(pad="a" * 20_000), P.TOO_LONG),
    "a million dots": ("." * 1_000_000, P.TOO_LONG),
    "a JSON serialisation": (json.dumps({"payload": BODY, "signature": SIGNATURE}), P.NOT_A_JWT),
    "payload a list": (sign(compact([CLAIMS])), P.PAYLOAD),
    "payload a string": (sign(compact("claims")), P.PAYLOAD),
    "payload null": (sign(b"null"), P.PAYLOAD),
    "payload not JSON": (sign(b"claims"), P.PAYLOAD),
    "payload not UTF-8": (sign(b'{"a":"\xff"}'), P.PAYLOAD),
    "payload with NaN": (sign(b'{"exp":NaN}'), P.PAYLOAD),
    "payload nested 20 deep": (token(a=json.loads("[" * 20 + "]" * 20)), P.PAYLOAD),
    "a claim twice": (sign(compact(CLAIMS)[:-1] + b',"account_id":"account-2"}'), P.PAYLOAD),
    "exp twice": (sign(compact(CLAIMS)[:-1] + b',"exp":99999999999}'), P.PAYLOAD),
    "header a list": (f"{encode(b'[]')}.{BODY}.{SIGNATURE}", P.HEADER),
    "header not JSON": (f"{encode(b'x')}.{BODY}.{SIGNATURE}", P.HEADER),
    "alg twice": (sign(compact(CLAIMS), b'{"alg":"none","alg":"RS256","kid":"key-1"}'), P.HEADER),
    # whose it is and for whom
    "other issuer": (token(iss="https://evil.example"), P.ISSUER),
    "issuer with a slash": (token(iss=f"{ISSUER}/"), P.ISSUER),
    "issuer cut": (token(iss=ISSUER[:-1]), P.ISSUER),
    "issuer a list": (token(iss=[ISSUER]), P.ISSUER),
    "issuer a number": (token(iss=1), P.ISSUER),
    "no issuer": (token(iss=None), P.ISSUER),
    "other audience": (token(aud="codex"), P.AUDIENCE),
    "audience cut": (token(aud=AUDIENCE[:-1]), P.AUDIENCE),
    "audience a list": (token(aud=[AUDIENCE]), P.AUDIENCE),
    "audience a list of two": (token(aud=["evil", AUDIENCE]), P.AUDIENCE),
    "audience empty": (token(aud=""), P.AUDIENCE),
    "audience a number": (token(aud=1), P.AUDIENCE),
    "no audience": (token(aud=None), P.AUDIENCE),
    # when
    "no exp": (token(exp=None), P.EXPIRY_MISSING),
    "exp a text": (token(exp="never"), P.EXPIRY_MISSING),
    "exp a number in a text": (token(exp=str(NOW + 3600)), P.EXPIRY_MISSING),
    "exp true": (token(exp=True), P.EXPIRY_MISSING),
    "exp below zero": (token(exp=-1), P.EXPIRY_MISSING),
    "exp a list": (token(exp=[NOW + 3600]), P.EXPIRY_MISSING),
    "exp null": (sign(compact(CLAIMS | {"exp": None})), P.EXPIRY_MISSING),
    "expired long ago": (token(exp=1), P.EXPIRED),
    "expired a second over the leeway": (token(exp=NOW - 61), P.EXPIRED),
    "expired at the leeway": (token(exp=NOW - 60), P.EXPIRED),
    "iat in the far future": (token(iat=NOW + 86_400), P.NOT_YET_VALID),
    "iat a second over the leeway": (token(iat=NOW + 61), P.NOT_YET_VALID),
    "iat a text": (token(iat="now"), P.CLAIM),
    "nbf in the future": (token(nbf=NOW + 61), P.NOT_YET_VALID),
    "nbf a text": (token(nbf="now"), P.CLAIM),
    # what it says
    "no agent": (token(agent_runtime_id=None), P.CLAIM),
    "agent with a colon": (token(agent_runtime_id="a:b"), P.CLAIM),
    "agent a path": (token(agent_runtime_id="../x"), P.CLAIM),
    "agent a number": (token(agent_runtime_id=1), P.CLAIM),
    "no key": (token(agent_private_key=None), P.CLAIM),
    "key empty": (token(agent_private_key=""), P.CLAIM),
    "key with a line break": (token(agent_private_key=f"{CANARY}\n"), P.CLAIM),
    "key an object": (token(agent_private_key={}), P.CLAIM),
    "no account": (token(account_id=None), P.CLAIM),
    "account empty": (token(account_id=""), P.CLAIM),
    "account with a line break": (token(account_id="a\r\nx: y"), P.CLAIM),
    "no user": (token(chatgpt_user_id=None), P.CLAIM),
    "user with a space": (token(chatgpt_user_id="a b"), P.CLAIM),
    "email a list": (token(email=["a"]), P.CLAIM),
    "email with a control character": (token(email="a\x1b[31m"), P.CLAIM),
    "plan a number": (token(plan_type=1), P.CLAIM),
    "FedRAMP a text": (token(chatgpt_account_is_fedramp="false"), P.CLAIM),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_token_is_refused_for_its_reason(name: str) -> None:
    """Each bad token is refused, and neither the error nor what it is chained to holds a piece of it."""
    bad, problem = BAD[name]
    with pytest.raises(IdentityJwtError) as refused:
        verify(bad, KEYS, NOW)
    assert refused.value.problem is problem
    error: BaseException | None = refused.value
    while error is not None:
        assert CANARY not in repr(error)
        assert not any(len(part) > 12 and part in repr(error) for part in bad.split("."))
        error = error.__context__


def test_a_good_token_gives_its_claims() -> None:
    """All claims come out typed, and the private key hides."""
    claims = verify(GOOD, KEYS, NOW)
    assert claims == VerifiedIdentityClaims(
        agent_runtime_id="agent-1",
        agent_private_key=Secret(CANARY),
        account_id="account-1",
        chatgpt_user_id="user-1",
        email="a@example.com",
        plan_type="hc",
        fedramp=True,
        issue_time=NOW - 10,
        expire_time=NOW + 3600,
    )
    assert CANARY not in f"{claims!r} {claims} {peek(GOOD)!r}"


@pytest.mark.parametrize(
    "good",
    [
        token(exp=NOW - 59),
        token(iat=NOW + 60),
        token(nbf=NOW + 60),
        token(iat=None),
        token(exp=NOW + 0.5),
        token(exp=10**12),
        token(email=None, plan_type=None, chatgpt_account_is_fedramp=None),
        token(email="", plan_type=""),
        token(extra={"a": [1]}),
        token({"typ": None}),
        token({"jku": "https://evil.example", "x5u": "https://evil.example", "jwk": jwk(OTHER_KEY)}),
        token(sub=7, jti=7),
    ],
)
def test_what_the_issuer_may_do_is_accepted(good: str) -> None:
    """Leeway at both ends, missing optional claims, unknown ones and ignored headers are no reason to refuse."""
    assert verify(good, KEYS, NOW).agent_runtime_id == "agent-1"


def test_time_is_the_callers() -> None:
    """The same token is valid or expired by the given time alone, whatever the machine's clock says."""
    early = token(iat=900, exp=1000)
    assert verify(early, KEYS, 950.0).expire_time == 1000
    with pytest.raises(IdentityJwtError, match="expired"):
        verify(early, KEYS, NOW)


def test_peek_shows_unverified_claims_under_that_name() -> None:
    """Before any network the account can be compared, and nothing says that it is proven."""
    unverified = peek(sign(compact(CLAIMS), key=OTHER_KEY))
    assert (
        unverified.unverified_key_id,
        unverified.unverified_account_id,
        unverified.unverified_user_id,
        unverified.unverified_agent_runtime_id,
    ) == ("key-1", "account-1", "user-1", "agent-1")
    assert peek(token(account_id=7)).unverified_account_id is None


@pytest.mark.parametrize(
    "entry",
    [
        jwk(kty="EC"),
        jwk(kty="oct", k="AAAA"),
        jwk(kty=None),
        jwk(use="enc"),
        jwk(alg="RS512"),
        jwk(alg="HS256"),
        jwk(kid=None),
        jwk(kid=7),
        jwk(n=None),
        jwk(n=7),
        jwk(n="!"),
        jwk(n=""),
        jwk(e=None),
        jwk(e=""),
        jwk(e="AA"),
        jwk(e=encode(b"\x02")),
        jwk(d="AAAA"),
        jwk(rsa.generate_private_key(65_537, 1024)),  # noqa: S505  -- to be refused
        "key-1",
        None,
        [],
    ],
)
def test_a_key_that_cannot_be_used_is_left_out(entry: object) -> None:
    """Other kinds, other uses, short, broken and private keys verify nothing, and do not spoil the others."""
    keys = JwkSet.from_document({"keys": [entry, jwk(OTHER_KEY, kid="key-2")]})
    assert (len(keys), "key-1" in keys, "key-2" in keys) == (1, False, True)


def test_an_id_that_stands_twice_names_no_key() -> None:
    """Which of two keys of one id was meant cannot be known, so neither is used."""
    keys = JwkSet.from_document({"keys": [jwk(), jwk(OTHER_KEY)]})
    assert len(keys) == 0


def test_optional_members_of_a_key_are_optional() -> None:
    """`use` and `alg` may be missing."""
    keys = JwkSet.from_document({"keys": [jwk(use=None, alg=None)]})
    assert verify(GOOD, keys, NOW).account_id == "account-1"


@pytest.mark.parametrize("document", [{}, {"keys": None}, {"keys": {}}, {"keys": "x"}, {"keys": [jwk()] * 65}])
def test_what_is_no_key_document_is_refused(document: Mapping[str, Any]) -> None:
    """A document without a list of a sane size is not an empty set of keys but an error."""
    with pytest.raises(JwksError):
        JwkSet.from_document(document)


class StandingClock(Clock):
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> float:
        """Return the wall time."""
        return NOW + self.seconds

    def monotonic(self) -> float:
        """Return the monotonic time."""
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        """Move on."""
        self.seconds += seconds
        await asyncio.sleep(0)


class Issuer:
    """A key document that can be changed, fail or hang, and counts how often it was asked."""

    def __init__(self) -> None:
        self.document: Mapping[str, Any] = {"keys": [jwk()]}
        self.error: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.deadlines: list[float] = []

    async def fetch(self, deadline: float) -> Mapping[str, Any]:
        """Answer as set up."""
        self.deadlines.append(deadline)
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        await asyncio.sleep(0)
        return self.document


@pytest.fixture
def clock() -> StandingClock:
    """Return a clock that stands still."""
    return StandingClock()


@pytest.fixture
def issuer() -> Issuer:
    """Return an issuer of one key."""
    return Issuer()


@pytest.fixture
def cache(issuer: Issuer, clock: StandingClock) -> JwksCache:
    """Return an empty cache of the issuer's keys."""
    return JwksCache(issuer.fetch, clock)


ROTATED = token({"kid": "key-2"})


async def test_fresh_keys_are_fetched_once(cache: JwksCache, issuer: Issuer, clock: StandingClock) -> None:
    """Within ten minutes known keys cost no fetch, after them one; the fetch has a deadline of its own."""
    for _ in range(3):
        assert "key-1" in await cache.keys_for(GOOD)
    clock.seconds += KEY_SET_LIFETIME
    await cache.keys_for(GOOD)
    assert issuer.deadlines == [1010.0]
    clock.seconds += 1
    await cache.keys_for(GOOD)
    assert len(issuer.deadlines) == 2


async def test_an_unknown_key_is_looked_for_at_most_every_half_minute(
    cache: JwksCache, issuer: Issuer, clock: StandingClock
) -> None:
    """Made-up ids cost the issuer one fetch each half minute, and a rotated key is found by it."""
    await cache.keys_for(GOOD)
    for index in range(50):
        assert f"made-up-{index}" not in await cache.keys_for(token({"kid": f"made-up-{index}"}))
    assert len(issuer.deadlines) == 1
    issuer.document = {"keys": [jwk(), jwk(OTHER_KEY, kid="key-2")]}
    clock.seconds += MIN_REFETCH_INTERVAL
    assert "key-2" in await cache.keys_for(ROTATED)
    assert len(issuer.deadlines) == 2


async def test_one_fetch_serves_all_who_wait(cache: JwksCache, issuer: Issuer) -> None:
    """Fifty callers at once are one fetch."""
    results = await asyncio.gather(*(cache.keys_for(GOOD) for _ in range(50)))
    assert all("key-1" in keys for keys in results)
    assert len(issuer.deadlines) == 1


async def test_a_callers_cancellation_does_not_end_the_fetch(cache: JwksCache, issuer: Issuer) -> None:
    """The first caller gives up; the second, who joined, gets the keys of the same fetch."""
    issuer.gate = asyncio.Event()
    first, second = (asyncio.create_task(cache.keys_for(GOOD)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    issuer.gate.set()
    assert "key-1" in await second
    assert len(issuer.deadlines) == 1


async def test_keys_outlive_an_issuer_that_is_away(cache: JwksCache, issuer: Issuer, clock: StandingClock) -> None:
    """While fetching fails, known keys go on for a day with a fetch tried each half minute; then the failure shows."""
    await cache.keys_for(GOOD)
    issuer.error = ConnectionError("away")
    clock.seconds += KEY_SET_LIFETIME + 1
    for _ in range(20):
        assert "key-1" in await cache.keys_for(GOOD)
    assert len(issuer.deadlines) == 2
    clock.seconds += KEY_SET_MAX_STALENESS
    for _ in range(2):
        with pytest.raises(ConnectionError):
            await cache.keys_for(GOOD)


async def test_without_any_keys_the_failure_shows(cache: JwksCache, issuer: Issuer) -> None:
    """The first failure is the caller's to see, and the next caller tries again."""
    issuer.error = ConnectionError("away")
    with pytest.raises(ConnectionError):
        await cache.keys_for(GOOD)
    issuer.error = None
    assert "key-1" in await cache.keys_for(GOOD)


async def test_a_broken_document_does_not_replace_good_keys(
    cache: JwksCache, issuer: Issuer, clock: StandingClock
) -> None:
    """A document that is none counts as a failure."""
    await cache.keys_for(GOOD)
    issuer.document = {"error": "x"}
    clock.seconds += KEY_SET_LIFETIME + 1
    assert "key-1" in await cache.keys_for(GOOD)


async def test_a_revoked_key_goes_with_the_next_fetch(cache: JwksCache, issuer: Issuer, clock: StandingClock) -> None:
    """A key that the issuer withdrew is not kept beside the new ones."""
    await cache.keys_for(GOOD)
    issuer.document = {"keys": [jwk(OTHER_KEY, kid="key-2")]}
    clock.seconds += KEY_SET_LIFETIME + 1
    assert "key-1" not in await cache.keys_for(GOOD)


@pytest.mark.parametrize("bad", ["", "a.b.c", BAD["alg none with a signature"][0], BAD["no kid"][0]])
async def test_a_token_without_form_costs_no_fetch(bad: str, cache: JwksCache, issuer: Issuer) -> None:
    """What could never verify is refused before any network."""
    with pytest.raises(IdentityJwtError):
        await cache.keys_for(bad)
    assert issuer.deadlines == []


async def test_closing_ends_a_fetch(cache: JwksCache, issuer: Issuer) -> None:
    """Closing while the issuer hangs leaves no task behind, and its waiter is told by cancellation."""
    issuer.gate = asyncio.Event()
    waiter = asyncio.create_task(cache.keys_for(GOOD))
    await asyncio.sleep(0)
    await cache.aclose()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    await cache.aclose()


def test_the_table_is_long_enough() -> None:
    """At least sixty bad tokens, no two the same."""
    assert len({bad for bad, _ in BAD.values()}) == len(BAD) >= 60
