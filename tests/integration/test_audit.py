"""The audit log of a whole broker: no header without its line, and every line there when the process is killed."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2

from tests.support.audit_lines import grants_in, lines
from tests.support.brokers import refused, running_broker, running_emulator


async def test_no_header_leaves_without_its_line(tmp_path: Path) -> None:
    """With a log that takes nothing, calls are refused with AUDIT_DOWN and no header; with room they are answered."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        await broker.create_agent()
        await broker.authorize("control_plane.usage")
        # A device that is always full, in the place of the file.
        full = os.open("/dev/full", os.O_WRONLY)
        log = broker.app.authorizer._audit
        descriptor = log._file
        assert descriptor is not None
        kept = os.dup(descriptor)
        os.dup2(full, descriptor)
        for scope in ("control_plane.models", "bootstrap"):
            refusal = await refused(broker.authorize(scope))
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "AUDIT_DOWN")
            assert refusal.retry_seconds
        os.dup2(kept, descriptor)
        for opened_here in (full, kept):
            os.close(opened_here)
        assert (await broker.authorize("control_plane.models")).headers


async def test_every_answer_is_in_the_log(tmp_path: Path) -> None:
    """Calls of several scopes and threads, some equal within a second, add up in the log to the answers given."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        await broker.create_agent()
        wishes = [("inference", "t1"), ("inference", "t2"), ("control_plane.usage", ""), ("bootstrap", "")] * 15
        await asyncio.gather(*(broker.authorize(*wish) for wish in wishes))
        await refused(broker.authorize("no.such"))
        await broker.app.stop()
        broker.app.request_stop()
    assert grants_in(tmp_path / "audit.jsonl") == {"inference": 30, "control_plane.usage": 15, "bootstrap": 15}


async def test_operators_changes_are_recorded_with_their_comment(tmp_path: Path) -> None:
    """Who changed what and why stands in the log, without the secret that came with it."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        await broker.create_agent()
        await broker.admin.DisableIdentity(admin_pb2.DisableIdentityRequest(name="agent", comment="left the company"))
        await broker.admin.EnableIdentity(admin_pb2.EnableIdentityRequest(name="agent", comment="came back"))
        await broker.admin.DeleteIdentity(admin_pb2.DeleteIdentityRequest(name="agent", comment="gone for good"))
    recorded = lines(tmp_path / "audit.jsonl")
    assert [(line["event"], line["comment"]) for line in recorded] == [
        ("create_identity", None),
        ("disable_identity", "left the company"),
        ("enable_identity", "came back"),
        ("delete_identity", "gone for good"),
    ]
    assert all(line["principal"] and line["request_id"] and line["resource"] == "agent" for line in recorded)


ANSWERING = """
import asyncio, sys
from pathlib import Path
from tests.support.brokers import running_broker, running_emulator

async def main():
    async with running_emulator() as emulator, running_broker(Path(sys.argv[1]), emulator) as broker:
        await broker.create_agent()
        for number in range(10**6):
            answer = await broker.authorize("control_plane.usage", f"thread-{number}")
            print(f"answered {number}", flush=True)

asyncio.run(main())
"""


def test_a_killed_process_has_a_line_for_each_answer(tmp_path: Path) -> None:
    """Every answer that left a process that was then killed with SIGKILL has its line."""
    process = subprocess.Popen([sys.executable, "-c", ANSWERING, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = list(itertools.islice(process.stdout, 30))
    process.send_signal(signal.SIGKILL)
    printed += process.stdout.readlines()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    answered = {line.split()[1] for line in printed if line.startswith("answered ") and line.endswith("\n")}
    recorded = {line["thread_id"] for line in lines(tmp_path / "audit.jsonl") if line["event"] == "grant"}
    assert {f"thread-{number}" for number in answered} <= recorded
    assert len(answered) >= 20
