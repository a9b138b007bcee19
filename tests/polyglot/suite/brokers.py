"""Broker processes, and what each tells of what was asked of it: its metrics and its audit log."""

import asyncio
import contextlib
import itertools
import json
import re
import signal
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

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
_PROGRAM: Final = (str(Path(sys.executable).parent / "credential-broker"), "serve")
_AGED_PROGRAM: Final = (sys.executable, "-m", "tests.polyglot.suite.aged_broker")
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


class Broker:
    """
    One broker, which may be killed and started again at the same addresses.

    Args:
        name: what to call it.
        folder: for its configuration and log.
        settings: its whole configuration.
        admin: the address of its operators' listener.
        http: the address of its metrics.
        connection_age: seconds to which the life of a connection is scaled down; None leaves it.
    """

    def __init__(
        self,
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
        self._file = folder / f"{name}.toml"
        self._file.write_text(as_toml(settings), encoding="utf-8")
        self._words = (
            [*_PROGRAM, "--dev", "--config", str(self._file)]
            if connection_age is None
            else [*_AGED_PROGRAM, str(self._file), str(connection_age)]
        )
        self._admin = admin
        self._metrics = f"http://{http}/metrics"
        self._process: asyncio.subprocess.Process | None = None
        self._of_lives_before: Counter[Sample] = Counter()
        self._channel: grpc.aio.Channel | None = None
        self._http = httpx.AsyncClient(trust_env=False, timeout=_CALL_SECONDS, verify=processes.no_authorities())

    @property
    def is_up(self) -> bool:
        """Whether its process runs."""
        return self._process is not None

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
        seen = self._log.stat().st_size if self._log.exists() else 0
        process = await processes.start(
            self._words, log=self._log, environment=processes.clean_environment(), folder=_ROOT
        )
        self._process = process
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                while process.returncode is None:
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
        process, self._process = self._process, None
        if process is None:
            return
        if how is signal.SIGKILL:
            # What it counted is lost with it. Of one that drains new calls are counted to its end, and seen by nobody.
            with contextlib.suppress(httpx.HTTPError):
                self._of_lives_before.update(_counted(await self._read()))
        else:
            self._of_lives_before.update(_counted(await self._read()))
        await processes.end(process, seconds=STOP_SECONDS, how=how)

    def pause(self, *, on: bool) -> None:
        """Stop it where it is (SIGSTOP), as a machine that hangs, or let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP if on else signal.SIGCONT)

    async def close(self) -> None:
        """End it for good."""
        process, self._process = self._process, None
        if process is not None:
            await processes.end(process, seconds=0, how=signal.SIGKILL)
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
