"""Broker processes, and what each tells of what was asked of it: its metrics and its audit log."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import grpc
import httpx
from credentialbroker.v1 import broker_admin_pb2_grpc

from tests.polyglot.suite import processes
from tests.support.brokers import guarded_channel

START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 20.0
_CALL_SECONDS: Final = 15.0
# Not a parser of every label that could be, which costs a hundred times more: these hold words.
_SAMPLE: Final = re.compile(
    r"^((?:grpc_server_(?:started|handled)|credential_broker_watch_[a-z]+)(?:_total)?)(?:\{(.*)\})? (\S+)$",
    re.MULTILINE,
)
_LABEL: Final = re.compile(r'([a-z_]+)="([^"]*)"')
_NURSERY: Final = (sys.executable, "-m", "tests.polyglot.suite.forked_brokers")
_ROOT: Final = Path(__file__).resolve().parents[3]

Sample = tuple[str, frozenset[tuple[str, str]]]
"""Name and labels of a metric."""


class BrokerError(Exception):
    """A broker did not start, or did not do what an operator asked."""


def as_toml(settings: Mapping[str, Any], path: tuple[str, ...] = ()) -> str:
    """Write settings as TOML; what they hold are texts, numbers, truths, lists of those, and tables."""
    lines = [f"[{'.'.join(map(json.dumps, path))}]"] if path else []
    lines += [
        f"{json.dumps(name)} = {json.dumps(value)}"
        for name, value in settings.items()
        if not isinstance(value, Mapping)
    ]
    tables = [as_toml(value, (*path, name)) for name, value in settings.items() if isinstance(value, Mapping)]
    return "\n".join([*lines, *tables]) + "\n"


@dataclass(frozen=True, slots=True)
class Life:
    """The process of a broker: its id, and the exit code that it comes to."""

    pid: int
    ended: "asyncio.Future[int]"


class Nursery:
    """
    Where broker processes come from (`forked_brokers`), for as long as the `async with` block lasts.

    Args:
        folder: for its log.
    """

    def __init__(self, folder: Path) -> None:
        self._log = folder / "nursery.log"
        self._waiting: list[asyncio.Future[int]] = []
        self._lives: dict[int, asyncio.Future[int]] = {}
        self._process: asyncio.subprocess.Process
        self._reader: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        self._process = await processes.start(
            _NURSERY, log=self._log, environment=processes.clean_environment(), folder=_ROOT, talks=True
        )
        self._reader = asyncio.create_task(self._read(), name="nursery")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await processes.end(self._process, seconds=STOP_SECONDS)
        await asyncio.gather(self._reader, return_exceptions=True)

    async def begin(self, config: Path, log: Path, connection_age: float | None) -> Life:
        """Begin a broker; it does not serve yet."""
        waiting: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        order = {"config": str(config), "log": str(log), "connection_age": connection_age}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        pid = await asyncio.wait_for(waiting, START_SECONDS)
        return Life(pid, self._lives[pid])

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            event = json.loads(line)
            if "began" in event:
                processes.adopt(event["began"])
                self._lives[event["began"]] = asyncio.get_running_loop().create_future()
                self._waiting.pop(0).set_result(event["began"])
            else:
                processes.forget(event["ended"])
                self._lives.pop(event["ended"]).set_result(event["code"])
        for waiting in (*self._waiting, *self._lives.values()):
            if not waiting.done():
                waiting.set_exception(BrokerError(f"the nursery ended:\n{self._log.read_text()[-2000:]}"))


class Broker:
    """
    One broker, which may be killed and started again at the same addresses.

    Args:
        nursery: where its processes come from.
        name: what to call it.
        folder: for its configuration and log.
        settings: its whole configuration.
        admin: the address of its operators' listener.
        http: the address of its metrics.
        connection_age: seconds to which the life of a connection is scaled down; None leaves it.
    """

    def __init__(
        self,
        nursery: Nursery,
        name: str,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        admin: str,
        http: str,
        connection_age: float | None = None,
    ) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        self._log.touch()
        self._file = folder / f"{name}.toml"
        self._file.write_text(as_toml(settings), encoding="utf-8")
        self._nursery = nursery
        self._age = connection_age
        self._admin = admin
        self._metrics = f"http://{http}/metrics"
        self._life: Life | None = None
        self._of_lives_before: Counter[Sample] = Counter()
        self._channel: grpc.aio.Channel | None = None
        self._http = httpx.AsyncClient(trust_env=False, timeout=_CALL_SECONDS, verify=processes.no_authorities())

    @property
    def is_up(self) -> bool:
        """Whether its process runs."""
        return self._life is not None

    @property
    def operators(self) -> "broker_admin_pb2_grpc.BrokerAdminAsyncStub":
        """The operators' service."""
        if self._channel is None:
            self._channel = guarded_channel(self._admin, {"grpc.max_reconnect_backoff_ms": 200})
        return broker_admin_pb2_grpc.BrokerAdminStub(self._channel)

    async def start(self) -> None:
        """
        Start it and wait until it serves.

        Raises:
            BrokerError: it ended, or did not serve in time.
        """
        seen = self._log.stat().st_size
        life = self._life = await self._nursery.begin(self._file, self._log, self._age)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                while not life.ended.done():
                    if b'"event": "serving"' in self._log.read_bytes()[seen:]:
                        return
                    await asyncio.sleep(0.02)
        raise BrokerError(f"broker {self.name} does not serve:\n{self._log.read_text()[-2000:]}")

    async def kill(self) -> None:
        """End it by SIGKILL, remembering what it had counted."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """End it by SIGTERM, as an operator does, and wait for its end."""
        await self._end(signal.SIGTERM)

    async def _end(self, how: signal.Signals) -> None:
        life, self._life = self._life, None
        if life is None:
            return
        if how is signal.SIGKILL:
            # What it counted is lost with it. Of one that drains new calls are counted to its end, and seen by nobody.
            with contextlib.suppress(httpx.HTTPError):
                self._of_lives_before.update(_counted(await self._read()))
        else:
            self._of_lives_before.update(_counted(await self._read()))
        os.kill(life.pid, how)
        await asyncio.wait_for(asyncio.shield(life.ended), STOP_SECONDS)

    def pause(self, *, on: bool) -> None:
        """Stop it where it is (SIGSTOP), as a machine that hangs, or let it go on."""
        assert self._life is not None
        os.kill(self._life.pid, signal.SIGSTOP if on else signal.SIGCONT)

    async def close(self) -> None:
        """End it for good."""
        life, self._life = self._life, None
        if life is not None and not life.ended.done():
            os.kill(life.pid, signal.SIGKILL)
            await asyncio.wait_for(asyncio.shield(life.ended), STOP_SECONDS)
        if self._channel is not None:
            await self._channel.close()
        await self._http.aclose()

    async def samples(self) -> "Counter[Sample]":
        """Return its counters, over all its lives, and its gauges; of one that is down what it had counted."""
        counted = Counter(self._of_lives_before)
        if self.is_up:
            for sample, value in (await self._read()).items():
                counted[sample] += value
        return counted

    async def _read(self) -> "Counter[Sample]":
        text = (await self._http.get(self._metrics)).text
        return Counter(
            {
                (name, frozenset(_LABEL.findall(labels or ""))): int(float(value))
                for name, labels, value in _SAMPLE.findall(text)
            }
        )


def _counted(samples: "Counter[Sample]") -> "Counter[Sample]":
    """Leave out gauges: what there was ends with the process."""
    return Counter({sample: value for sample, value in samples.items() if sample[0].endswith("_total")})


def total(samples: Mapping[Sample, int], name: str, **labels: str) -> int:
    """Sum the samples of a name over all labels but those that are named."""
    wanted = set(labels.items())
    return sum(value for (one, has), value in samples.items() if one == name and wanted <= has)


# --- the audit log ----------------------------------------------------------------------------------------------------


def grants(state: Path, identities: Collection[str]) -> Iterator[Mapping[str, Any]]:
    """
    Yield the grants of identities by all brokers of a state directory, those that share a line as often as there were.

    Grants that are equal within a second share a line, whose count is written when the second is over.
    """
    for path in sorted(state.glob("audit*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if '"event":"grant' not in line:
                continue
            record = json.loads(line)
            if record["identity"] in identities:
                yield from itertools.repeat(record, record.get("repeats", 1))
