"""How failures are shown, and that every reason of the API says what to do next."""

import json

import grpc
import pytest
from click.testing import CliRunner
from credentialbroker.v1 import error_reason_pb2

from broker import errors
from broker.cli import root
from broker.cli.failures import NEXT_STEPS
from broker.cli.output import words_of
from tests.support.fake_broker import REQUEST_ID, FakeBroker
from tests.unit.cli.conftest import Run

STATUS = grpc.StatusCode


def test_every_reason_of_the_api_has_a_next_step() -> None:
    """A reason that is added to the API must say here what to do at a command line."""
    assert set(NEXT_STEPS) == set(words_of(error_reason_pb2.ErrorReason.DESCRIPTOR))


def test_commands_in_next_steps_exist() -> None:
    """What a next step names can be typed."""
    for step in NEXT_STEPS.values():
        for named in step.split("credential-broker ")[1:]:
            words = named.partition(";")[0].replace(")", " ").replace(",", " ").split()
            command = root.commands[words[0]]
            commands = getattr(command, "commands", None)
            if commands is not None:
                command = commands[words[1]]
            options = {option for parameter in command.params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= options, step


def test_an_outcome_is_shown_as_one_block(broker: FakeBroker, run: Run) -> None:
    """Reason, text, violations, what to do and the request id; exit code 1, nothing on standard output."""
    broker.answers["GetAuthorization"] = errors.FieldInvalidError(violations={"min_validity": "must not be negative"})
    result = run("get", "--scope", "inference")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "FIELD_INVALID: a field of the request is not valid; see the field violations",
        "  min_validity: must not be negative",
        "  next: correct the fields named above",
        f"  request id: {REQUEST_ID}",
    ]


def test_a_retry_delay_is_shown(broker: FakeBroker, run: Run) -> None:
    """Where trying again helps, it is said after how long."""
    broker.answers["GetAuthorization"] = errors.BackendThrottledError(retry_after=90)
    assert "  retry after: 1m 30s" in run("get", "--scope", "inference").stderr.splitlines()


def test_an_outcome_is_json_where_a_program_reads(broker: FakeBroker, run: Run) -> None:
    """With `--format json` standard error is one document."""
    broker.answers["GetAuthorization"] = errors.StoreDownError(retry_after=2.5, metadata={"k": "v"})
    result = run("get", "--scope", "inference", "--format", "json")
    assert result.exit_code == 1
    assert json.loads(result.stderr) == {
        "error": {
            "code": "UNAVAILABLE",
            "reason": "STORE_DOWN",
            "message": "the broker's store could not be reached",
            "next_step": NEXT_STEPS["STORE_DOWN"],
            "metadata": {"k": "v"},
            "violations": [],
            "retry_delay_seconds": 2.5,
            "request_id": REQUEST_ID,
        }
    }


REFUSED = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:50051: Connection refused (111)"
NO_SOCKET = "failed to connect to all addresses; last error: UNAVAILABLE: unix:/x: connect: No such file or directory"
CLOSED = "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:127.0.0.1:50051: Socket closed"
HANDSHAKE = "failed to connect; last error: UNAVAILABLE: SSL_ERROR_SSL: certificate verify failed in handshake"


@pytest.mark.parametrize(
    ("status", "happened", "to_do"),
    [
        ((STATUS.UNAVAILABLE, REFUSED), "no broker at dns:///127.0.0.1:50051", "start one with: credential-broker dev"),
        ((STATUS.UNAVAILABLE, NO_SOCKET), "no broker at dns:///127.0.0.1:50051", "credential-broker dev"),
        ((STATUS.UNAVAILABLE, CLOSED), "Socket closed", "if it listens with TLS, add --tls-ca"),
        ((STATUS.UNAVAILABLE, HANDSHAKE), "certificate verify failed", "check --tls-ca, --tls-cert and --tls-key"),
        ((STATUS.DEADLINE_EXCEEDED, "Deadline Exceeded"), "did not answer within 10s", "--timeout 30s"),
        ((STATUS.UNIMPLEMENTED, "Method not found!"), "does not have this call", "50051, 50052"),
        ((STATUS.INTERNAL, "a\x1b[2Jb"), "INTERNAL: a\N{REPLACEMENT CHARACTER}[2Jb", "look at the broker's log"),
        ((STATUS.CANCELLED, ""), "CANCELLED: the call failed", "look at the broker's log"),
    ],
)
def test_a_status_of_the_runtime_says_what_to_do(
    broker: FakeBroker, run: Run, status: tuple[grpc.StatusCode, str], happened: str, to_do: str
) -> None:
    """What gRPC itself answers has no reason; its code and text are turned into what a person can do."""
    broker.answers["GetAuthorization"] = status
    block = run("get", "--scope", "inference").stderr
    assert block.startswith(status[0].name)
    assert happened in block
    assert to_do in block.partition("next: ")[2]
    assert "last error" not in block
    assert "request id" not in block


def test_a_broker_elsewhere_is_not_started_with_dev(broker: FakeBroker, run: Run) -> None:
    """`dev` is only offered for its own address."""
    broker.answers["GetAuthorization"] = (STATUS.UNAVAILABLE, REFUSED)
    block = run("get", "--scope", "inference", "--address", "broker.example:443").stderr
    assert "credential-broker serve" in block
    assert "dev" not in block


def test_every_problem_of_the_configuration_is_printed() -> None:
    """Exit code 78, one line a problem."""
    environment = {"CREDENTIAL_BROKER_LISTEN__CALLERS": '["0.0.0.0:1"]', "CREDENTIAL_BROKER_LOG__LEVL": "debug"}
    result = CliRunner(env=environment).invoke(root, ["check-config"])
    assert result.exit_code == 78
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("wrong: ") for line in lines)
    assert "log.levl: there is no such setting; did you mean level?" in result.stderr
