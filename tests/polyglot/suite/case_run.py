"""One case, step by step, against one driver."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from tests.polyglot.suite import processes
from tests.polyglot.suite.cases import OF_BROKERS, Case
from tests.polyglot.suite.driver import Answer, Driver
from tests.polyglot.suite.expressions import (
    ExpressionError,
    View,
    evaluate,
    explained,
    names_in,
    replaced,
    viewed,
)
from tests.polyglot.suite.world import World

UNTIL_SECONDS: Final = 5.0
_LAG_SECONDS: Final = 0.5
_POLL_SECONDS: Final = 0.04
_STEP_WORDS: Final = frozenset({"do", "save", "fails", "background"})
_NAMED: Final = ("client", "traffic", "connection")
"""Members that hold names in the driver; cases that share a driver must not share those."""
_CLIENTLESS: Final = frozenset({"hello", "changed", "disconnect", "traffic_stop", "threads"})


class CaseFailedError(Exception):
    """What a case expects is not so; the text says what and why."""


class UnsupportedError(Exception):
    """The language has no such thing; the text names the command."""


class CaseRun:
    """
    A run of a case.

    Args:
        case: what to do and to expect.
        world: what it finds.
        driver: with whose client.
    """

    def __init__(self, case: Case, world: World, driver: Driver) -> None:
        self._case = case
        self._world = world
        self._driver = driver
        self._prefix = world.variables["thread"]
        self._log_before = driver.log_size()
        self._opened: list[str] = []
        self._answers: dict[str, Answer] = {}
        self._running: dict[str, tuple[int, asyncio.Task[Answer]]] = {}
        self._values: dict[str, Any] = {}
        self._looked_at = {name for text in case.expressions for name in _errors_looked_at(text)}
        self._settled = False

    async def run(self) -> None:
        """
        Do all of it.

        Raises:
            CaseFailedError: something is not as it should be.
            DriverError: the driver is of no use.
        """
        try:
            if self._case.open is not None:
                defaults = {"address": "$broker", "identity": "$identity"}
                await self._step({"do": "open", **defaults, **self._case.open})
            await self._steps(self._case.steps, {})
            if left := sorted(self._running):
                raise CaseFailedError(f"the case does not join {', '.join(left)}")
        finally:
            for _, task in self._running.values():
                task.cancel()
        for client in tuple(self._opened):
            await self._step({"do": "close", "client": client})

    async def abandon(self) -> None:
        """Close what a failed case left open, whatever comes of it."""
        for client in self._opened:
            with contextlib.suppress(Exception):
                await self._driver.ask({"do": "close", "client": self._named(client)})

    async def _steps(self, steps: Any, words: Mapping[str, str]) -> None:
        for number, step in enumerate(steps, 1):
            try:
                if "for" in step:
                    for word in step["in"]:
                        await self._steps(step["steps"], {**words, step["for"]: str(word)})
                else:
                    await self._step(_filled(step, {**self._world.variables, **words}))
            except (CaseFailedError, ExpressionError, KeyError) as error:
                of = "".join(f" ({name} = {word})" for name, word in words.items())
                raise CaseFailedError(f"step {number}{of}: {error}") from error

    async def _step(self, step: Mapping[str, Any]) -> None:
        step = _filled(step, self._world.variables)
        match step:
            case {"do": command}:
                self._settled = False
                await self._do(command, step)
            case {"join": name}:
                _, task = self._running.pop(name)
                self._keep(name, await task, step.get("fails"), f"join {name}")
            case {"world": action}:
                self._settled = False
                members = {name: value for name, value in step.items() if name not in {"world", "save"}}
                tables = {name: answer.ok for name, answer in self._answers.items()}
                came = await self._world.act(action, members, tables)
                if "save" in step:
                    table = came if isinstance(came, Mapping) else {"value": came}
                    self._values[step["save"]] = viewed(step["save"], {**table, "time": time.monotonic()})
            case {"expect": expression}:
                await self._expect(expression)
            case {"until": expression}:
                await self._until(expression, step.get("seconds", UNTIL_SECONDS))
            case {"stays": expression}:
                await self._stays(expression, step["seconds"])
            case {"let": name, "be": expression}:
                self._values[name] = await self._value(expression)
            case {"wait": seconds}:
                await asyncio.sleep(seconds)

    # --- commands -----------------------------------------------------------------------------------------------------

    async def _do(self, command: str, step: Mapping[str, Any]) -> None:
        members = {name: value for name, value in step.items() if name not in _STEP_WORDS and value != ""}
        if command not in _CLIENTLESS:
            members.setdefault("client", "main")
        client = members.get("client", "")
        for name in _NAMED:
            if name in members:
                members[name] = self._named(members[name])
        if "held" in members:
            members["held"] = self._answers[members["held"]].id
        if command == "open" and client not in self._opened:
            self._opened.append(client)
        if command == "close" and client in self._opened:
            self._opened.remove(client)
        number, task = self._driver.begin({"do": command, **members})
        if step.get("background"):
            self._running[step["save"]] = number, task
            return
        try:
            answer = await task
        except asyncio.CancelledError:
            task.cancel()
            raise
        if command == "open" and answer.error is not None:
            self._opened.remove(client)
        self._keep(step.get("save"), answer, step.get("fails"), command)

    def _named(self, name: str) -> str:
        return f"{self._prefix}/{name}"

    def _keep(self, name: str | None, answer: Answer, fails: Any, what: str) -> None:
        """Check an answer against `fails`, and save it."""
        if answer.ok is not None and answer.ok.get("unsupported"):
            raise UnsupportedError(f"{what} is not there in this language")
        if name is not None:
            self._answers[name] = answer
            if answer.ok is None:
                self._values[name] = _Failed(name, answer.error, answer.time)
            else:
                self._values[name] = viewed(name, {**answer.ok, "time": answer.time})
        if fails is not None:
            if answer.error is None:
                raise CaseFailedError(f"{what} must fail with {fails}, and answered {_short(answer.ok)}")
            wanted = {"type": "broker", "reason": fails} if isinstance(fails, str) else fails
            got = {"reason_text": "", **answer.error}
            if any(got.get(member) != value for member, value in wanted.items()):
                raise CaseFailedError(f"{what} must fail with {wanted}, and failed with {answer.error}")
        elif answer.error is not None and name not in self._looked_at:
            raise CaseFailedError(f"{what} failed: {answer.error}")
        elif answer.ok is not None and name not in self._looked_at:
            errors = [one["error"] for one in answer.ok.get("results", ()) if one.get("error")]
            if errors:
                raise CaseFailedError(f"{what}: {len(errors)} of its calls failed, the first: {errors[0]}")

    # --- expectations -------------------------------------------------------------------------------------------------

    async def _expect(self, expression: str) -> None:
        names = names_in(expression)
        if "grants" in names and not self._settled:
            await self._world.settle()
            self._settled = True
        # A broker counts a call as ended when its answer has left: a moment after the client may have it.
        end = time.monotonic() + (_LAG_SECONDS if names & OF_BROKERS else 0.0)
        while not await self._is_true(expression):
            if time.monotonic() >= end:
                raise CaseFailedError(explained(expression, self._names()))
            await asyncio.sleep(_POLL_SECONDS)

    async def _until(self, expression: str, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not await self._is_true(expression):
            if time.monotonic() > end:
                raise CaseFailedError(f"within {seconds:g} s {explained(expression, self._names())}")
            await asyncio.sleep(_POLL_SECONDS)

    async def _stays(self, expression: str, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not await self._is_true(expression):
                raise CaseFailedError(f"did not stay: {explained(expression, self._names())}")
            await asyncio.sleep(_POLL_SECONDS)

    async def _is_true(self, expression: str) -> bool:
        return bool(await self._value(expression))

    async def _value(self, expression: str) -> Any:
        if names_in(expression) & OF_BROKERS:
            await self._world.look()
        return evaluate(expression, self._names())

    def _names(self) -> dict[str, Any]:
        pid = self._driver.pid
        functions: dict[str, Callable[..., Any]] = {
            **self._world.functions(),
            "error": self._error,
            "took": self._took,
            "header": _header,
            "secret": lambda answer: _header(answer, "authorization").partition(" ")[2],
            "log": lambda: self._driver.log(self._log_before),
            "fds": lambda: len(processes.descriptors(pid)),
            "os_threads": lambda: processes.threads(pid),
        }
        return {**functions, **self._values}

    def _error(self, answer: Any) -> Any:
        if isinstance(answer, _Failed):
            return View("error", answer.error)
        raise ExpressionError(f"no error, but {_short(answer)}")

    def _took(self, answer: Any) -> float:
        return next(self._answers[name].seconds for name, value in self._values.items() if value is answer)


class _Failed:
    """A saved answer that is an error: anything that is looked for in it is told so."""

    def __init__(self, name: str, error: Mapping[str, Any] | None, time_: float) -> None:
        self._name = name
        self.error = error or {}
        self.time = time_

    def __getattr__(self, member: str) -> Any:
        if member.startswith("__"):
            raise AttributeError(member)
        raise ExpressionError(f"{self._name}.{member}: {self._name} is an error: {self.error}")

    def __repr__(self) -> str:
        return f"error {self.error}"


def _errors_looked_at(expression: str) -> set[str]:
    """Return the names whose being an error, or holding some, an expression asks for."""
    names = names_in(expression)
    return names if "error" in names or ".error" in expression else set()


def _header(answer: Any, name: str) -> str:
    values = [value for one, value in answer.headers if one.lower() == name]
    if len(values) != 1:
        raise ExpressionError(f"there are {len(values)} headers {name}")
    return str(values[0])


def _filled(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return replaced(value, variables)
    if isinstance(value, Mapping):
        return {name: _filled(one, variables) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(one, variables) for one in value]
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 400 else text[:400] + "..."
