"""Reading cases: files of `cases/`, checked so that what cannot run, or proves nothing, is told before anything runs."""

import fnmatch
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.polyglot.suite.expressions import ExpressionError, names_in

FOLDER: Final = Path(__file__).resolve().parents[1] / "cases"
LANES: Final = ("counted", "timed", "own", "scripted", "idle")
SCRIPTED_LANES: Final = frozenset({"scripted", "idle"})

_NAME: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_RANGE: Final = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CASE_WORDS: Final = frozenset(
    {"name", "group", "behaviour", "catches", "lane", "adapters", "open", "env", "hosts", "brokers", "start", "steps",
     "connection_age", "timeout", "supplies", "alone", "without", "port"}
)  # fmt: skip
_KINDS: Final = ("do", "join", "world", "expect", "until", "stays", "let", "wait", "for")
"""The words that say what a step is; the first that it has counts, the others are its members."""
_REQUIRED: Final = ("name", "behaviour", "catches", "steps")
COMMANDS: Final = frozenset(
    {"hello", "open", "close", "authorization", "many", "cancel_after", "report_rejected", "register_task", "end_task",
     "state", "http", "grpc_echo", "connect", "changed", "disconnect", "traffic_start", "traffic_stop", "burn", "show",
     "fork", "threads"}
)  # fmt: skip
REAL_ACTIONS: Final = frozenset({"disable", "enable", "rotate", "revoke_task", "fault", "verify"})
OWN_ACTIONS: Final = frozenset({"kill_broker", "stop_broker", "start_broker", "pause_broker", "resume_broker"})
SCRIPTED_ACTIONS: Final = frozenset({"script", "script_streams", "push", "closing", "end_streams", "gate"})
COMMON_ACTIONS: Final = frozenset({"hosts", "write_file", "copy_file"})

VARIABLES: Final = frozenset(
    {"thread", "thread2", "thread3", "identity", "other", "short", "bearer", "broker", "unix", "port", "origin",
     "origin_port", "trap", "trap_port", "echo", "echo_ca", "tls_broker", "tls_port", "mtls_broker", "mtls_port", "ca",
     "other_ca", "certificate", "private_key", "other_certificate", "other_private_key", "adapter", "folder"}
)  # fmt: skip

OF_BROKERS: Final = frozenset({"calls", "streams", "subscriptions", "values", "withdrawals"})
"""Functions that read a broker's metrics: of the whole broker, so of no use beside other cases."""
OF_SCRIPTED: Final = frozenset({"received", "opened", "connections", "attempts", "pings"})
_OF_OTHERS: Final = frozenset({"grants", "ledger", "requests"})
EVIDENCE: Final = OF_BROKERS | OF_SCRIPTED | _OF_OTHERS
"""Functions that say what the broker, the emulator or a server saw, whatever the client says."""
_OF_PROCESS: Final = frozenset({"log", "fds", "os_threads"})
"""Functions about a driver's process, which a case with them has for itself."""
_OF_ANSWERS: Final = frozenset({"error", "took", "header", "secret", "gaps", "variable"})
FUNCTIONS: Final = EVIDENCE | _OF_PROCESS | _OF_ANSWERS


class CaseError(Exception):
    """A case cannot run as it is written, or would prove nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """
    One case, as `tests/polyglot/README.md` explains it.

    Attributes:
        without: the adapters that docs/clients.md excepts from it.
        open: options of the client `main`; None when none is opened.
        alone: whether it asks for a driver's process for itself; `has_own_driver` says whether it has one.
        connection_age: to how many seconds the life of a connection is scaled down; None leaves it.
        timeout: seconds in which all of it must be done.
        port: where the scripted broker must be; 0 is anywhere.
        supplies: the row of the table in docs/clients.md that says which languages' clients do this themselves.
    """

    name: str
    group: str
    behaviour: str
    catches: str
    lane: str = "counted"
    adapters: str | None = None
    without: tuple[str, ...] = ()
    open: Mapping[str, Any] | None
    env: Mapping[str, str] | None = None
    hosts: Mapping[str, list[str]] | None = None
    brokers: tuple[str, ...] = ("a",)
    start: bool = True
    connection_age: float | None = None
    timeout: float = 60.0
    alone: bool = False
    port: int = 0
    supplies: str | None = None
    steps: tuple[Mapping[str, Any], ...]

    @property
    def expressions(self) -> list[str]:
        """All expressions of its steps."""
        return [
            text for step in walk(self.steps) for word in ("expect", "until", "stays", "be") if (text := step.get(word))
        ]

    @property
    def functions(self) -> set[str]:
        """The functions that its expressions call."""
        return {name for text in self.expressions for name in names_in(text) if name in FUNCTIONS}

    @property
    def variables(self) -> set[str]:
        """The variables that it has, without the dollar."""
        text = json.dumps([self.steps, self.open, self.env, self.hosts])
        named = re.findall(r"variable\('([a-z0-9_]+)'\)", text)
        return {*re.findall(r"\$([a-z][a-z0-9_]*)", text), *named}

    @property
    def is_scripted(self) -> bool:
        """Whether its broker is a scripted one."""
        return self.lane in SCRIPTED_LANES

    @property
    def has_own_driver(self) -> bool:
        """Whether it needs a driver's process for itself."""
        return (
            self.alone
            or self.lane == "own"
            or self.env is not None
            or self.hosts is not None
            or bool(self.functions & _OF_PROCESS)
            or any(step.get("do") == "fork" for step in walk(self.steps))
        )


def walk(steps: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield all steps, also those inside others."""
    for step in steps:
        yield step
        yield from walk(step.get("steps", ()))


def load(folder: Path = FOLDER) -> list[Case]:
    """
    Read all cases, in the order of the files.

    Raises:
        CaseError: all that is wrong with them.
    """
    cases: list[Case] = []
    problems: list[str] = []
    for path in sorted(folder.glob("*.toml")):
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8")).get("case", [])
        except tomllib.TOMLDecodeError as error:
            problems.append(f"{path.name}: is not TOML: {error}")
            continue
        for table in tables:
            try:
                cases.append(_case(table, path.stem))
            except CaseError as error:
                problems.append(f"{path.name}: {table.get('name', '?')}: {error}")
    names = [case.name for case in cases]
    problems += [f"{name}: there are two cases of this name" for name in sorted(set(names)) if names.count(name) > 1]
    if problems:
        raise CaseError("\n".join(problems))
    return cases


def selected(cases: Iterable[Case], pattern: str | None) -> list[Case]:
    """Return the cases whose name, or whose group's name, is like one of the patterns; they are apart by commas."""
    patterns = [one.strip() for one in (pattern or "*").split(",")]
    return [
        case
        for case in cases
        if any(fnmatch.fnmatchcase(case.name, one) or fnmatch.fnmatchcase(case.group, one) for one in patterns)
    ]


def _case(table: Mapping[str, Any], group: str) -> Case:
    _known(table, _CASE_WORDS, "of a case")
    if missing := [word for word in _REQUIRED if not table.get(word)]:
        raise CaseError(f"has no {', '.join(missing)}")
    if not _NAME.fullmatch(table["name"]):
        raise CaseError("its name is not words of lower case with dashes between them")
    options = table.get("open", {})
    values = {**table, "steps": tuple(_unfolded(table["steps"])), "open": None if options is False else options}
    for word in {"brokers", "without"} & table.keys():
        values[word] = tuple(table[word])
    case = Case(**{"group": group, **values})
    _check(case)
    return case


def _unfolded(value: Any) -> Any:
    """Return a value of a case with texts of lists that hold `{1..9}` in the place of the nine that they stand for."""
    match value:
        case dict():
            return {name: _unfolded(one) for name, one in value.items()}
        case list():
            return [one for each in value for one in _texts(_unfolded(each))]
        case _:
            return value


def _texts(value: Any) -> list[Any]:
    ranges = _RANGE.search(value) if isinstance(value, str) else None
    if ranges is None:
        return [value]
    before, after = value[: ranges.start()], value[ranges.end() :]
    return [f"{before}{number}{after}" for number in range(int(ranges[1]), int(ranges[2]) + 1)]


def _check(case: Case) -> None:
    if case.lane not in LANES:
        raise CaseError(f"there is no lane {case.lane}")
    if case.lane != "own" and (case.brokers != ("a",) or not case.start or case.connection_age is not None):
        raise CaseError("only a case of the lane own has brokers of its own")
    if case.port and not case.is_scripted:
        raise CaseError("only a scripted broker can be had at a port")
    if case.adapters not in {None, "http", "grpc"}:
        raise CaseError("its adapters are neither http nor grpc")
    if case.without and case.adapters is None:
        raise CaseError("it excepts adapters, and is for none")
    words = {step["for"] for step in walk(case.steps) if "for" in step}
    if unknown := case.variables - VARIABLES - words:
        raise CaseError(f"{', '.join(sorted(unknown))}: is no variable")
    known = set(FUNCTIONS)
    _check_steps(case, case.steps, known)
    functions = case.functions
    verified = {step["save"] for step in walk(case.steps) if step.get("world") == "verify" and "save" in step}
    looked_at = {name for text in case.expressions for name in names_in(text)}
    if not functions & EVIDENCE and not verified & looked_at:
        raise CaseError("nothing is expected of broker, emulator or server: a client that lies would pass")
    if case.lane == "timed" and functions & OF_BROKERS:
        wrong = ", ".join(sorted(functions & OF_BROKERS))
        raise CaseError(f"{wrong}: counts what other cases of the lane timed do, too; use grants or ledger")
    if not case.is_scripted and functions & OF_SCRIPTED:
        raise CaseError(f"{', '.join(sorted(functions & OF_SCRIPTED))}: only the scripted broker tells")


def _check_steps(case: Case, steps: Iterable[Mapping[str, Any]], known: set[str]) -> None:
    """Check steps in their order, adding to `known` the names that they save."""
    for step in steps:
        match next((word for word in _KINDS if word in step), None):
            case None:
                raise CaseError(f"is no step: {dict(step)}")
            case "do":
                if step["do"] not in COMMANDS:
                    raise CaseError(f"there is no command {step['do']}")
            case "join":
                _known(step, {"join", "fails"}, "of join")
                if step["join"] not in known:
                    raise CaseError(f"join: nothing is saved as {step['join']}")
            case "world":
                _check_action(case, step)
            case "for":
                _known(step, {"for", "in", "steps"}, "of for")
                _check_steps(case, step["steps"], known)
            case "wait":
                _known(step, {"wait"}, "of wait")
            case "let":
                _known(step, {"let", "be"}, "of let")
                _check_expression(step["be"], known)
                known.add(step["let"])
            case word:
                _known(step, {word, "seconds"} if word != "expect" else {word}, f"of {word}")
                _check_expression(step[word], known)
        if "save" in step:
            known.add(step["save"])


def _check_action(case: Case, step: Mapping[str, Any]) -> None:
    there = set(COMMON_ACTIONS)
    if case.is_scripted:
        there |= SCRIPTED_ACTIONS
    else:
        there |= REAL_ACTIONS
    if case.lane == "own":
        there |= OWN_ACTIONS
    if step["world"] not in there:
        raise CaseError(f"there is no action {step['world']} in the lane {case.lane}")
    if step["world"] == "hosts" and case.hosts is None:
        raise CaseError("hosts: the case must say them at first, too")


def _check_expression(text: str, known: set[str]) -> None:
    try:
        names = names_in(text)
    except ExpressionError as error:
        raise CaseError(str(error)) from error
    if unknown := names - known:
        raise CaseError(f"{text}: nothing is known as {', '.join(sorted(unknown))}")


def _known(table: Mapping[str, Any], words: Iterable[str], what: str) -> None:
    if unknown := sorted(table.keys() - set(words)):
        raise CaseError(f"{', '.join(unknown)}: is no word {what}")
