"""Every snippet of stubs/python/README.md runs, against a broker and a backend on loopback."""

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from credentialbroker import httpx_auth
from credentialbroker.client import Client

from tests.support.certificates import Authority
from tests.unit.client.conftest import SmallBroker
from tests.unit.client.test_adapters import Both

ROOT = Path(__file__).parents[3]
README = (ROOT / "stubs/python/README.md").read_text(encoding="utf-8")
SNIPPETS = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?```python\n(.*?)```", README, re.MULTILINE | re.DOTALL))


def test_each_section_with_code_has_its_snippet() -> None:
    """No code block escapes the test below."""
    assert len(SNIPPETS) == README.count("```python\n")


@pytest.mark.parametrize("title", SNIPPETS)
def test_the_snippet_runs(
    title: str, servers: Both, broker: SmallBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands, but for the backend's port."""
    for name in ("CREDENTIAL_BROKER_ADDRESS", "CREDENTIAL_BROKER_CA_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CREDENTIAL_BROKER_ADDRESS", broker.address)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    authority = Authority()
    certificate, key = authority.issue().write(tmp_path)
    certificate.rename("me.pem")
    key.rename("me.key")
    Path("ca.pem").write_bytes(authority.certificate)
    origin = servers[0].url
    with Client() as client, httpx.Client(trust_env=False) as backend:
        names: dict[str, Any] = {
            "Client": Client,
            "BrokerAuth": httpx_auth.BrokerAuth,
            "client": client,
            "backend": backend,
            "origin": origin,
            "url": f"{origin}/x",
            "dial": lambda *_: client._core.entries.withdrawn(next(iter(client._core.entries.by_key.values()))),
        }
        exec(compile(SNIPPETS[title].replace("http://127.0.0.1:8089", origin), title, "exec"), names)  # noqa: S102
        if "call" in names:
            assert asyncio.run(names["call"]()) == 200
        if "channel" in names:
            names["channel"].close()
