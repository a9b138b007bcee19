// Calls a protected resource with headers of the credential broker: node build/examples/quickstart.js [URL]
// Beside `make dev` nothing needs to be set; else see "Finding the broker" in README.md.

import { BrokerClient } from "credentialbroker";

const url = process.argv[2] ?? "http://127.0.0.1:8089/backend-api/codex/models";

const client = new BrokerClient();
const fetchBackend = client.fetch({ origin: new URL(url).origin, scope: "inference", thread: "quickstart" });
const response = await fetchBackend(url);

const { kind } = await client.authorization("inference", { thread: "quickstart" }); // from memory
console.log(kind, response.status);
client.close();
