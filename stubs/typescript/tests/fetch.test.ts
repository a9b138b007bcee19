import assert from "node:assert/strict";
import type { ServerResponse } from "node:http";
import { test } from "node:test";

import { status } from "@grpc/grpc-js";

import { BrokerClient, BrokerError, OriginError, type Fetch } from "../src/index.js";
import { FakeBroker, gate, Origin, type Seen } from "./support.js";

/** Takes any credential but the first one. */
function rejectFirst({ headers }: Seen, response: ServerResponse): void {
  response.writeHead(headers.authorization === "secret-of-r1" ? 401 : 200).end("the answer");
}

interface World extends AsyncDisposable {
  readonly broker: FakeBroker;
  readonly origin: Origin;
  readonly client: BrokerClient;
  readonly fetch: Fetch;
}

async function world(respond: (seen: Seen, response: ServerResponse) => void): Promise<World> {
  const broker = await FakeBroker.start();
  const origin = await Origin.start(respond);
  const client = new BrokerClient({ address: broker.address });
  return {
    broker,
    origin,
    client,
    fetch: client.fetch({ origin: origin.url, scope: "inference", thread: "t" }),
    [Symbol.asyncDispose]: async () => {
      client.close();
      await Promise.all([broker[Symbol.asyncDispose](), origin[Symbol.asyncDispose]()]);
    },
  };
}

test("all headers are attached, each in the place of the user's, and the origin is named to the broker once", async () => {
  await using at = await world((_, response) => response.end());
  const headers = { Authorization: "mine", "ChatGPT-Account-Id": "mine", "x-kept": "yes" };
  await at.fetch(`${at.origin.url}/one?x=1`, { headers });
  await at.fetch(new URL("/two", at.origin.url));
  await at.fetch(new Request(`${at.origin.url}/three`));
  const [first] = at.origin.seen;
  assert.deepEqual(
    [first?.headers.authorization, first?.headers["chatgpt-account-id"], first?.headers["x-kept"]],
    ["secret-of-r1", "account", "yes"],
  );
  assert.deepEqual(
    at.broker.asked.map(({ targetUrl, threadId }) => [targetUrl, threadId]),
    [[at.origin.url, "t"]],
  );
  assert.equal(at.origin.seen.length, 3);
});

test("a request to another origin fails before anybody is asked", async () => {
  await using at = await world((_, response) => response.end());
  const { port } = new URL(at.origin.url);
  const others = [
    `http://localhost:${port}/`,
    `https://127.0.0.1:${port}/`,
    "http://127.0.0.1/",
    `http://127.0.0.1:1/?@127.0.0.1:${port}/`,
    `http://127.0.0.1:1/#@127.0.0.1:${port}/`,
  ];
  for (const url of others) {
    await assert.rejects(at.fetch(url), OriginError, url);
    await assert.rejects(at.fetch(new Request(url)), OriginError, url);
  }
  assert.deepEqual([at.origin.seen, at.broker.asked], [[], []]);
});

test("what is not an origin is refused when the adapter is made", async () => {
  await using at = await world((_, response) => response.end());
  for (const origin of ["nonsense", "data:text/plain,x"]) {
    assert.throws(() => at.client.fetch({ origin, scope: "inference" }), TypeError);
  }
});

test("no header leaves with a redirect, however the user's fetch is set", async () => {
  await using trap = await Origin.start((_, response) => response.end());
  await using at = await world((_, response) => response.writeHead(307, { location: `${trap.url}/x` }).end());
  for (const redirect of ["follow", "manual", undefined] as const) {
    const response = await at.fetch(at.origin.url, { ...(redirect !== undefined && { redirect }) });
    assert.deepEqual([response.status, response.headers.get("location")], [307, `${trap.url}/x`]);
  }
  await assert.rejects(at.fetch(at.origin.url, { redirect: "error" }), TypeError);
  await assert.rejects(at.fetch(new Request(at.origin.url, { redirect: "error" })), TypeError);
  assert.deepEqual(trap.seen, []);
});

test("after a 401 it reports and sends once more, with the whole body", async () => {
  await using at = await world(rejectFirst);
  const response = await at.fetch(at.origin.url, { method: "POST", body: "the body" });
  assert.deepEqual([response.status, await response.text()], [200, "the answer"]);
  assert.deepEqual(
    at.origin.seen.map(({ headers, body }) => [headers.authorization, body]),
    [
      ["secret-of-r1", "the body"],
      ["secret-of-better", "the body"],
    ],
  );
  assert.deepEqual(
    at.broker.reported.map(({ revision, httpStatus }) => [revision, httpStatus]),
    [["r1", 401]],
  );
});

test("a second 401 is the answer", async () => {
  await using at = await world((_, response) => response.writeHead(401).end());
  assert.equal((await at.fetch(at.origin.url)).status, 401);
  assert.deepEqual([at.origin.seen.length, at.broker.reported.length], [2, 1]);
});

test("a body that can be read once is not sent again; the 401 is the answer, after the report", async () => {
  await using at = await world(rejectFirst);
  const once = { method: "POST", body: new Blob(["stream"]).stream(), duplex: "half" } as const;
  assert.equal((await at.fetch(at.origin.url, once)).status, 401);
  assert.deepEqual(
    at.origin.seen.map(({ body }) => body),
    ["stream"],
  );
  assert.equal(at.broker.reported.length, 1);
  assert.equal((await at.fetch(at.origin.url)).status, 200);
});

test("the 401 is the answer when there is nothing better, or sending again fails", async () => {
  await using at = await world((_, response) => response.writeHead(401).end("rejected"));
  at.broker.reports = [{ error: status.FAILED_PRECONDITION }];
  const response = await at.fetch(at.origin.url);
  assert.deepEqual([response.status, await response.text()], [401, "rejected"]);

  at.broker.reports = [{}];
  let sent = 0;
  const failing = at.client.fetch({
    origin: at.origin.url,
    scope: "inference",
    fetch: (input, init) => {
      sent += 1;
      return sent === 1 ? fetch(input, init) : Promise.reject(new TypeError("the network is down"));
    },
  });
  assert.deepEqual([await (await failing(at.origin.url)).text(), sent], ["rejected", 2]);
});

test("the first 401 is read before sending again, so that one connection is enough, and is whole if it is the answer", async () => {
  const page = "x".repeat(40_000);
  const ports: (number | undefined)[] = [];
  await using at = await world(({ headers }, response) => {
    ports.push(response.socket?.remotePort);
    response.writeHead(headers.authorization === "secret-of-r1" ? 401 : 200).end(page);
  });
  assert.equal((await at.fetch(at.origin.url)).status, 200);
  assert.equal(ports[0], ports[1]);

  for (const length of [0, 40_000, 400_000]) {
    await using other = await world((_, response) => response.writeHead(401).end("y".repeat(length)));
    let sent = 0;
    const failing = other.client.fetch({
      origin: other.origin.url,
      scope: "inference",
      fetch: (input, init) => {
        sent += 1;
        return sent === 1 ? fetch(input, init) : Promise.reject(new TypeError("the network is down"));
      },
    });
    const answer = await failing(other.origin.url);
    assert.deepEqual([answer.status, (await answer.text()).length, sent], [401, length, 2]);
  }
});

test("a broken 401 does not hide the answer to the second attempt", async () => {
  await using at = await world(({ headers }, response) => {
    if (headers.authorization === "secret-of-r1") {
      response.writeHead(401, { "content-length": "100" }).write("half of it");
      setTimeout(() => response.destroy(), 20);
    } else {
      response.end("the answer");
    }
  });
  assert.equal(await (await at.fetch(at.origin.url)).text(), "the answer");
});

test("without headers nothing is sent", async () => {
  await using at = await world((_, response) => response.end());
  at.broker.answers = [{ error: status.PERMISSION_DENIED }];
  await assert.rejects(at.fetch(at.origin.url), BrokerError);
  assert.deepEqual(at.origin.seen, []);
});

test("a signal ends the wait for the broker", async () => {
  await using at = await world((_, response) => response.end());
  at.broker.answers = [{ after: new Promise(() => undefined) }];
  await assert.rejects(at.fetch(at.origin.url, { signal: AbortSignal.timeout(50) }), { name: "TimeoutError" });
});

test("the report of a 401 takes no longer than a call may", async () => {
  await using at = await world(rejectFirst);
  const { opened, open } = gate();
  at.broker.reports = [{ after: opened }];
  const fetch = at.client.fetch({ origin: at.origin.url, scope: "inference", thread: "t", timeoutMs: 300 });
  const begun = performance.now();
  assert.equal((await fetch(at.origin.url)).status, 401);
  assert.ok(performance.now() - begun < 5_000);
  open();
});
