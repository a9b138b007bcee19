"""What the client for threads does in the background, so that what it holds stays current."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import grpc

from credentialbroker.channels import METADATA, Channel
from credentialbroker.errors import Failure, failure_of_call, failure_of_exception
from credentialbroker.lifetimes import LOOK_SECONDS
from credentialbroker.thread_calls import ThreadCalls, ThreadCore
from credentialbroker.v1 import credential_broker_pb2 as pb2
from credentialbroker.v1.credential_broker_pb2_grpc import CredentialBrokerStub


class _Stream:
    """A stream, and what is still to be sent on it."""

    __slots__ = ("call", "outbox", "silent")

    def __init__(self) -> None:
        self.outbox: Final[queue.SimpleQueue[pb2.WatchAuthorizationsRequest | None]] = queue.SimpleQueue()
        self.call: Any = None
        self.silent = False


class ThreadUpkeep:
    """Watches the broker in a thread, or looks at times what is to be asked; once there is something to keep."""

    def __init__(self, core: ThreadCore, calls: ThreadCalls) -> None:
        """Do nothing yet."""
        self._core: Final = core
        self._calls: Final = calls
        self._closing: Final = threading.Event()
        self._threads: Final[set[threading.Thread]] = set()
        self._streams: Final[set[_Stream]] = set()
        self._works = False

    def begin(self) -> None:
        """Begin, where there is something to keep current and nothing was begun."""
        with self._core.lock:
            if self._core.is_closed or self._works or not self._core.entries.by_key:
                return
            # Where there is no thread to be had now, the next answer tries again.
            with contextlib.suppress(RuntimeError):
                if self._core.watches:
                    self._start(self._keep_watching, 0.0)
                else:
                    self._start(self._keep_looking)
                self._works = True

    def end(self) -> None:
        """End all streams."""
        self._closing.set()
        with self._core.lock:
            streams = list(self._streams)
        for stream in streams:
            stream.outbox.put(None)
            if stream.call is not None:
                stream.call.cancel()

    def join(self) -> None:
        """Wait until all threads have ended."""
        for thread in list(self._threads):
            if thread is not threading.current_thread():
                thread.join()

    def _start(self, work: Callable[..., None], *arguments: float) -> None:
        thread = threading.Thread(target=work, args=arguments, name="credentialbroker-work", daemon=True)
        self._threads.add(thread)
        try:
            thread.start()
        except BaseException:
            self._threads.discard(thread)
            raise

    # --- without a watch ----------------------------------------------------------------------------------------------

    def _keep_looking(self) -> None:
        core = self._core
        while not self._closing.wait(LOOK_SECONDS):
            now = time.monotonic()
            with core.lock:
                core.entries.sweep(now)
                if not core.entries.by_key:
                    self._works = False
                    break
                due = core.entries.connected_and_due(now)
            for key in due:
                self._calls.refresh(key)
        self._threads.discard(threading.current_thread())

    # --- with one -----------------------------------------------------------------------------------------------------

    def _keep_watching(self, wait: float) -> None:
        next_wait: float | None = wait
        while next_wait is not None and not self._closing.wait(next_wait):
            next_wait = self._converse()
            self._core.health.say()
        self._threads.discard(threading.current_thread())

    def _converse(self) -> float | None:
        """Read a stream to its end. Returns the wait before the next; None where another thread opens it, or nobody."""
        core, stream = self._core, _Stream()
        with core.lock:
            if core.is_closed:
                return None
            self._streams.add(stream)
            core.watch.opened(stream.outbox, time.monotonic())
        failure = self._read(stream)
        with core.lock:
            self._streams.discard(stream)
            return core.watch.ended(stream.outbox, failure, time.monotonic())

    def _read(self, stream: _Stream) -> Failure | None:
        core = self._core
        channel: Channel[grpc.Channel] | None = None
        try:
            channel = core.channels.acquire()
            stub: Any = CredentialBrokerStub(channel.grpc)
            stream.call = stub.WatchAuthorizations(self._messages(stream), metadata=METADATA)
            if self._closing.is_set():
                stream.call.cancel()
            if stream.call.initial_metadata():
                with core.lock:
                    core.watch.lives(time.monotonic())
                core.health.say()
            for event in stream.call:
                self._take(stream, event)
                core.health.say()
        except grpc.RpcError as error:
            return core.silent() if stream.silent else failure_of_call(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, watching goes on with the next stream
            return failure_of_exception(error)
        finally:
            stream.outbox.put(None)
            if stream.call is not None:
                stream.call.cancel()
            if channel is not None:
                self._calls.release(channel)
        return None

    def _take(self, stream: _Stream, event: pb2.WatchAuthorizationsResponse) -> None:
        core = self._core
        with core.lock:
            if core.is_closed:
                return
            wait = core.watch.take(stream.outbox, event, time.monotonic())
            if wait is not None:
                self._start(self._keep_watching, wait)
                core.watch.succeeded = True

    def _messages(self, stream: _Stream) -> Iterator[pb2.WatchAuthorizationsRequest]:
        # Runs in the thread in which gRPC sends. While there is nothing to send it watches over the silence.
        watch, silence = self._core.watch, self._core.silence
        while True:
            try:
                message = stream.outbox.get(timeout=max(0.01, watch.heard + silence - time.monotonic()))
            except queue.Empty:
                if time.monotonic() - watch.heard >= silence and stream.call is not None:
                    stream.silent = True
                    stream.call.cancel()
                    return
                continue
            if message is None:
                return
            yield message
