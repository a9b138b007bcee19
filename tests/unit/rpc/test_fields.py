"""The form of every field: what is accepted, what is refused, and that nothing refused is quoted."""

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from broker.errors import BrokerError, FieldInvalidError, PageTokenInvalidError, ScopeUnknownError, ThreadIdInvalidError
from broker.rpc import fields

CONTROL = ["\x00", "\x07", "\n", "\r", "\t", "\x1b", "\x7f", "\x85", "\u200b", "\u2028", "\u202e", "\ufeff", "\ud800"]

REFUSED: list[tuple[Callable[..., Any], tuple[Any, ...], type[BrokerError], str]] = [
    (fields.scope, ("",), FieldInvalidError, "scope"),
    (fields.scope, ("x" * 129,), ScopeUnknownError, "scope"),
    (fields.scope, ("Inference",), ScopeUnknownError, "scope"),
    (fields.scope, ("inference\n",), ScopeUnknownError, "scope"),
    (fields.scope, ("infer ence",), ScopeUnknownError, "scope"),
    (fields.scope, ("\u0131nference",), ScopeUnknownError, "scope"),
    (fields.thread_id, ("x" * 257,), ThreadIdInvalidError, "thread_id"),
    (fields.thread_id, (" ",), ThreadIdInvalidError, "thread_id"),
    (fields.thread_id, (" x",), ThreadIdInvalidError, "thread_id"),
    (fields.thread_id, ("x ",), ThreadIdInvalidError, "thread_id"),
    (fields.thread_id, ("x\u00a0",), ThreadIdInvalidError, "thread_id"),
    *[(fields.thread_id, (f"a{character}b",), ThreadIdInvalidError, "thread_id") for character in CONTROL],
    *[
        (fields.identity_name, (name,), FieldInvalidError, "name")
        for name in ("", ".a", "-a", "_a", "A", "a" * 64, "a/b", "a b", "a\n", "..", "é", "a:b")
    ],
    (fields.identity, ("A",), FieldInvalidError, "identity"),
    (fields.target_url, ("https://x/" + "y" * 2039,), FieldInvalidError, "target_url"),
    (fields.id_text, ("x" * 129, "account_id"), FieldInvalidError, "account_id"),
    (fields.id_text, ("a b", "account_id"), FieldInvalidError, "account_id"),
    (fields.id_text, ("a\n", "account_id"), FieldInvalidError, "account_id"),
    (fields.id_text, ("é", "account_id"), FieldInvalidError, "account_id"),
    *[
        (fields.backend_id, (value, "id"), FieldInvalidError, "id")
        for value in ("", ".", "..", "a/b", "a:b", "a b", "a\n", "x" * 129)
    ],
    *[
        (fields.token, (value, "t"), FieldInvalidError, "t")
        for value in ("", "a b", "Bearer x", "a\n", "x" * 16_385, "é")
    ],
    *[(fields.request_id, (value,), FieldInvalidError, "request_id") for value in ("", "x" * 65, "a b", "a\n", "é")],
    *[(fields.comment, (value,), FieldInvalidError, "comment") for value in ("x" * 257, "é" * 129, "a\nb", "\x1b[2J")],
    *[(fields.rejected_status, (value,), FieldInvalidError, "http_status") for value in (0, 200, 400, 403, 429, 500)],
    *[(fields.rejection_detail, (value,), FieldInvalidError, "detail") for value in ("x" * 257, "é" * 129)],
    (fields.min_validity, (Duration(seconds=-1),), FieldInvalidError, "min_validity"),
    (fields.min_validity, (Duration(nanos=-1),), FieldInvalidError, "min_validity"),
    (fields.min_validity, (Duration(seconds=366 * 86400 + 1),), FieldInvalidError, "min_validity"),
    (fields.future_time, (Timestamp(seconds=1000), "t", 1000.0), FieldInvalidError, "t"),
    (fields.future_time, (Timestamp(seconds=2**36), "t", 1000.0), FieldInvalidError, "t"),
    (fields.page_size, (-1,), FieldInvalidError, "page_size"),
    (fields.page_token, ("x" * 1025,), PageTokenInvalidError, "page_token"),
    (fields.page_token, ("é",), PageTokenInvalidError, "page_token"),
]


@pytest.mark.parametrize(("check", "arguments", "outcome", "field"), REFUSED)
def test_what_has_not_the_form_is_refused_by_its_name(
    check: Callable[..., Any], arguments: tuple[Any, ...], outcome: type[BrokerError], field: str
) -> None:
    """The outcome is the field's own, it names the field, and it does not quote what was sent."""
    with pytest.raises(outcome) as refused:
        check(*arguments)
    assert list(refused.value.violations) == [field]
    sent = str(arguments[0])
    assert len(sent) < 10 or sent not in str(refused.value)


ACCEPTED: list[tuple[Callable[..., Any], tuple[Any, ...], Any]] = [
    (fields.scope, ("control_plane.usage",), "control_plane.usage"),
    (fields.scope, ("x" * 128,), "x" * 128),
    (fields.thread_id, ("",), None),
    (fields.thread_id, ("x" * 256,), "x" * 256),
    (fields.thread_id, ("Faden 1: größer, 会話/🧵",), "Faden 1: größer, 会話/🧵"),
    (fields.identity, ("",), None),
    (fields.identity_name, ("a",), "a"),
    (fields.identity_name, ("0a._-",), "0a._-"),
    (fields.identity_name, ("a" * 63,), "a" * 63),
    (fields.target_url, ("",), None),
    (fields.target_url, ("anything else is decided inside",), "anything else is decided inside"),
    (fields.id_text, ("", "account_id"), None),
    (fields.id_text, ("account|1:~", "account_id"), "account|1:~"),
    (fields.backend_id, ("A.z_0-9", "id"), "A.z_0-9"),
    (fields.request_id, ("x" * 64,), "x" * 64),
    (fields.comment, ("",), ""),
    (fields.comment, ("warum auch nicht: größer",), "warum auch nicht: größer"),
    (fields.rejected_status, (401,), None),
    (fields.rejection_detail, ("",), ""),
    (fields.rejection_detail, ("no such\ntask " + "é" * 121,), "no such\ntask " + "é" * 121),
    (fields.min_validity, (Duration(),), 0.0),
    (fields.min_validity, (Duration(seconds=1, nanos=500_000_000),), 1.5),
    (fields.future_time, (Timestamp(seconds=1000, nanos=1), "t", 1000.0), 1000.000000001),
    (fields.page_size, (0,), 100),
    (fields.page_size, (7,), 7),
    (fields.page_size, (2**31 - 1,), 1000),
    (fields.page_token, ("",), ""),
]


@pytest.mark.parametrize(("check", "arguments", "value"), ACCEPTED)
def test_what_has_the_form_passes_unchanged(check: Callable[..., Any], arguments: tuple[Any, ...], value: Any) -> None:
    """Limits are inclusive, an unset field is None, and nothing is trimmed or cut."""
    assert check(*arguments) == value


def test_a_token_is_hidden_at_once() -> None:
    """From the first check on, a token does not print."""
    assert "canary" not in repr(fields.token("canary", "token"))
    assert fields.token("canary", "token").reveal() == "canary"
