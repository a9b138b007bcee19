"""The calls of the client for asyncio: one for all who ask the same at a time."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

import grpc
import grpc.aio

from credentialbroker.authorization import Authorization, Key
from credentialbroker.channels import METADATA, Channel
from credentialbroker.core import Core
from credentialbroker.errors import BrokerError, Failure, deadline_exceeded, failure_of_call, failure_of_exception
from credentialbroker.flights import Flight
from credentialbroker.questions import Patience, Question, Report
from credentialbroker.v1.credential_broker_pb2_grpc import CredentialBrokerStub

Landed = asyncio.Task[Authorization | Failure | None]
AioCore = Core[grpc.aio.Channel, Landed]
_CUT_OFF: Final = grpc.ChannelConnectivity.TRANSIENT_FAILURE
Start = Callable[[Coroutine[Any, Any, Any], str], asyncio.Task[Any]]
"""Starts a task of the client, by its name."""


class AioCalls:
    """Asks the broker, in a task for each call; those who want its answer wait for that task, which none of them is."""

    def __init__(self, core: AioCore, start: Start, landed: Callable[[], None]) -> None:
        """
        Ask nothing yet.

        Args:
            core: of the client.
            start: starts a task of the client.
            landed: called after each answer, which may have brought something to keep current.
        """
        self._core: Final = core
        self._start: Final = start
        self._landed: Final = landed

    async def ask(self, question: Question | Report, timeout: float | None) -> Authorization:  # noqa: ASYNC109 - of the call
        """Return what is held, or wait for the broker's answer. Errors: as of `AsyncClient.authorization`."""
        core = self._core
        seconds = core.seconds(timeout)
        deadline = time.monotonic() + seconds
        patience = Patience()
        while True:
            core.check_open()
            found = question.look(core.entries, time.monotonic())
            if isinstance(found, Authorization):
                return found
            flight, begins = self._join(found.question)
            if found.meanwhile is not None:
                return found.meanwhile
            answer = patience.judge(await self._wait(flight, deadline, seconds), joined=not begins)
            if answer is not None:
                return answer

    def touch(self, key: Key) -> None:
        """Begin a refresh of what is held, if that is due: for who uses it without asking for it."""
        _, is_due = self._core.entries.look(key, time.monotonic())
        if is_due:
            self.refresh(key)

    def refresh(self, key: Key) -> None:
        """Begin a refresh, for which nobody waits."""
        self._join(Question(key))

    async def call(self, rpc: str, request: Any, timeout: float | None) -> Any:  # noqa: ASYNC109
        """Make a call that brings no authorization. Errors: as of `AsyncClient.register_task`."""
        core = self._core
        core.check_open()
        channel = core.channels.acquire()
        method = getattr(CredentialBrokerStub(channel.grpc), rpc)
        try:
            response = await method(request, timeout=core.seconds(timeout), metadata=METADATA)
        except grpc.aio.AioRpcError as error:
            core.check_open()  # closing cancels what is under way
            failure = failure_of_call(error)
            core.health.call_failed(failure, time.monotonic())
            self._note_if_cut_off(failure)
            raise BrokerError(failure) from None
        except asyncio.CancelledError:
            core.check_open()  # closing cancels what is under way, and not only who waits
            raise
        else:
            core.health.good()
            return response
        finally:
            core.health.say()
            await self.release(channel)

    async def release(self, channel: Channel[grpc.aio.Channel]) -> None:
        """Give a channel back after a call."""
        for unused in self._core.channels.release(channel):
            await unused.close()

    def _join(self, question: Question | Report) -> tuple[Flight[Landed], bool]:
        flights = self._core.flights
        flight, begins = flights.join(question)
        if begins:
            flight.landed = flight.call = self._start(self._fly(flight), "credentialbroker-call")
            flight.landed.add_done_callback(lambda _: flights.remove(flight))  # however it ended
        return flight, begins

    async def _wait(self, flight: Flight[Landed], deadline: float, seconds: float) -> Authorization | Failure | None:
        try:
            await asyncio.wait({flight.landed}, timeout=max(0.0, deadline - time.monotonic()))
        finally:
            if self._core.flights.leave(flight):
                flight.call.cancel()
        self._core.check_open()
        if not flight.landed.done() or flight.landed.cancelled():
            failure = deadline_exceeded(seconds)
            self._note_if_cut_off(failure)
            self._core.health.say()
            raise BrokerError(failure)
        return flight.landed.result()

    async def _fly(self, flight: Flight[Landed]) -> Authorization | Failure | None:
        outcome: Authorization | Failure
        try:
            outcome = await self._send(flight)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the failure of this call
            outcome = failure_of_exception(error)
        answer = self._core.flights.land(flight, outcome, time.monotonic())
        if isinstance(outcome, Failure):
            self._note_if_cut_off(outcome)
        self._core.health.say()
        self._landed()
        return answer

    def _note_if_cut_off(self, failure: Failure) -> None:
        # A call waits for a connection until its time has passed, which alone says nothing of the broker.
        core = self._core
        if failure.is_late and core.channels.current.get_state() is _CUT_OFF:
            core.health.failed(failure, time.monotonic(), away=True)

    async def _send(self, flight: Flight[Landed]) -> Authorization | Failure:
        channel = self._core.channels.acquire()
        stub: Any = CredentialBrokerStub(channel.grpc)
        try:
            method = getattr(stub, flight.question.rpc)
            response = await method(flight.request, timeout=self._core.timeout, metadata=METADATA)
            return Authorization(response.authorization, flight.question.key, time.monotonic())
        except grpc.aio.AioRpcError as error:
            return failure_of_call(error)
        finally:
            await self.release(channel)
