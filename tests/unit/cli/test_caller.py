"""The commands of callers: what they ask, and how they show it."""

import json
import shlex
import subprocess

import pytest
from click.testing import Result
from credentialbroker.v1 import credential_broker_pb2 as api
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tests.support.fake_broker import FakeBroker
from tests.unit.cli.conftest import Run

TRICKY = "Bearer a'b\"c $(touch /nowhere) `id` \\ é"


def authorization(**changes: object) -> api.Authorization:
    """An authorization as the broker answers it."""
    answer = api.Authorization(
        headers=[
            api.Header(name="authorization", value="AgentAssertion e30", sensitive=True),
            api.Header(name="chatgpt-account-id", value="account-1"),
        ],
        kind=api.CREDENTIAL_KIND_AGENT_ASSERTION,
        reason=api.DECISION_REASON_TASK_ASSERTION,
        server_time=Timestamp(seconds=1000),
        expire_time=Timestamp(seconds=1060),
        identity="dev",
    )
    answer.MergeFrom(api.Authorization(**changes))  # type: ignore[arg-type]
    return answer


def get(broker: FakeBroker, run: Run, *arguments: str, **changes: object) -> Result:
    """Run `get` for an authorization."""
    broker.answers["GetAuthorization"] = api.GetAuthorizationResponse(authorization=authorization(**changes))
    return run("get", "--scope", "inference", *arguments)


def test_get_asks_for_all_that_was_named(broker: FakeBroker, run: Run) -> None:
    """Every option arrives as its field, with the guard header and the deadline."""
    result = get(
        broker,
        run,
        *("--thread", "t1", "--identity", "dev", "--target-url", "https://a.example/x"),
        *("--min-validity", "1500ms", "--expected-account", "account-1", "--timeout", "3s"),
    )
    assert result.exit_code == 0
    (received,) = broker.received
    assert received.request == api.GetAuthorizationRequest(
        scope="inference",
        thread_id="t1",
        identity="dev",
        target_url="https://a.example/x",
        min_validity=Duration(seconds=1, nanos=500_000_000),
        expected_account_id="account-1",
    )
    assert received.metadata == {"x-credential-broker": "1"}
    assert received.timeout == 3.0


def test_get_leaves_unset_what_was_not_named(broker: FakeBroker, run: Run) -> None:
    """What is not named is not sent, so that the broker's defaults hold."""
    get(broker, run)
    (received,) = broker.received
    assert received.request == api.GetAuthorizationRequest(scope="inference")
    assert not received.request.HasField("min_validity")
    assert received.timeout == 10.0


def test_get_prints_headers_and_nothing_else_on_standard_output(broker: FakeBroker, run: Run) -> None:
    """The default is `name: value` lines, ready for `curl -H @-`; through a pipe nothing is remarked."""
    result = get(broker, run)
    assert result.stdout == "authorization: AgentAssertion e30\nchatgpt-account-id: account-1\n"
    assert result.stderr == ""


def test_get_prints_variables_that_a_shell_takes_as_they_are(broker: FakeBroker, run: Run) -> None:
    """Whatever a value holds, `eval` of the exports runs nothing and sets exactly the value."""
    result = get(broker, run, "--format", "env", headers=[api.Header(name="x-tricky-value", value=TRICKY)])
    script = f'{result.stdout}\nprintf %s "$X_TRICKY_VALUE"'
    shown = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout == TRICKY
    assert shown.stderr == ""


def test_get_prints_arguments_that_a_shell_takes_as_they_are(broker: FakeBroker, run: Run) -> None:
    """Whatever a value holds, the `-H` arguments are one line and exactly the headers."""
    result = get(broker, run, "--format", "curl", headers=[api.Header(name="x-tricky-value", value=TRICKY)])
    assert result.stdout.count("\n") == 1
    assert shlex.split(result.stdout) == [
        *("-H", "authorization: AgentAssertion e30", "-H", "chatgpt-account-id: account-1"),
        *("-H", f"x-tricky-value: {TRICKY}"),
    ]


def test_get_prints_the_whole_answer_as_json(broker: FakeBroker, run: Run) -> None:
    """JSON is the response, with bare words."""
    document = json.loads(get(broker, run, "--format", "json").stdout)
    assert document["authorization"]["kind"] == "AGENT_ASSERTION"
    assert document["authorization"]["reason"] == "TASK_ASSERTION"
    assert document["authorization"]["expire_time"] == "1970-01-01T00:17:40Z"
    assert document["authorization"]["stale"] is False
    assert document["authorization"]["headers"][1] == {
        "name": "chatgpt-account-id",
        "value": "account-1",
        "sensitive": False,
    }


@pytest.mark.parametrize("form", ["headers", "env", "curl"])
@pytest.mark.parametrize("value", ["a\r\nx-forged: 1", "a\nb", "a\x00b", "a\x1b[2Jb"])
def test_get_never_prints_a_header_that_is_not_one_line(broker: FakeBroker, run: Run, form: str, value: str) -> None:
    """A value that would become a second header or speak to the terminal is refused, not printed."""
    result = get(broker, run, "--format", form, headers=[api.Header(name="x-evil", value=value)])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "x-evil" in result.stderr
    assert "forged" not in result.stderr


def test_a_fallback_is_never_silent(broker: FakeBroker, run: Run) -> None:
    """A bearer in place of an assertion is said on standard error, also through a pipe."""
    result = get(
        broker,
        run,
        kind=api.CREDENTIAL_KIND_BEARER,
        reason=api.DECISION_REASON_TASK_UNAVAILABLE,
        fallback_from=api.CREDENTIAL_KIND_AGENT_ASSERTION,
    )
    assert result.stderr == ("BEARER of dev (TASK_UNAVAILABLE), usable for 1m; given in place of AGENT_ASSERTION\n")


def test_a_stale_answer_is_never_silent(broker: FakeBroker, run: Run) -> None:
    """An answer that may lag behind says so."""
    assert "may lag behind" in get(broker, run, stale=True).stderr


def test_get_needs_a_scope(run: Run) -> None:
    """Without a scope it is a usage error, and nothing is asked."""
    result = run("get")
    assert result.exit_code == 2
    assert "--scope" in result.stderr


def test_explain_shows_the_decision_and_each_rule(broker: FakeBroker, run: Run) -> None:
    """A refusal is an answer: exit code 0, the reason and the rules that led to it."""
    broker.answers["ExplainAuthorization"] = api.ExplainAuthorizationResponse(
        decision=api.Decision(
            outcome=api.DECISION_OUTCOME_REFUSE,
            error=api.ErrorStatus(code=9, reason="ERROR_REASON_TASK_ENDED", message="it was ended"),
        ),
        steps=[
            api.DecisionStep(number=1, rule="identity is out of use", detail="state is ACTIVE"),
            api.DecisionStep(number=8, rule="task ended", matched=True),
        ],
        identity="dev",
        scope_rule=api.ScopeRule(
            scope="inference",
            credential=api.CREDENTIAL_REQUIREMENT_ASSERTION_REQUIRED,
            task=api.TASK_REQUIREMENT_THREAD,
        ),
    )
    result = run("explain", "--scope", "inference", "--thread", "t1")
    assert result.exit_code == 0
    assert broker.received[0].request == api.ExplainAuthorizationRequest(scope="inference", thread_id="t1")
    assert result.stdout.splitlines() == [
        "decision      REFUSE",
        "refused with  TASK_ENDED",
        "because       it was ended",
        "identity      dev",
        "scope         inference: ASSERTION_REQUIRED, task THREAD",
        "",
        "rule  says                    applies  found",
        "1     identity is out of use  no       state is ACTIVE",
        "8     task ended              yes      -",
    ]


def test_scopes_reads_every_page(broker: FakeBroker, run: Run) -> None:
    """A list is all of it, whatever the pages; JSON is one document."""
    pages = {"": ("a", "2"), "2": ("b", "3"), "3": ("c", "")}

    def page(request: api.ListScopesRequest) -> api.ListScopesResponse:
        name, following = pages[request.page_token]
        return api.ListScopesResponse(scopes=[api.ScopeRule(scope=name)], next_page_token=following)

    broker.answers["ListScopes"] = page
    document = json.loads(run("scopes", "--format", "json").stdout)
    assert [rule["scope"] for rule in document["scopes"]] == ["a", "b", "c"]
    assert document["next_page_token"] == ""
    assert len(broker.received) == 3


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--thread", "t1"), api.RegisterTaskRequest(thread_id="t1")),
        (("--background", "--identity", "dev"), api.RegisterTaskRequest(kind=api.TASK_KIND_BACKGROUND, identity="dev")),
    ],
)
def test_register_task_names_a_thread_or_the_background(
    broker: FakeBroker, run: Run, arguments: tuple[str, ...], expected: api.RegisterTaskRequest
) -> None:
    """Exactly one of the two is sent."""
    broker.answers["RegisterTask"] = api.RegisterTaskResponse(task=api.Task(id="task-1", state=api.TASK_STATE_ACTIVE))
    result = run("register-task", *arguments)
    assert broker.received[0].request == expected
    assert result.stdout.splitlines()[:2] == ["task     task-1", "state    ACTIVE"]


@pytest.mark.parametrize("arguments", [(), ("--thread", "t1", "--background")])
def test_register_task_needs_exactly_one_target(run: Run, arguments: tuple[str, ...]) -> None:
    """Neither or both is a usage error."""
    assert run("register-task", *arguments).exit_code == 2


def test_end_task_ends_the_threads(broker: FakeBroker, run: Run) -> None:
    """The thread and the identity are sent."""
    broker.answers["EndTask"] = api.EndTaskResponse(task=api.Task(id="task-1", state=api.TASK_STATE_ENDED))
    assert "ENDED" in run("end-task", "--thread", "t1", "--identity", "dev").stdout
    assert broker.received[0].request == api.EndTaskRequest(thread_id="t1", identity="dev")
