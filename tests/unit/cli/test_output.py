"""How answers are shown: bare words, one JSON document, plain tables that cannot speak to a terminal."""

import json
from collections.abc import Iterator
from typing import Any

import click
import pytest
from click.testing import CliRunner
from credentialbroker.v1 import broker_admin_pb2 as admin
from credentialbroker.v1 import credential_broker_pb2 as api
from credentialbroker.v1 import error_reason_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from broker.cli import output


def every_enum() -> Iterator[Any]:
    """Every enum of the API."""
    for module in (api, admin, error_reason_pb2):
        yield from module.DESCRIPTOR.enum_types_by_name.values()


@pytest.mark.parametrize("enum", list(every_enum()), ids=lambda enum: enum.name)
def test_every_enum_value_loses_its_prefix_and_finds_back(enum: Any) -> None:
    """A bare word is the value's name without the enum's, and leads back to its number."""
    for value in enum.values:
        bare = output.bare_word(enum, value.number)
        assert value.name.endswith(f"_{bare}")
        assert not bare.startswith(enum.name.upper()[:4] + "_")
        assert output.number_of(enum, bare) == value.number
    assert "UNSPECIFIED" not in output.words_of(enum)


def test_enum_values_of_a_newer_broker_are_shown_as_numbers() -> None:
    """A number that this version does not know is shown, not refused."""
    assert output.bare_word(api.TaskState.DESCRIPTOR, 99) == "99"
    task = api.Task(state=99)  # type: ignore[arg-type]
    assert output.document_of(task)["state"] == 99


def test_document_has_snake_case_names_bare_words_and_every_field() -> None:
    """JSON is the proto's, nested enums and lists included, with unset fields present."""
    response = admin.GetStatusResponse(
        status=admin.BrokerStatus(
            serving_state=admin.SERVING_STATE_SERVING,
            identities=[admin.IdentitySummary(name="a", bearer_state=admin.BEARER_STATE_LIVE)],
            task_counts=[admin.TaskCount(state=api.TASK_STATE_ACTIVE, count=3)],
        )
    )
    status = output.document_of(response)["status"]
    assert status["serving_state"] == "SERVING"
    assert status["task_counts"] == [{"state": "ACTIVE", "count": "3"}]
    assert status["identity_counts"] == []
    (summary,) = status["identities"]
    assert summary["name"] == "a"
    assert summary["state"] == "UNSPECIFIED"
    assert summary["bearer_state"] == "LIVE"
    assert summary["active_task_count"] == "0"
    assert summary["rejected_scopes"] == []


def test_lines_are_one_document_each(capsys: pytest.CaptureFixture[str]) -> None:
    """A stream of answers is read line by line."""
    output.echo_line(api.Heartbeat())
    output.echo_line({"a": [1, 2]})
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [{}, {"a": [1, 2]}]


def test_repeated_enums_lose_their_prefix() -> None:
    """A list of enum values is a list of bare words."""
    request = admin.ListIdentitiesRequest(states=[admin.IDENTITY_STATE_ACTIVE, admin.IDENTITY_STATE_DISABLED])
    assert output.document_of(request)["states"] == ["ACTIVE", "DISABLED"]


def test_word_of_an_unspecified_field_is_empty() -> None:
    """What is not said is not shown."""
    assert output.word(api.Authorization(), "fallback_from") == ""


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0s"),
        (0.0003, "1ms"),
        (0.25, "250ms"),
        (1.5, "2s"),
        (59, "59s"),
        (60, "1m"),
        (61.9, "1m 1s"),
        (3600, "1h"),
        (7290, "2h 1m"),
        (90000, "1d 1h"),
        (-5, "-5s"),
    ],
)
def test_spans_are_shown_in_the_unit_a_person_would_choose(seconds: float, expected: str) -> None:
    """Seconds, minutes, hours and days, with at most two units."""
    assert output.show_seconds(seconds) == expected


def test_times_are_shown_in_utc_and_unset_ones_as_a_dash() -> None:
    """A timestamp is shown to the second; one that is not set is not shown as 1970."""
    assert output.show_time(Timestamp(seconds=1795225200, nanos=5)) == "2026-11-21T01:40:00Z"
    assert output.show_time(Timestamp()) == "-"


def shown_by(function: Any) -> Any:
    """Run what prints, as a command."""
    return CliRunner().invoke(click.Command("x", callback=function))


def test_table_is_plain_and_aligned_through_a_pipe() -> None:
    """Without a terminal a table is columns of text, a dash for what is empty."""
    result = shown_by(lambda: output.echo_table(("name", "state"), [("a", "ACTIVE"), ("longer", "")]))
    assert result.stdout == "name    state\na       ACTIVE\nlonger  -\n"


def test_an_empty_table_says_so_on_standard_error() -> None:
    """Nothing on standard output is nothing to read for a program."""
    result = shown_by(lambda: output.echo_table(("name",), [], empty="no identities"))
    assert (result.stdout, result.stderr) == ("", "no identities\n")


def test_a_terminal_gets_a_table_with_rules_and_no_markup_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the table is drawn; text that looks like markup stays text."""

    def show() -> None:
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        output.echo_table(("name",), [("[red]a[/red]",)])

    shown = shown_by(show).stdout
    assert "[red]a[/red]" in shown
    assert "──" in shown


def test_what_names_a_thing_stays_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a narrow terminal the other columns give way: an id is copied into the next command."""

    def show() -> None:
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        monkeypatch.setenv("COLUMNS", "50")
        output.echo_table(("task", "for"), [("0123456789" * 4, "one two three four five six seven eight")])

    assert "0123456789" * 4 in shown_by(show).stdout


@pytest.mark.parametrize("evil", ["\x1b]0;title\x07", "a\nb", "a\u202eb", "a\x9bb"])
def test_nothing_shown_can_speak_to_a_terminal(evil: str) -> None:
    """Control and direction characters in an answer never reach a terminal as such, in a table, fields or JSON."""
    table = shown_by(lambda: output.echo_table(("name",), [(evil,)])).stdout
    fields = shown_by(lambda: output.echo_fields([("name", evil)])).stdout
    document = shown_by(lambda: output.echo_json({"name": evil})).stdout
    for shown in (table, fields, document):
        assert all(line.isprintable() for line in shown.splitlines())
        assert evil not in shown
    assert json.loads(document) == {"name": evil}
