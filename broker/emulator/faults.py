"""Fault switches: rules that make the backend misbehave in one exact way, a counted number of times."""

from __future__ import annotations

import asyncio
import enum
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from broker.emulator.refusal import Refusal
from broker.emulator.routing import Operation
from broker.emulator.settings import MAX_SECONDS

_MAX_OVERSIZE = 256 * 1024 * 1024
_LEAST_STATUS, _GREATEST_STATUS = 200, 599


class Phase(enum.Enum):
    """When in the life of a request a rule is looked for; at most one rule fires in each."""

    CLOCK = enum.auto()
    BEFORE = enum.auto()
    AGENT_VERDICT = enum.auto()
    """Of what an agent signed: an assertion or a task registration."""
    ASSERTION_VERDICT = enum.auto()
    BEARER_VERDICT = enum.auto()
    AFTER = enum.auto()


class Action(enum.StrEnum):
    """What a rule does.

    `STATUS`, `GARBAGE`, `REDIRECT` and `OVERSIZE` answer without processing the request; `DELAY` and `HANG` process
    it afterwards; `TRUNCATE` and `DROP_AFTER` process it and then spoil the answer; `STALE_TASK`, `ROUTE_REJECT`,
    `AGENT_DEAD` and `BEARER_REJECT` concern only requests whose credential verified; `CLOCK_OFFSET` shifts the
    backend's clock for the request, in its checks and in its `Date` header.
    """

    STATUS = "status"
    DELAY = "delay"
    HANG = "hang"
    TRUNCATE = "truncate"
    GARBAGE = "garbage"
    REDIRECT = "redirect"
    OVERSIZE = "oversize"
    DROP_AFTER = "drop_after"
    STALE_TASK = "stale_task"
    ROUTE_REJECT = "route_reject"
    AGENT_DEAD = "agent_dead"
    BEARER_REJECT = "bearer_reject"
    CLOCK_OFFSET = "clock_offset"

    @property
    def phase(self) -> Phase:
        """When a rule with this action is looked for."""
        match self:
            case Action.CLOCK_OFFSET:
                return Phase.CLOCK
            case Action.STALE_TASK | Action.ROUTE_REJECT:
                return Phase.ASSERTION_VERDICT
            case Action.AGENT_DEAD:
                return Phase.AGENT_VERDICT
            case Action.BEARER_REJECT:
                return Phase.BEARER_VERDICT
            case Action.TRUNCATE | Action.DROP_AFTER:
                return Phase.AFTER
            case _:
                return Phase.BEFORE


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What is known of a request when rules are looked for; a None is not known, or not yet.

    Attributes:
        method: The HTTP method.
        path: The raw path.
        operation: What the path means.
        grant: The `grant_type` of a token request.
        agent_runtime_id: The agent that signed it.
        fingerprint: Of the credential it presents.
    """

    method: str
    path: str
    operation: Operation
    grant: str | None = None
    agent_runtime_id: str | None = None
    fingerprint: str | None = None


@dataclass(slots=True, kw_only=True)
class FaultRule:
    """One switch.

    Attributes:
        action: What happens.
        method: Only requests of this method; None for all.
        path_prefix: Only paths with this prefix; None for all.
        operation: Only this operation; None for all.
        grant: Only token requests of this `grant_type`; None for all requests.
        agent_runtime_id: Only what this agent signed; None for all. For `AGENT_DEAD`.
        fingerprint: Only this bearer, by its fingerprint in the ledger; None for all. For `BEARER_REJECT`.
        count: How many more times it fires; None for no end.
        status: The status of `STATUS`, or of `REDIRECT`.
        retry_after: Sent as `Retry-After` by `STATUS`: seconds or an HTTP date, as given.
        body: The body `STATUS` answers; None for the usual error JSON.
        headers: More headers of `STATUS`, which replace those of the same name (`content-type`, for instance).
        seconds: The length of `DELAY`, the shift of `CLOCK_OFFSET` (negative: the backend's clock is behind).
        location: Where `REDIRECT` points.
        size: The bytes of `OVERSIZE`.
        rule_id: Given by the switchboard.
        fired: How often it has fired.
        released: Set when the rule is removed, which lets go of requests that hang.
    """

    action: Action
    method: str | None = None
    path_prefix: str | None = None
    operation: Operation | None = None
    grant: str | None = None
    agent_runtime_id: str | None = None
    fingerprint: str | None = None
    count: int | None = 1
    status: int = 503
    retry_after: str | None = None
    body: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    location: str | None = None
    size: int = 8 * 1024 * 1024
    rule_id: str = ""
    fired: int = 0
    released: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> FaultRule:
        """Read a rule as `POST /_emulator/faults` takes it.

        Raises:
            Refusal: `fault_invalid` (400) with what is wrong.
        """
        unknown = body.keys() - _FIELDS.keys()
        if unknown:
            raise _invalid(f"unknown field {', '.join(sorted(unknown))}; known are {', '.join(_FIELDS)}")
        values: dict[str, Any] = {}
        for name, value in body.items():
            if not _FIELDS[name](value):
                raise _invalid(f"{name} has a value that is not possible")
            values[name] = value
        if "action" not in values:
            raise _invalid(f"action is required: one of {', '.join(Action)}")
        values["action"] = action = Action(values["action"])
        missing = {name for name in _NEEDED.get(action, ()) if values.get(name) is None}
        if missing:
            raise _invalid(f"{action} needs {', '.join(sorted(missing))}")
        if action is Action.DELAY and values["seconds"] < 0:
            raise _invalid("a delay cannot be negative")
        if action is Action.REDIRECT:
            values.setdefault("status", 302)
        if values.get("operation") is not None:
            values["operation"] = Operation(values["operation"])
        if values.get("retry_after") is not None:
            values["retry_after"] = str(values["retry_after"])
        return cls(**values)

    def matches(self, seen: Seen) -> bool:
        """Whether a request is one this rule is about."""
        return (
            self.method in (None, seen.method)
            and (self.path_prefix is None or seen.path.startswith(self.path_prefix))
            and self.operation in (None, seen.operation)
            and self.grant in (None, seen.grant)
            and self.agent_runtime_id in (None, seen.agent_runtime_id)
            and self.fingerprint in (None, seen.fingerprint)
        )

    def as_json(self) -> dict[str, Any]:
        """The rule as the controls show it; `count` is what is left of it."""
        shown = {name: getattr(self, name) for name in _FIELDS}
        return {"id": self.rule_id, **shown, "fired": self.fired}


@dataclass
class Switchboard:
    """The rules in force, in the order they were set; the first that matches in a phase fires."""

    _rules: list[FaultRule] = field(default_factory=list)
    _ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def add(self, rule: FaultRule) -> FaultRule:
        """Put a rule in force and give it its id."""
        rule.rule_id = f"fault-{next(self._ids)}"
        self._rules.append(rule)
        return rule

    def claim(self, phase: Phase, seen: Seen) -> FaultRule | None:
        """Fire the first rule of a phase that matches, counting it, or return None."""
        for rule in self._rules:
            exhausted = rule.count == 0
            if rule.action.phase is phase and not exhausted and rule.matches(seen):
                rule.fired += 1
                if rule.count is not None:
                    rule.count -= 1
                return rule
        return None

    def rules(self) -> list[FaultRule]:
        """All rules, also those that have nothing left to fire, so that `fired` can be read afterwards."""
        return list(self._rules)

    def remove(self, rule_id: str | None = None) -> int:
        """Remove one rule or all, let go of what hangs on them, and return how many were removed."""
        removed = [rule for rule in self._rules if rule_id in (None, rule.rule_id)]
        self._rules = [rule for rule in self._rules if rule not in removed]
        for rule in removed:
            rule.released.set()
        return len(removed)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_SECONDS


def _is_integer(value: object, least: int, greatest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= greatest


def _is_header_text(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?", value) is not None


def _is_header(item: tuple[str, object]) -> bool:
    name, value = item
    return re.fullmatch(r"[A-Za-z0-9-]+", name) is not None and _is_header_text(value)


def _optional(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


# What each field of a rule may be when it comes from outside; also the order in which rules are shown.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "action": lambda value: value in set(Action),
    "method": _optional(lambda value: isinstance(value, str) and value.isupper()),
    "path_prefix": _optional(lambda value: isinstance(value, str) and value.startswith("/")),
    "operation": _optional(lambda value: value in set(Operation)),
    "grant": _optional(_is_header_text),
    "agent_runtime_id": _optional(_is_header_text),
    "fingerprint": _optional(lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{16}", value) is not None),
    "count": _optional(lambda value: _is_integer(value, 1, 2**31)),
    "status": lambda value: _is_integer(value, _LEAST_STATUS, _GREATEST_STATUS),
    "retry_after": _optional(lambda value: _is_number(value) or _is_header_text(value)),
    "body": _optional(lambda value: isinstance(value, str)),
    "headers": lambda value: isinstance(value, dict) and all(map(_is_header, value.items())),
    "seconds": _is_number,
    "location": _optional(_is_header_text),
    "size": lambda value: _is_integer(value, 1, _MAX_OVERSIZE),
}

_NEEDED: dict[Action, tuple[str, ...]] = {
    Action.DELAY: ("seconds",),
    Action.CLOCK_OFFSET: ("seconds",),
    Action.REDIRECT: ("location",),
    # Without a path it would reject everywhere, which is what `stale_task` and `status` are for.
    Action.ROUTE_REJECT: ("path_prefix",),
}


def _invalid(message: str) -> Refusal:
    return Refusal(400, "fault_invalid", message)
