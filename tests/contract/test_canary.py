"""No secret in anything the broker writes: planted ones are looked for in every form, everywhere."""

import base64
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process, create_subprocess_exec
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import grpc
import httpx
import pytest
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2
from credentialbroker.v1 import broker_admin_pb2_grpc, credential_broker_pb2_grpc
from credentialbroker.v1 import credential_broker_pb2 as pb2

from broker.emulator.faults import FaultRule
from broker.keys import SigningKey
from tests.support.brokers import guarded_channel, running_emulator

OPAQUE = "canary+opaque/token=Zq8vX2mK7rT4wY9bN3cH6jL1"
FROM_FILE = "canary_file_token-Hh5Gg4Ff3Ee2Dd1Cc0Bb9Aa8"
CLIENT_SECRET = "canary/client+secret=Pp5Qq4Rr3Ss2Tt1Uu0Vv9Ww8"
PRINTED = "canary-printed-token-Kk6Ll5Mm4Nn3Oo2Pp1Qq0Rr9"
LOG_LEVEL = "debug"


def forms(secret: bytes) -> Iterator[tuple[str, bytes]]:
    """
    Give every form in which a secret could stand somewhere.

    Base64 looks different at each of three offsets; what depends on the neighbours is cut off at both ends.
    """
    yield "plain", secret
    yield "hex", secret.hex().encode()
    yield "HEX", secret.hex().upper().encode()
    yield "url-encoded", quote(secret, safe="").encode()
    yield "JSON", json.dumps(secret.decode("latin-1")).encode()[1:-1]
    for offset in range(3):
        encoded = base64.b64encode(bytes(offset) + secret + bytes(3))
        stable = encoded[(4 if offset else 0) : (offset + len(secret)) // 3 * 4]
        yield f"base64 at {offset}", stable
        yield f"base64url at {offset}", stable.replace(b"+", b"-").replace(b"/", b"_")


def found(secrets: dict[str, bytes], where: dict[str, bytes]) -> list[tuple[str, str, str]]:
    """Say which secret stands in which form in what."""
    return [
        (name, form, place)
        for name, secret in secrets.items()
        for form, text in forms(secret)
        for place, content in where.items()
        if text in content
    ]


@pytest.mark.parametrize("secret", [OPAQUE.encode(), bytes(range(200, 232)), b"short-one-12"])
@pytest.mark.parametrize("before", [b"", b"x", b"xy", b"xyz"])
def test_the_search_finds_what_is_there(secret: bytes, before: bytes) -> None:
    """A planted secret is found in each form it can have, whatever stands around it."""
    around = before + secret + b"after"
    planted = {
        "plain": around,
        "hex": around.hex().encode(),
        "HEX": around.hex().upper().encode(),
        "base64": base64.b64encode(around),
        "base64url": base64.urlsafe_b64encode(around),
        "url": quote(around, safe="").encode(),
        "json": json.dumps(around.decode("latin-1")).encode(),
    }
    assert {place for _, _, place in found({"it": secret}, planted)} == set(planted)
    assert not found({"it": secret}, {place: text[::-1] for place, text in planted.items()})


@dataclass
class Run:
    """A broker process and what it wrote."""

    process: Process
    folder: Path
    address: str
    admin_address: str
    errors: list[bytes] = field(default_factory=list)

    async def serving(self) -> str:
        """Read events until calls are taken; return where metrics are."""
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.errors.append(line)
            event = json.loads(line)
            if event["event"] == "serving":
                return str(event["http"])
        raise AssertionError(b"".join(self.errors).decode())

    def files(self) -> dict[str, bytes]:
        """Read every file below the state directory, the key ring and the write-ahead log included."""
        state = self.folder / "state"
        return {str(path.relative_to(state)): path.read_bytes() for path in state.rglob("*") if path.is_file()}


async def start(folder: Path, emulator_url: str) -> Run:
    """Start the broker as a user does, at the level that says most."""
    token_file = folder / "token"
    token_file.write_text(FROM_FILE)
    token_file.chmod(0o600)
    config = folder / "broker.toml"
    addresses = [f"unix:{folder}/{name}.sock" for name in ("callers", "admin")]
    config.write_text(
        f"""
        [broker]
        state_dir = "{folder}/state"
        grant_bootstrap = true
        drain_seconds = 0
        [listen]
        callers = ["{addresses[0]}"]
        admin = ["{addresses[1]}"]
        http = "127.0.0.1:0"
        [log]
        level = "{LOG_LEVEL}"
        format = "json"
        [backends.default]
        base_url = "{emulator_url}/backend-api"
        authapi_base_url = "{emulator_url}/api/accounts"
        [bearer_sources.vault]
        type = "file"
        path = "{token_file}"
        [bearer_sources.service]
        type = "client_credentials"
        token_url = "{emulator_url}/oauth/token"
        client_id = "canary"
        client_secret_file = "{folder}/client-secret"
        [bearer_sources.refused]
        type = "client_credentials"
        token_url = "{emulator_url}/oauth/token"
        client_id = "nobody"
        client_secret_file = "{folder}/client-secret"
        auth = "post"
        [bearer_sources.workload]
        type = "workload_identity"
        token_url = "{emulator_url}/oauth/token"
        identity_token_file = "{folder}/identity-token"
        federation_rule_id = "rule-emulator"
        [bearer_sources.tool]
        type = "command"
        command = ["/bin/sh", "-c", "cat {folder}/printed; cat {folder}/printed >&2"]
        [bearer_sources.broken]
        type = "command"
        command = ["/bin/sh", "-c", "cat {folder}/printed {folder}/printed >&2; exit 1"]
        """
    )
    process = await create_subprocess_exec(
        *(sys.executable, "-m", "broker", "serve", "--dev", "--config", str(config)),
        stdout=PIPE,
        stderr=PIPE,
        env={**os.environ, "PYTHONASYNCIODEBUG": "1"},
    )
    return Run(process, folder, addresses[0], addresses[1])


async def test_no_secret_is_written_anywhere(tmp_path: Path) -> None:
    """After creating, importing, deciding, failing and refusing, no planted secret stands in any output or file."""
    async with running_emulator() as emulator:
        login = emulator.backend.mint_token(lifetime=timedelta(days=1)).access_token
        issued = emulator.backend.issue_identity()
        bare = SigningKey.from_seed(os.urandom(32))
        secrets = {
            "opaque token": OPAQUE.encode(),
            "token of a file": FROM_FILE.encode(),
            "login": login.encode(),
            "login's claims": login.split(".")[1].encode(),
            "identity JWT": issued.jwt.encode(),
            "identity JWT's signature": issued.jwt.split(".")[2].encode(),
            "private key of the JWT": base64.b64decode(issued.private_key)[16:48],
            "private key that came bare": bare.to_pkcs8_der()[16:48],
        }
        emulator.backend.oauth.clients.register(client_id="canary", client_secret=CLIENT_SECRET)
        emulator.backend.accept_bearer(PRINTED)
        workload = emulator.backend.mint_subject_token()
        secrets |= {
            "client's secret": CLIENT_SECRET.encode(),
            "printed token": PRINTED.encode(),
            "platform's token": workload.encode(),
            "platform token's signature": workload.split(".")[2].encode(),
        }
        for name, text in (("client-secret", CLIENT_SECRET), ("printed", PRINTED), ("identity-token", workload)):
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o600)
        run = await start(tmp_path, emulator.url)
        metrics_address = await run.serving()
        async with guarded_channel(run.address) as channel, guarded_channel(run.admin_address) as admin_channel:
            callers = credential_broker_pb2_grpc.CredentialBrokerStub(channel)
            admin = broker_admin_pb2_grpc.BrokerAdminStub(admin_channel)
            agent, bearer = admin_pb2.IDENTITY_MODE_AGENT, admin_pb2.IDENTITY_MODE_BEARER
            await admin.CreateIdentity(
                admin_pb2.CreateIdentityRequest(
                    request_id="1",
                    name="agent",
                    mode=agent,
                    static_bearer=admin_pb2.StaticBearer(token=login),
                    backend="default",
                )
            )
            await admin.CreateIdentity(
                admin_pb2.CreateIdentityRequest(
                    request_id="2",
                    name="opaque",
                    mode=bearer,
                    static_bearer=admin_pb2.StaticBearer(token=OPAQUE),
                    backend="default",
                )
            )
            await admin.CreateIdentity(
                admin_pb2.CreateIdentityRequest(
                    request_id="3", name="filed", mode=bearer, bearer_source="vault", backend="default"
                )
            )
            for name in ("service", "workload", "tool"):
                await admin.CreateIdentity(
                    admin_pb2.CreateIdentityRequest(
                        request_id=name, name=name, mode=bearer, bearer_source=name, backend="default"
                    )
                )
            await admin.ImportIdentity(
                admin_pb2.ImportIdentityRequest(
                    request_id="4", name="jwt", mode=agent, identity_jwt=issued.jwt, backend="default"
                )
            )
            await admin.ImportIdentity(
                admin_pb2.ImportIdentityRequest(
                    request_id="5",
                    name="bare",
                    mode=agent,
                    bare_key=admin_pb2.BareKey(
                        private_key=bare.to_pkcs8_base64(), agent_runtime_id="runtime-1", account_id="a", user_id="u"
                    ),
                    backend="default",
                )
            )
            # Refused for each of several reasons, one of them with the secret in the backend's own words.
            broken = issued.jwt[:-8] + "AAAAAAAA"
            echo = FaultRule.from_json(
                {
                    "operation": "task_register",
                    "path_prefix": "/api/accounts/v1/agent/runtime-1/",
                    "count": None,
                    "action": "status",
                    "status": 400,
                    "body": f"the token {OPAQUE} or key {issued.private_key} is bad",
                }
            )
            emulator.backend.faults.add(echo)
            # The issuer too says what it was sent, and a program what it should have printed elsewhere.
            overheard = FaultRule.from_json(
                {
                    "operation": "oauth",
                    "action": "status",
                    "status": 400,
                    "body": f"the secret {CLIENT_SECRET} is bad",
                }
            )
            emulator.backend.faults.add(overheard)
            refusals = 0
            for name in ("refused", "broken"):
                with pytest.raises(grpc.aio.AioRpcError):
                    await admin.CreateIdentity(
                        admin_pb2.CreateIdentityRequest(
                            request_id=name, name=name, mode=bearer, bearer_source=name, backend="default"
                        )
                    )
                refusals += 1
            for request in (
                admin_pb2.ImportIdentityRequest(
                    request_id="6", name="b", mode=agent, identity_jwt=broken, backend="default"
                ),
                admin_pb2.ImportIdentityRequest(
                    request_id="7",
                    name="c",
                    mode=bearer,
                    auth_json=f'{{"OPENAI_API_KEY": {OPAQUE}'.encode(),
                    backend="default",
                ),
            ):
                with pytest.raises(grpc.aio.AioRpcError):
                    await admin.ImportIdentity(request)
                refusals += 1
            wishes = [
                (identity, scope)
                for identity in ("agent", "opaque", "filed", "jwt", "bare", "service", "workload", "tool")
                for scope in ("inference", "control_plane.usage", "bootstrap", "no.such")
            ]
            for number, (identity, scope) in enumerate(wishes):
                asked = pb2.GetAuthorizationRequest(scope=scope, thread_id=f"thread-{number}", identity=identity)
                try:
                    answer = (await callers.GetAuthorization(asked, timeout=5)).authorization
                except grpc.aio.AioRpcError:
                    refusals += 1
                    continue
                value = next(item.value for item in answer.headers if item.name == "authorization")
                secrets[f"header {number}"] = value.encode()
            assert echo.fired
            assert overheard.fired
            await admin.DisableIdentity(admin_pb2.DisableIdentityRequest(name="agent", comment="because"))
            listed = await admin.ListIdentities(admin_pb2.ListIdentitiesRequest())
            shown = await admin.GetIdentity(admin_pb2.GetIdentityRequest(name="jwt"))
        async with httpx.AsyncClient(trust_env=False) as client:
            metrics = (await client.get(f"http://{metrics_address}/metrics")).content
        task_ids = {entry.task_id for entry in emulator.backend.ledger.entries() if entry.task_id}
        secrets |= {f"task id {task_id}": task_id.encode() for task_id in task_ids}
        before_end = {f"running: {name}": content for name, content in run.files().items()}
        run.process.send_signal(signal.SIGTERM)
        output, errors = await run.process.communicate()
        assert run.process.returncode == 0
    written = {
        "stdout": output,
        "stderr": b"".join(run.errors) + errors,
        "metrics": metrics,
        "list": listed.SerializeToString(),
        "show": shown.SerializeToString(),
        **before_end,
        **run.files(),
    }
    # The run was one worth searching: it handed out, refused, logged, kept its log and its write-ahead log.
    assert len(task_ids) >= 2
    assert sum(name.startswith("header") for name in secrets) >= 19
    assert refusals >= 13
    assert b"registration_failed" in written["stderr"]
    assert written["stderr"].count(b"is bad") >= 2
    assert b"bytes on its standard error" in written["stderr"]
    assert b"credential_broker_decisions_total" in metrics
    assert len(written["audit.jsonl"]) > 1000
    assert any(name.endswith("-wal") and content for name, content in before_end.items())
    assert found(secrets, written) == []
    # And it would be found: the search is made again with one thing planted in each place.
    planted = {place: content + base64.b64encode(b"?" + OPAQUE.encode()) for place, content in written.items()}
    assert {place for _, _, place in found({"opaque": OPAQUE.encode()}, planted)} == set(written)
