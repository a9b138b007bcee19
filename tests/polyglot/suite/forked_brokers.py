"""
Brokers by the dozen: `python -m tests.polyglot.suite.forked_brokers` has loaded the broker once, and forks for each.

Loading costs a second of a core, which a run of the suite would spend two hundred times. Each fork is what
`credential-broker serve --dev --config FILE` is from there on: a process of its own, in a session of its own, with its
own log, to be killed or stopped as one. Nothing of gRPC or of an event loop is begun before the fork.

On standard input: `{"config": FILE, "log": FILE, "connection_age": SECONDS or null}`, a line for each broker; on standard
output `{"began": PID}`, in that order, and `{"ended": PID, "code": CODE}` when one has. At the end of the input all end.
"""

import asyncio
import contextlib
import gc
import json
import os
import selectors
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import uvloop  # noqa: F401

import broker.store.sqlite  # noqa: F401 - a broker loads them when it starts
from broker import app
from broker.app import Application
from broker.config import Config, load_config
from broker.errors import StartupError
from broker.telemetry import configure_logging


def serve(order: dict[str, Any]) -> int:
    """Be a broker, in a process that was forked for it; return the exit code."""
    os.setsid()
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, place in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, place)
    os.closerange(3, 64)
    config = load_config(Path(order["config"]), {}, dev=True)
    try:
        if order["connection_age"] is None:
            return app.run(config)
        return asyncio.run(_serve_aging(config, order["connection_age"]))
    except StartupError as error:
        print(*error.problems, sep="\n", file=sys.stderr, flush=True)
        return error.exit_code


async def _serve_aging(config: Config, seconds: float) -> int:
    """Serve as `app.run` does, with connections whose life is scaled down: their grace is four fifths of it, as ever."""
    configure_logging(config.log.level, config.log.format)
    arguments = {
        "grpc.max_connection_age_ms": round(seconds * 1000),
        "grpc.max_connection_age_grace_ms": round(seconds * 800),
    }
    application = Application(config, channel_arguments=arguments)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, application.request_stop)
    await application.start()
    print('{"event": "serving"}', file=sys.stderr, flush=True)
    await application.run_until_stopped()
    return 0


def fork(line: bytes) -> int:
    """Begin a broker; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        code = serve(json.loads(line))
    except BaseException:  # noqa: BLE001 - nothing of a child may reach the loop that forked it
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def say(**event: int) -> None:
    """Write a line."""
    os.write(1, json.dumps(event).encode() + b"\n")


def main() -> None:
    """Begin brokers and tell of their ends, until the end of the input."""
    gc.collect()
    gc.freeze()
    living: set[int] = set()
    woken, wakes = os.pipe()
    for end in (woken, wakes):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    unread = b""
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                data = os.read(key.fd, 65536)
                if key.fd == woken:
                    tell_ends(living)
                    continue
                if not data:
                    end_all(living)
                    return
                *lines, unread = (unread + data).split(b"\n")
                for line in lines:
                    living.add(pid := fork(line))
                    say(began=pid)


def tell_ends(living: set[int]) -> None:
    """Tell of each broker that has ended since."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            living.discard(ended[0])
            say(ended=ended[0], code=os.waitstatus_to_exitcode(ended[1]))


def end_all(living: set[int]) -> None:
    """Kill what still runs."""
    for pid in living:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
