import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtempSync, readdirSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { format, inspect, promisify } from "node:util";

import { BrokerClient, ClosedError, type Header } from "../src/index.js";
import { clientOf, FakeBroker, gate, until } from "./support.js";

test("what is held is handed out without a macrotask, as the same promise", async () => {
  await using broker = await FakeBroker.start();
  using client = clientOf(broker, { watch: false });
  const first = await client.authorization("inference", { thread: "t" });
  let isLater = false;
  setImmediate(() => (isLater = true));
  const answer = client.authorization("inference", { thread: "t" });
  assert.equal(await answer, first);
  assert.equal(isLater, false);
  assert.equal(client.authorization("inference", { thread: "t" }), answer);
  assert.equal(broker.asked.length, 1);
});

test("keys are not mixed up, wherever their words are parted", async () => {
  await using broker = await FakeBroker.start();
  using client = clientOf(broker, { watch: false });
  await client.authorization("a", { thread: "b.c", identity: "x" });
  await client.authorization("a.b", { thread: "c", identity: "x" });
  await client.authorization("a", { thread: "b.c", identity: "y" });
  await client.authorization("a", { thread: "b.c" });
  assert.equal(broker.asked.length, 4);
});

test("an empty text is as if it were not given", async () => {
  await using broker = await FakeBroker.start();
  using client = clientOf(broker, { identity: "mine", watch: false });
  const first = await client.authorization("inference", { thread: "", identity: "", targetUrl: "" });
  assert.equal(await client.authorization("inference", { targetUrl: "" }), first);
  assert.deepEqual(
    broker.asked.map(({ identity, targetUrl }) => [identity, targetUrl]),
    [["mine", ""]],
  );
});

test("nobody can change the headers that others get", async () => {
  await using broker = await FakeBroker.start();
  using client = clientOf(broker, { watch: false });
  const { headers } = await client.authorization("inference");
  assert.throws(() => (headers as Header[]).pop(), TypeError);
});

test("a hundred clients leave no thread, file or connection behind", async () => {
  await using broker = await FakeBroker.start();
  const count = (): [number, number] => [readdirSync("/proc/self/fd").length, process.getActiveResourcesInfo().length];
  const openAndClose = async (): Promise<void> => {
    const streams = broker.streams.length;
    const client = clientOf(broker);
    await client.authorization("inference");
    await until(() => broker.streams.length > streams, "stream");
    client.close();
  };
  await openAndClose();
  await sleep(100);
  const [files, resources] = count();
  for (let n = 0; n < 100; n += 1) {
    await openAndClose();
  }
  await until(
    () => count()[0] <= files + 1 && count()[1] <= resources + 2,
    `no more than ${String([files, resources])}`,
  );
});

test("whoever waits when the client is closed fails at once, and so does every later use", async () => {
  await using broker = await FakeBroker.start();
  const client = clientOf(broker);
  const held = await client.authorization("inference", { thread: "held" });
  const connection = await client.connection("inference", { thread: "held" });
  const { opened, open } = gate();
  broker.answers = [{ after: opened }];
  const waiting = client.authorization("inference");
  client.close();
  client.close();
  await assert.rejects(waiting, ClosedError);
  await assert.rejects(client.authorization("inference", { thread: "held" }), ClosedError);
  await assert.rejects(client.reportRejected(held), ClosedError);
  await assert.rejects(client.endTask("held"), ClosedError);
  assert.ok(connection.signal.reason instanceof ClosedError);
  open();
});

test("no way of printing shows a header's value", async () => {
  await using broker = await FakeBroker.start();
  using client = clientOf(broker);
  const authorization = await client.authorization("inference");
  using connection = await client.connection("inference");
  const error = new Error("shown", { cause: authorization });
  for (const value of [authorization, authorization.headers, client, connection, error, { authorization }]) {
    const texts = [
      inspect(value, { depth: null, showHidden: true, getters: true, showProxy: true }),
      format("%s %o %O %j", value, value, value, value),
      JSON.stringify(value),
    ];
    assert.ok(!texts.join("\n").includes("secret-of"), texts.join("\n"));
  }
  assert.equal(authorization.headers[0]?.value, "secret-of-r1");
});

test("an authorization of another client cannot be reported", async () => {
  await using broker = await FakeBroker.start();
  using client = clientOf(broker);
  using other = clientOf(broker);
  await assert.rejects(other.reportRejected(await client.authorization("inference")), TypeError);
});

test("a client does not keep the process alive, and whoever waits does", async () => {
  await using broker = await FakeBroker.start();
  const { opened, open } = gate();
  broker.answers = [{ after: opened }];
  const program = `
    import { BrokerClient } from "credentialbroker";
    const client = new BrokerClient({ address: "${broker.address}" });
    console.log((await client.authorization("inference")).revision);
    await new Promise((resolve) => setTimeout(resolve, 300)); // for the stream to be open
  `;
  const running = promisify(execFile)("node", ["--input-type=module", "--eval", program], { timeout: 10_000 });
  await until(() => broker.asked.length === 1, "asked");
  setTimeout(open, 300);
  assert.equal((await running).stdout, "r1\n");
  assert.equal(broker.streams.length, 1);
});

test("what is wrong with a TLS file is told when the client is made, with its name", () => {
  const folder = mkdtempSync(join(tmpdir(), "tls-"));
  const junk = join(folder, "junk.pem");
  writeFileSync(junk, "-----BEGIN CERTIFICATE-----\njunk\n-----END CERTIFICATE-----\n");
  for (const caFile of [junk, join(folder, "missing.pem")]) {
    assert.throws(
      () => new BrokerClient({ caFile }),
      (error: Error) => error.message.includes(caFile) && error.cause instanceof Error,
    );
  }
});
