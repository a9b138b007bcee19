"""One call to a backend with headers of the broker: `python examples/quickstart.py [URL]`, beside `make dev`."""

import sys

import httpx
from credentialbroker.client import Client
from credentialbroker.httpx_auth import BrokerAuth

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8089/backend-api/codex/models"
origin = str(httpx.URL(url).join("/")).rstrip("/")

with Client() as client, httpx.Client(auth=BrokerAuth(client, origin, "inference", "quickstart")) as backend:
    response = backend.get(url)
    kind = client.authorization("inference", "quickstart").kind_text
    sys.stdout.write(f"{kind} {response.status_code}\n")
