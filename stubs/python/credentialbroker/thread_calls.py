"""The calls of the client for threads: one for all who ask the same at a time."""

import queue
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

import grpc

from credentialbroker.authorization import Authorization, Key
from credentialbroker.channels import METADATA, Channel
from credentialbroker.core import Core
from credentialbroker.errors import BrokerError, Failure, deadline_exceeded, failure_of_call, failure_of_exception
from credentialbroker.flights import Flight
from credentialbroker.questions import Patience, Question, Report
from credentialbroker.v1.credential_broker_pb2_grpc import CredentialBrokerStub

Landed = Future[Authorization | Failure | None]
ThreadCore = Core[grpc.Channel, Landed]

_TELL_SECONDS: Final = 1.0
"""How long gRPC may take to tell the state of a channel."""


class ThreadCalls:
    """Asks the broker, in the threads of gRPC; who wants an answer waits in its own."""

    def __init__(self, core: ThreadCore, landed: Callable[[], None]) -> None:
        """
        Ask nothing yet.

        Args:
            core: of the client.
            landed: called after each answer, which may have brought something to keep current.
        """
        self._core: Final = core
        self._landed: Final = landed

    def ask(self, question: Question | Report, timeout: float | None) -> Authorization:
        """Return what is held, or wait for the broker's answer. Errors: as of `Client.authorization`."""
        core = self._core
        seconds = core.seconds(timeout)
        deadline = time.monotonic() + seconds
        patience = Patience()
        while True:
            with core.lock:
                core.check_open()
                found = question.look(core.entries, time.monotonic())
                if isinstance(found, Authorization):
                    return found
                flight, begins = self._join(found.question)
            if begins:
                self._begin(flight)
            if found.meanwhile is not None:
                return found.meanwhile
            answer = patience.judge(self._wait(flight, deadline, seconds), joined=not begins)
            if answer is not None:
                return answer

    def touch(self, key: Key) -> None:
        """Begin a refresh of what is held, if that is due: for who uses it without asking for it."""
        with self._core.lock:
            _, is_due = self._core.entries.look(key, time.monotonic())
        if is_due:
            self.refresh(key)

    def refresh(self, key: Key) -> None:
        """Begin a refresh, for which nobody waits."""
        with self._core.lock:
            if self._core.is_closed:
                return
            flight, begins = self._join(Question(key))
        if begins:
            self._begin(flight)

    def call(self, rpc: str, request: Any, timeout: float | None) -> Any:
        """Make a call that brings no authorization. Errors: as of `Client.register_task`."""
        core = self._core
        core.check_open()
        channel = core.channels.acquire()
        try:
            method = getattr(CredentialBrokerStub(channel.grpc), rpc)
            response = method(request, timeout=core.seconds(timeout), metadata=METADATA)
        except (grpc.RpcError, ValueError) as error:
            core.check_open()  # closing cancels what is under way, and then the channel takes nothing more
            if not isinstance(error, grpc.Call):
                raise
            failure = failure_of_call(error)
            with core.lock:
                core.health.call_failed(failure, time.monotonic())
            self._say_if_cut_off(failure)
            core.health.say()
            raise BrokerError(failure) from None
        finally:
            self.release(channel)
        with core.lock:
            core.health.good()
        core.health.say()
        return response

    def release(self, channel: Channel[grpc.Channel]) -> None:
        """Give a channel back after a call."""
        for unused in self._core.channels.release(channel):
            unused.close()

    def _join(self, question: Question | Report) -> tuple[Flight[Landed], bool]:
        flight, begins = self._core.flights.join(question)
        if begins:
            flight.landed = Future()
        return flight, begins

    def _wait(self, flight: Flight[Landed], deadline: float, seconds: float) -> Authorization | Failure | None:
        try:
            answer = flight.landed.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            failure = deadline_exceeded(seconds)
            self._say_if_cut_off(failure)
            raise BrokerError(failure) from None
        finally:
            with self._core.lock:
                given_up = self._core.flights.leave(flight)
            if given_up and flight.call is not None:
                flight.call.cancel()
        self._core.check_open()
        return answer

    def _begin(self, flight: Flight[Landed]) -> None:
        # Whatever happens the flight lands, or all who ask the same would wait for it.
        channel: Channel[grpc.Channel] | None = None
        try:
            channel = self._core.channels.acquire()
            method: Any = getattr(CredentialBrokerStub(channel.grpc), flight.question.rpc)
            call = method.future(flight.request, timeout=self._core.timeout, metadata=METADATA)
        except BaseException as error:
            if channel is not None:
                self.release(channel)
            self._land(flight, failure_of_exception(error))
            if not isinstance(error, Exception):
                raise
            return
        flight.call = call
        used = channel
        call.add_done_callback(lambda done: self._arrived(flight, used, done))

    def _arrived(self, flight: Flight[Landed], channel: Channel[grpc.Channel], call: Any) -> None:
        now = time.monotonic()
        outcome: Authorization | Failure
        try:
            if call.code() is grpc.StatusCode.OK:
                outcome = Authorization(call.result().authorization, flight.question.key, now)
            else:
                outcome = failure_of_call(call)
        except Exception as error:  # noqa: BLE001 - gRPC would swallow it, and nobody learn that the call has ended
            outcome = failure_of_exception(error)
        try:
            self.release(channel)
        finally:
            self._land(flight, outcome)

    def _land(self, flight: Flight[Landed], outcome: Authorization | Failure) -> None:
        core = self._core
        answer: Authorization | Failure | None = outcome
        try:
            with core.lock:
                if not core.is_closed:
                    answer = core.flights.land(flight, outcome, time.monotonic())
        finally:
            flight.landed.set_result(answer)
        if isinstance(outcome, Failure):
            self._say_if_cut_off(outcome)
        core.health.say()
        self._landed()

    def _say_if_cut_off(self, failure: Failure) -> None:
        # A call waits for a connection until its time has passed, which alone says nothing of the broker.
        core = self._core
        if core.is_closed or not failure.is_late:
            return
        if _state(core.channels.current) is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            with core.lock:
                core.health.failed(failure, time.monotonic(), away=True)
            core.health.say()


def _state(channel: grpc.Channel) -> grpc.ChannelConnectivity | None:
    # gRPC has no other public way to a channel's state. It tells at once, in a thread of its own.
    told: queue.SimpleQueue[grpc.ChannelConnectivity] = queue.SimpleQueue()
    tell = told.put
    try:
        channel.subscribe(tell)
        return told.get(timeout=_TELL_SECONDS)
    except (RuntimeError, queue.Empty):  # there is no thread to be had now, or none of its turns
        return None
    finally:
        channel.unsubscribe(tell)
