"""
All that the rest of a run depends on, as one value: two runs that are equal here go on in the same ways.

What stands still in a run is coroutines. So its state is where each of them stands and what it holds, with everything
that can be reached from there: the memory of the brokers, the backend, the issuer, which calls are waited for by whom.
Of the database the content counts. Left out is what only records, and what is the same in every run.
"""

import asyncio
import contextvars
import dataclasses
import enum
import functools
import inspect
import logging
import random
import types
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Final

from broker.audit import GrantLine
from broker.backends import Backend
from broker.keyring import Keyring
from broker.keys import SigningKey
from broker.profiles import Profile
from broker.scopes import ScopeRule
from broker.telemetry import Metrics, Tally
from tests.interleavings.memory import Copy

Token = Hashable

_SAME_IN_EVERY_RUN: Final = (
    Keyring,
    Metrics,
    Tally,
    GrantLine,
    Backend,
    Profile,
    ScopeRule,
    random.Random,
    logging.Logger,
    asyncio.AbstractEventLoop,
    asyncio.Handle,
    asyncio.Timeout,
    contextvars.Context,
    contextvars.ContextVar,
    types.ModuleType,
    weakref.ref,
    type,
)
_PLAIN: Final = (type(None), bool, int, float, str, bytes, enum.Enum, types.BuiltinFunctionType)


class Walk:
    """
    One walk over everything that can be reached.

    Args:
        left_out: classes of what only records.
        operation_of: names the operation that a task belongs to.
    """

    def __init__(self, left_out: tuple[type, ...], operation_of: Callable[["asyncio.Task[Any]"], str]) -> None:
        self._opaque = (*_SAME_IN_EVERY_RUN, *left_out)
        self._operation_of = operation_of
        self._tokens: list[Token] = []
        self._numbers: dict[int, int] = {}
        self._kept: list[object] = []

    @property
    def state(self) -> tuple[Token, ...]:
        """What was met, in an order that depends on nothing but itself."""
        return tuple(self._tokens)

    def visit(self, value: Any) -> None:
        """Add a value, and what can be reached from it."""
        if isinstance(value, _PLAIN):
            self._tokens.append(value)
        elif isinstance(value, self._opaque):
            self._tokens.append(type(value).__name__)
        elif isinstance(value, SigningKey):
            self._tokens.append(value.public_key_bytes)
        elif _is_value(value):
            self._tokens.append(value)
        elif isinstance(value, BaseException):
            self._tokens.append((type(value).__name__, repr(vars(value))))
        elif id(value) in self._numbers:
            self._tokens.append(("met", self._numbers[id(value)]))
        else:
            self._numbers[id(value)] = len(self._numbers)
            self._kept.append(value)  # else another object may get its id
            self._visit_new(value)

    def _visit_new(self, value: Any) -> None:
        match value:
            case asyncio.Task():
                self._visit_task(value)
            case asyncio.Future():
                self._visit_future(value)
            case types.CoroutineType():
                self._visit_coroutine(value)
            case Mapping():
                self._each("mapping", [part for item in value.items() for part in item])
            case list() | tuple() | deque():
                self._each(type(value).__name__, value)
            case set() | frozenset():
                self._each("set", sorted(value, key=self.place))
            case types.MethodType():
                self._each(value.__func__.__qualname__, [value.__self__])
            case types.FunctionType():
                cells = [cell.cell_contents for cell in value.__closure__ or ()]
                self._each(value.__qualname__, [*cells, *(value.__defaults__ or ())])
            case functools.partial():
                self._each("partial", [value.func, value.args, value.keywords])
            case Copy():
                self._tokens.append(value.content.digest)
            case _:
                self._visit_object(value)

    def _each(self, kind: str, values: Iterable[Any]) -> None:
        at = len(self._tokens)
        self._tokens.append(kind)
        for value in values:
            self.visit(value)
        self._tokens[at] = (kind, len(self._tokens) - at)

    def _visit_task(self, task: "asyncio.Task[Any]") -> None:
        self._tokens.append(("task", self._operation_of(task)))
        if task.done():
            self._visit_future(task)
        else:
            self.visit(task.get_coro())

    def _visit_future(self, future: "asyncio.Future[Any]") -> None:
        if not future.done():
            self._each("pending", [getattr(future, "_children", None)])  # those that `gather` waits for
        elif future.cancelled():
            self._tokens.append("cancelled")
        elif future.exception() is not None:
            self._each("raised", [future.exception()])
        else:
            self._each("returned", [future.result()])

    def _visit_coroutine(self, coroutine: Any) -> None:
        frame = coroutine.cr_frame
        if frame is None:
            self._tokens.append("ended")
            return
        self._tokens.append((coroutine.__qualname__, frame.f_lasti))
        local = frame.f_locals
        self._each("locals", [part for name in sorted(local) for part in (name, local[name])])
        if coroutine.cr_await is not None:
            self.visit(coroutine.cr_await)

    def _visit_object(self, value: Any) -> None:
        fields = _fields(value)
        if not fields and type(value).__module__ in ("builtins", "_asyncio", "itertools"):
            self._tokens.append(type(value).__name__)  # an iterator: what it goes over is held beside it
            return
        self._each(type(value).__qualname__, [part for name in fields for part in (name, getattr(value, name, None))])

    def place(self, member: Any) -> str:
        """Return by what members of a set are put in order, equal in equal states."""
        if isinstance(member, asyncio.Task):
            coroutine = member.get_coro()
            name = getattr(coroutine, "__qualname__", "")
            return f"{self._operation_of(member)} {name} {self._numbers.get(id(member), '')}"
        return repr(member)


@functools.cache
def _is_frozen(kind: Hashable) -> bool:
    parameters = getattr(kind, "__dataclass_params__", None)
    return parameters is not None and parameters.frozen and parameters.eq


def _is_value(value: Any) -> bool:
    if not _is_frozen(type(value)):
        return False
    try:
        hash(value)
    except TypeError:
        return False
    return not any(inspect.isfunction(getattr(value, each.name)) for each in dataclasses.fields(value))


def _fields(value: Any) -> list[str]:
    names = list(getattr(value, "__dict__", ()))
    for kind in type(value).__mro__:
        slots = getattr(kind, "__slots__", ())
        names += [slots] if isinstance(slots, str) else slots
    return [name for name in names if not name.startswith("__")]
