"""The commands about identities: requests, secrets that go in and never come out, and creations that are resumed."""

import base64
import json
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from credentialbroker.v1 import broker_admin_pb2 as admin
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from broker import errors
from tests.support.fake_broker import FakeBroker
from tests.unit.cli.conftest import Run

SECRET = "sk-very-secret-0123456789"
PKCS8 = "MC4CAQAwBQYDK2VwBCIEIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
PEM = f"-----BEGIN PRIVATE KEY-----\n{PKCS8}\n-----END PRIVATE KEY-----\n"
IDENTITY = admin.Identity(
    name="dev",
    id="identity-1",
    backend="default",
    mode=admin.IDENTITY_MODE_AGENT,
    state=admin.IDENTITY_STATE_ACTIVE,
    agent_runtime_id="agent-1",
    public_key="ssh-ed25519 AAAA",
    account_id="account-1",
    generation=1,
    version=2,
)


@pytest.fixture(autouse=True)
def answers(broker: FakeBroker) -> None:
    """Every RPC answers one identity."""
    broker.answers |= {
        "CreateIdentity": admin.CreateIdentityResponse(identity=IDENTITY),
        "ImportIdentity": admin.ImportIdentityResponse(identity=IDENTITY),
        "GetIdentity": admin.GetIdentityResponse(identity=IDENTITY),
        "ListIdentities": admin.ListIdentitiesResponse(identities=[IDENTITY]),
        "UpdateIdentity": admin.UpdateIdentityResponse(identity=IDENTITY),
        "DisableIdentity": admin.DisableIdentityResponse(identity=IDENTITY),
        "EnableIdentity": admin.EnableIdentityResponse(identity=IDENTITY),
        "DeleteIdentity": admin.DeleteIdentityResponse(identity=IDENTITY),
    }


def only_request(broker: FakeBroker) -> Message:
    """The one request that was sent."""
    (received,) = broker.received
    request: Message = received.request
    return request


def assert_hides(result: Result, *secrets: str) -> None:
    """No secret stands in anything that was printed."""
    for secret in secrets:
        assert secret not in result.output + result.stderr


def test_create_sends_what_was_named(broker: FakeBroker, run: Run, tmp_path: Path) -> None:
    """Every option arrives as its field; the token is read from its file and not printed."""
    token = tmp_path / "token"
    token.write_text(f"{SECRET}\n")
    result = run(
        *(
            "identity",
            "create",
            "agents",
            "--backend",
            "prod",
            "--mode",
            "agent",
            "--account-id",
            "a",
            "--user-id",
            "u",
        ),
        *("--fedramp", "--token-file", str(token), "--token-expire-time", "2027-01-01T00:00:00Z", "--no-assertions"),
        *("--expire-time", "2028-01-01T01:00:00+01:00", "--comment", "why", "--request-id", "r1"),
    )
    assert result.exit_code == 0
    assert only_request(broker) == admin.CreateIdentityRequest(
        request_id="r1",
        name="agents",
        backend="prod",
        mode=admin.IDENTITY_MODE_AGENT,
        account_id="a",
        user_id="u",
        fedramp=True,
        static_bearer=admin.StaticBearer(token=SECRET, expire_time=Timestamp(seconds=1798761600)),
        assertions_enabled=False,
        expire_time=Timestamp(seconds=1830297600),
        comment="why",
    )
    assert broker.received[0].timeout == 60.0
    assert_hides(result, SECRET)


def test_create_takes_its_token_from_standard_input(broker: FakeBroker, run: Run) -> None:
    """`-` reads the token through a pipe; what is not named is not sent."""
    assert run("identity", "create", "a", "--token-file", "-", "--request-id", "r", input=f"{SECRET}\n").exit_code == 0
    request = only_request(broker)
    assert request == admin.CreateIdentityRequest(
        request_id="r",
        name="a",
        backend="default",
        mode=admin.IDENTITY_MODE_AGENT,
        static_bearer=admin.StaticBearer(token=SECRET),
    )
    assert not request.HasField("assertions_enabled")


def test_create_makes_and_prints_a_request_id_before_it_asks(broker: FakeBroker, run: Run) -> None:
    """Whoever is cut off finds in the terminal how to go on; each run without one makes a new id."""
    first, second = (run("identity", "create", "a") for _ in range(2))
    ids = [received.request.request_id for received in broker.received]
    assert len(set(ids)) == 2
    for result, request_id in zip((first, second), ids, strict=True):
        assert str(uuid.UUID(request_id)) == request_id
        assert result.stderr == f"cut off? run the same command again with --request-id {request_id}\n"


def test_a_creation_that_failed_says_how_it_goes_on(broker: FakeBroker, run: Run) -> None:
    """The error names the request id again, in words and as JSON."""
    broker.answers["CreateIdentity"] = errors.RegistrationInProgressError()
    result = run("identity", "create", "a", "--request-id", "r1")
    assert result.exit_code == 1
    assert "  it may be under way: go on with the same command and --request-id r1" in result.stderr.splitlines()
    assert "run the same command again" not in result.stderr
    result = run("identity", "create", "a", "--format", "json")
    document = json.loads(result.stderr)
    assert document["resume"] == f"--request-id {broker.received[-1].request.request_id}"
    assert document["error"]["reason"] == "REGISTRATION_IN_PROGRESS"


def test_a_creation_that_was_refused_for_good_has_nothing_to_go_on_with(broker: FakeBroker, run: Run) -> None:
    """Repeating it would only be refused again."""
    broker.answers["CreateIdentity"] = errors.IdentityExistsError()
    result = run("identity", "create", "a", "--request-id", "r1")
    assert result.exit_code == 1
    assert "--request-id" not in result.stderr


def test_oauth_tokens_are_read_from_what_an_issuer_answers(broker: FakeBroker, run: Run) -> None:
    """The issuer's JSON, the same inside an auth.json, or the refresh token alone; nothing of it is printed."""
    answer = {"refresh_token": SECRET, "access_token": "access-1", "id_token": "id-1", "token_type": "Bearer"}
    whole = admin.OauthBearer(source="login", refresh_token=SECRET, access_token="access-1", id_token="id-1")
    for typed, expected in (
        (json.dumps(answer), whole),
        (json.dumps({"tokens": answer, "last_refresh": None}), whole),
        (SECRET, admin.OauthBearer(source="login", refresh_token=SECRET)),
    ):
        result = run("identity", "create", "a", "--oauth-source", "login", "--oauth-tokens", "-", input=typed)
        assert result.exit_code == 0
        assert broker.received[-1].request.oauth_bearer == expected
        assert_hides(result, SECRET)


def test_the_lifetime_an_issuer_names_becomes_an_end(broker: FakeBroker, run: Run) -> None:
    """`expires_in` counts from now."""
    before = time.time()
    answer = json.dumps({"refresh_token": SECRET, "access_token": "a", "expires_in": 600})
    assert run("identity", "create", "a", "--oauth-source", "s", "--oauth-tokens", "-", input=answer).exit_code == 0
    end = broker.received[-1].request.oauth_bearer.expire_time.ToMilliseconds() / 1000
    assert before + 599 <= end <= time.time() + 601


def test_an_import_names_only_the_source_of_its_login(broker: FakeBroker, run: Run) -> None:
    """The auth.json holds the tokens itself."""
    result = run("identity", "import", "a", "--auth-json", "-", "--oauth-source", "login", input="{}")
    assert result.exit_code == 0
    assert broker.received[-1].request.oauth_bearer == admin.OauthBearer(source="login")


def test_rotate_asks_for_a_new_key(broker: FakeBroker, run: Run) -> None:
    """It is named by a request id, so that a cut rotation goes on and is not done twice."""
    broker.answers["RotateIdentityKey"] = admin.RotateIdentityKeyResponse(identity=admin.Identity(name="a"))
    assert run("identity", "rotate", "a", "--request-id", "r", "--etag", "e", "--comment", "c").exit_code == 0
    assert broker.received[-1].request == admin.RotateIdentityKeyRequest(
        request_id="r", name="a", etag="e", comment="c"
    )
    result = run("identity", "rotate", "a")
    assert str(uuid.UUID(broker.received[-1].request.request_id)) in result.stderr


def jwt(**claims: str) -> str:
    """A token in the form of a JWT."""
    return ".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in ({}, claims, {})
    )


@pytest.mark.parametrize(
    ("options", "login", "expected"),
    [
        ((), '{"tokens": {}}', {"auth_json": b'{"tokens": {}}'}),
        ((), jwt(agent_private_key="k"), {"identity_jwt": jwt(agent_private_key="k")}),
        ((), jwt(sub="u"), {"static_bearer": admin.StaticBearer(token=jwt(sub="u"))}),
        ((), SECRET, {"static_bearer": admin.StaticBearer(token=SECRET)}),
        (("--as", "token"), jwt(agent_private_key="k"), {"static_bearer": None}),
        (("--oauth-source", "s"), SECRET, {"oauth_bearer": admin.OauthBearer(source="s", refresh_token=SECRET)}),
    ],
)
def test_reauthenticate_recognises_what_it_is_given(
    broker: FakeBroker, run: Run, options: tuple[str, ...], login: str, expected: dict[str, Any]
) -> None:
    """A file of each kind goes into its own field, and `--as` overrules."""
    broker.answers["ReauthenticateIdentity"] = admin.ReauthenticateIdentityResponse(identity=admin.Identity(name="a"))
    result = run("identity", "reauthenticate", "a", "--from", "-", *options, "--request-id", "r", input=login)
    assert result.exit_code == 0, result.stderr
    request = broker.received[-1].request
    ((field, value),) = expected.items()
    assert request.WhichOneof("credential") == field
    if value is not None:
        assert getattr(request, field) == value
    assert_hides(result, SECRET)


def test_a_change_that_came_too_late_is_not_said_to_be_under_way(broker: FakeBroker, run: Run) -> None:
    """It is looked at again, and then asked for with another etag."""
    broker.answers["RotateIdentityKey"] = errors.GenerationChangedError()
    result = run("identity", "rotate", "a", "--etag", "1-1", "--request-id", "r1")
    assert result.exit_code == 1
    assert "GENERATION_CHANGED" in result.stderr
    assert "it may be under way" not in result.stderr


def test_an_issuers_answer_is_recognised_and_needs_its_source(broker: FakeBroker, run: Run) -> None:
    """What a login answered is no auth.json, and says what is missing."""
    result = run("identity", "reauthenticate", "a", "--from", "-", input=json.dumps({"refresh_token": SECRET}))
    assert result.exit_code == 2
    assert "--oauth-source SOURCE" in result.stderr
    assert_hides(result, SECRET)
    assert broker.received == []


@pytest.mark.parametrize(
    ("command", "rpc", "refused", "expected"),
    [
        (("create", "a"), "CreateIdentity", errors.IdentityRejectedError, "404 is a wrong `authapi_base_url`"),
        (("rotate", "a"), "RotateIdentityKey", errors.IdentityRejectedError, "then rotate again"),
        (("reauthenticate", "a", "--from", "-"), "ReauthenticateIdentity", errors.ReauthRequiredError, "and give that"),
    ],
)
def test_what_was_refused_is_what_to_look_at(
    broker: FakeBroker, run: Run, command: tuple[str, ...], rpc: str, refused: type[errors.BrokerError], expected: str
) -> None:
    """Nobody is told to repeat what has just failed; what the broker adds is shown."""
    broker.answers[rpc] = refused(metadata={"hint": "the old key goes on"})
    result = run("identity", *command, input=SECRET)
    assert result.exit_code == 1
    assert expected in result.stderr
    assert "  the old key goes on" in result.stderr.splitlines()


@pytest.mark.parametrize("option", ["--token", "--api-key"])
@pytest.mark.parametrize("command", ["create", "import"])
def test_a_token_as_an_argument_is_refused_without_repeating_it(
    broker: FakeBroker, run: Run, command: str, option: str
) -> None:
    """The options people try first exist only to say what to use instead."""
    result = run("identity", command, "a", option, SECRET)
    assert result.exit_code == 2
    assert "--token-file PATH" in result.stderr
    assert_hides(result, SECRET)
    assert broker.received == []


@pytest.mark.parametrize(("option", "instead"), [("--jwt", "--jwt-file"), ("--key", "--key-file")])
def test_a_key_as_an_argument_is_refused_without_repeating_it(run: Run, option: str, instead: str) -> None:
    """The same for keys and JWTs."""
    result = run("identity", "import", "a", f"{option}={SECRET}")
    assert result.exit_code == 2
    assert f"{instead} PATH" in result.stderr
    assert_hides(result, SECRET)


def test_a_token_in_place_of_its_file_is_not_repeated(run: Run) -> None:
    """A secret typed where a path belongs is not printed a second time."""
    result = run("identity", "create", "a", "--token-file", SECRET)
    assert result.exit_code == 2
    assert_hides(result, SECRET)


@pytest.mark.parametrize(
    "arguments",
    [
        ("create", "a", "--bearer-source", "s", "--token-file", "-"),
        ("create", "a", "--token-expire-time", "2027-01-01T00:00:00Z"),
        ("create", "a", "--oauth-source", "s", "--bearer-source", "t"),
        ("create", "a", "--oauth-tokens", "-"),
        ("create", "a", "--oauth-source", "s", "--oauth-tokens", __file__),
        ("reauthenticate", "a"),
        ("reauthenticate", "a", "--from", __file__, "--as", "oauth"),
        ("reauthenticate", "a", "--from", __file__, "--as", "token", "--oauth-source", "s"),
        ("reauthenticate", "a", "--from", __file__, "--as", "jwt", "--token-expire-time", "2027-01-01T00:00:00Z"),
        ("import", "a"),
        ("import", "a", "--auth-json", "-", "--jwt-file", __file__),
        ("import", "a", "--jwt-file", "-", "--account-id", "x"),
        ("import", "a", "--key-file", "-"),
        ("import", "a", "--key-file", "-", "--agent-runtime-id", "x"),
        ("update", "a"),
        ("update", "a", "--expire-time", "2027-01-01T00:00:00Z", "--no-expire-time"),
        ("list", "--state", "NONE"),
    ],
)
def test_what_does_not_fit_together_is_a_usage_error(broker: FakeBroker, run: Run, arguments: tuple[str, ...]) -> None:
    """Options that contradict each other, or miss their other half, are told here; nothing is sent."""
    result = run("identity", *arguments, input=SECRET)
    assert result.exit_code == 2
    assert_hides(result, SECRET)
    assert broker.received == []


def test_import_of_an_auth_json(broker: FakeBroker, run: Run, tmp_path: Path) -> None:
    """The file's bytes are sent as they are, with what is expected of it."""
    file = tmp_path / "auth.json"
    content = json.dumps({"OPENAI_API_KEY": SECRET, "name": "é"}, ensure_ascii=False)
    file.write_text(content, encoding="utf-8")
    result = run(
        *("identity", "import", "a", "--auth-json", str(file), "--mode", "BEARER", "--request-id", "r"),
        *("--expected-account-id", "account-1", "--expected-user-id", "user-1"),
    )
    assert only_request(broker) == admin.ImportIdentityRequest(
        request_id="r",
        name="a",
        backend="default",
        mode=admin.IDENTITY_MODE_BEARER,
        auth_json=content.encode(),
        expected_account_id="account-1",
        expected_user_id="user-1",
    )
    assert_hides(result, SECRET)


def test_import_of_a_jwt_with_a_bearer_source(broker: FakeBroker, run: Run) -> None:
    """The JWT is read from standard input; the source is named."""
    run(
        "identity", "import", "a", "--jwt-file", "-", "--bearer-source", "login", "--request-id", "r", input="eyJ.x.y\n"
    )
    assert only_request(broker) == admin.ImportIdentityRequest(
        request_id="r",
        name="a",
        backend="default",
        mode=admin.IDENTITY_MODE_AGENT,
        identity_jwt="eyJ.x.y",
        bearer_source="login",
    )


@pytest.mark.parametrize("content", [PKCS8, f"{PKCS8[:40]}\n{PKCS8[40:]}\n", PEM, PEM.replace("\n", "\r\n")])
def test_import_of_a_bare_key(broker: FakeBroker, run: Run, content: str) -> None:
    """PEM and base64 of the same key arrive alike."""
    result = run(
        *("identity", "import", "a", "--key-file", "-", "--agent-runtime-id", "agent-1", "--account-id", "account-1"),
        *("--user-id", "user-1", "--fedramp", "--request-id", "r"),
        input=content,
    )
    assert only_request(broker) == admin.ImportIdentityRequest(
        request_id="r",
        name="a",
        backend="default",
        mode=admin.IDENTITY_MODE_AGENT,
        bare_key=admin.BareKey(
            private_key=PKCS8, agent_runtime_id="agent-1", account_id="account-1", user_id="user-1", fedramp=True
        ),
    )
    assert_hides(result, PKCS8[:30])


def test_list_shows_public_keys_and_runtime_ids(broker: FakeBroker, run: Run) -> None:
    """What an operator looks for in the backend's records is in the list; the filters are sent."""
    result = run("identity", "list", "--backend", "default", "--state", "active", "--state", "DISABLED")
    assert only_request(broker) == admin.ListIdentitiesRequest(
        backend="default", states=[admin.IDENTITY_STATE_ACTIVE, admin.IDENTITY_STATE_DISABLED], page_size=1000
    )
    assert result.stdout == (
        "name  backend  mode   state   account    runtime id  public key\n"
        "dev   default  AGENT  ACTIVE  account-1  agent-1     ssh-ed25519 AAAA\n"
    )


def test_an_empty_list_says_how_to_begin(broker: FakeBroker, run: Run) -> None:
    """Where there is nothing the next step is named, on standard error."""
    broker.answers["ListIdentities"] = admin.ListIdentitiesResponse()
    result = run("identity", "list")
    assert result.stdout == ""
    assert "credential-broker identity create" in result.stderr
    assert run("identity", "list", "--state", "DISABLED").stderr == "no such identities\n"


def test_show_prints_one_identity(broker: FakeBroker, run: Run) -> None:
    """All of it but what is not set; JSON has everything."""
    assert "public key           ssh-ed25519 AAAA" in run("identity", "show", "dev").stdout.splitlines()
    document = json.loads(run("identity", "show", "dev", "--format", "json").stdout)
    assert document["identity"]["state"] == "ACTIVE"
    assert document["identity"]["bearer_source"] == ""
    assert broker.received[0].request == admin.GetIdentityRequest(name="dev")


@pytest.mark.parametrize(
    ("arguments", "identity", "paths"),
    [
        (("--bearer-source", "s"), admin.Identity(name="a", bearer_source="s"), ["bearer_source"]),
        (("--bearer-source", ""), admin.Identity(name="a"), ["bearer_source"]),
        (("--assertions",), admin.Identity(name="a", assertions_enabled=True), ["assertions_enabled"]),
        (("--no-assertions",), admin.Identity(name="a"), ["assertions_enabled"]),
        (
            ("--expire-time", "2027-01-01T00:00:00Z"),
            admin.Identity(name="a", expire_time=Timestamp(seconds=1798761600)),
            ["expire_time"],
        ),
        (("--no-expire-time",), admin.Identity(name="a"), ["expire_time"]),
    ],
)
def test_update_changes_only_what_was_named(
    broker: FakeBroker, run: Run, arguments: tuple[str, ...], identity: admin.Identity, paths: list[str]
) -> None:
    """The mask holds exactly the named settings, also where they are cleared."""
    run("identity", "update", "a", *arguments, "--etag", "e", "--comment", "c")
    assert only_request(broker) == admin.UpdateIdentityRequest(
        identity=identity, update_mask=FieldMask(paths=paths), etag="e", comment="c"
    )


@pytest.mark.parametrize(
    ("command", "request_type"),
    [("disable", admin.DisableIdentityRequest), ("enable", admin.EnableIdentityRequest)],
)
def test_switches_send_etag_and_comment(
    broker: FakeBroker, run: Run, command: str, request_type: type[admin.DisableIdentityRequest]
) -> None:
    """Name, etag and comment arrive."""
    assert run("identity", command, "dev", "--etag", "e", "--comment", "c").exit_code == 0
    assert only_request(broker) == request_type(name="dev", etag="e", comment="c")


def test_delete_asks_first(broker: FakeBroker, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a yes nothing is erased; where nobody can answer it says how to do without asking."""
    result = run("identity", "delete", "dev", input="y\n")
    assert result.exit_code == 2
    assert "add --yes" in result.stderr
    monkeypatch.setattr("broker.cli.identity._somebody_is_there", lambda: True)
    for answer in ("n\n", ""):
        assert run("identity", "delete", "dev", input=answer).exit_code == 1
    assert broker.received == []
    assert run("identity", "delete", "dev", input="y\n").exit_code == 0
    assert run("identity", "delete", "dev", "--yes", "--comment", "c").exit_code == 0
    assert broker.received[-1].request == admin.DeleteIdentityRequest(name="dev", comment="c")
