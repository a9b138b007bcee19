import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import { status } from "@grpc/grpc-js";

import { authorizationMessage, clientOf, errorStatus, FakeBroker, keepingLog, until } from "./support.js";

test("after a restart of the broker the stream is opened again, and told once each", async () => {
  await using broker = await FakeBroker.start();
  const { lines, logger } = keepingLog();
  using client = clientOf(broker, { logger });
  await client.authorization("inference");
  await until(() => broker.actions.length === 1 && client.state().watching, "watching");
  broker.kill();
  await until(() => !client.state().watching && lines.length === 1, "away");
  assert.equal((await client.authorization("inference")).revision, "r1");
  assert.match(
    lines[0] ?? "",
    /^warn: .*the broker is away .*; 1 authorizations are held, of which the first ends in \d+\.\d s/,
  );
  const waiting = client.authorization("inference", { thread: "new" });
  await broker.listen();
  await waiting;
  await until(() => client.state().watching && lines.length === 2, "back");
  assert.match(lines[1] ?? "", /^info: .*the broker is back/);
  await until(
    () => broker.actions.slice(1).some(({ value }) => "knownRevision" in value && value.knownRevision === "r1"),
    "subscribed again, with what is held",
  );
});

test("without a watch it is told while somebody still waits that the broker cannot be reached, and its answer is word of it", async () => {
  await using broker = await FakeBroker.start();
  const { lines, logger } = keepingLog();
  using client = clientOf(broker, { watch: false, logger });
  await client.authorization("inference");
  broker.kill();
  const waiting = client.authorization("inference", { thread: "new" });
  await until(() => lines.length === 1, "away");
  assert.match(lines[0] ?? "", /^warn: .*the broker is away/);
  await broker.listen();
  await waiting;
  assert.match(lines[1] ?? "", /^info: .*the broker is back/);
  assert.equal(lines.length, 2);
});

test("who comes after a stream without subscriptions was closing is watched on another", async () => {
  await using broker = await FakeBroker.start();
  using client = clientOf(broker);
  await client.authorization("inference");
  await until(() => broker.actions.length === 1, "subscribed");
  broker.send({ $case: "error", value: { status: errorStatus(status.PERMISSION_DENIED) } });
  await until(() => client.state().held === 0, "dropped");
  broker.send({ $case: "closing", value: { retryDelay: undefined } });
  await sleep(500); // longer than the wait for the next stream, which has nobody
  await client.authorization("inference", { thread: "new" });
  await until(() => broker.streams.length === 2, "another stream");
});

test("a hundred restarts of the broker leave nothing behind, and fail nobody who holds a value", async () => {
  await using broker = await FakeBroker.start();
  using client = clientOf(broker);
  await client.authorization("inference");
  const restart = async (): Promise<void> => {
    broker.kill();
    await broker.listen();
    assert.equal((await client.authorization("inference")).revision, "r1");
  };
  await restart();
  await until(() => client.state().watching, "watching");
  const files = readdirSync("/proc/self/fd").length;
  for (let n = 1; n <= 100; n += 1) {
    await restart();
    if (n % 25 === 0) {
      await until(() => client.state().watching, "watching");
    }
  }
  await until(() => readdirSync("/proc/self/fd").length <= files + 2, "no more files");
  assert.equal(broker.asked.length, 1);
});

test("what is due or withdrawn goes when nobody has used it for long, with a watch and without", async () => {
  await using broker = await FakeBroker.start();
  broker.answers = [{ refreshMs: 10 }];
  using unwatched = clientOf(broker, { idleMs: 50, watch: false });
  await unwatched.authorization("inference");
  using watched = clientOf(broker, { idleMs: 50 });
  broker.answers = [{}];
  await watched.authorization("inference");
  await until(() => broker.actions.length === 1, "subscribed");
  broker.send({ $case: "withdrawal", value: { reason: "WITHDRAWAL_REASON_TASK_REVOKED" } });
  await until(() => broker.actions.length === 2, "unsubscribed");
  assert.equal(broker.actions[1]?.$case, "unsubscribe");
  await until(() => unwatched.state().held === 0, "dropped");
});

test("an open connection keeps its authorization current on a client that does not watch", async () => {
  await using broker = await FakeBroker.start();
  broker.answers = [{ refreshMs: 10 }, { revision: "r2", tag: "another" }];
  using client = clientOf(broker, { idleMs: 50, watch: false });
  using connection = await client.connection("inference");
  await until(() => connection.changed, "changed");
  assert.equal(broker.asked.length, 2);
});

test("a stream is given no more than it takes, and what it cannot take is asked for when it is due", async () => {
  await using broker = await FakeBroker.start();
  using client = clientOf(broker, { cacheSize: 1_002 });
  await Promise.all(Array.from({ length: 1_000 }, (_, n) => client.authorization("inference", { thread: String(n) })));
  await until(() => broker.actions.length === 1_000, "subscribed");
  broker.answers = [{ refreshMs: 10 }, { revision: "r2" }];
  await client.authorization("inference", { thread: "over" });
  await sleep(20);
  await client.authorization("inference", { thread: "over" });
  await until(() => broker.asked.length === 1_002, "refreshed");
  assert.equal(broker.actions.length, 1_000);
  broker.answers = [{ error: status.NOT_FOUND }];
  broker.send({ $case: "error", value: { status: errorStatus(status.NOT_FOUND) } });
  await until(() => broker.actions.length === 1_001, "unsubscribed");
  const refused = broker.actions[999];
  const thread = refused?.$case === "subscribe" ? refused.value.threadId : "";
  await assert.rejects(client.authorization("inference", { thread }), { code: "NOT_FOUND" });
  broker.answers = [{}];
  await client.authorization("inference", { thread: "there is room" });
  await until(() => broker.actions.length === 1_002, "subscribed instead");
});

test("a broker that is connected and says nothing is not back, and one that says anything is", async () => {
  await using broker = await FakeBroker.start();
  const { lines, logger } = keepingLog();
  using client = clientOf(broker, { silenceMs: 200, logger });
  await client.authorization("inference");
  await until(() => broker.streams.length === 3, "silent twice");
  assert.equal(lines.length, 1);
  broker.send({ $case: "heartbeat", value: {} });
  await until(() => lines.length === 2, "back");
  assert.match(lines[1] ?? "", /the broker is back/);
});

test("a logger that throws ends neither a call nor the watch", async () => {
  await using broker = await FakeBroker.start();
  const fail = (): never => {
    throw new Error("the disk is full");
  };
  using client = clientOf(broker, { silenceMs: 100, logger: { info: fail, warn: fail } });
  await client.authorization("inference");
  await until(() => broker.streams.length === 2, "opened again");
  assert.equal((await client.authorization("inference", { thread: "t" })).revision, "r1");
});

test("a value that comes while nobody has used the entry for long is not kept", async () => {
  await using broker = await FakeBroker.start();
  using client = clientOf(broker, { idleMs: 50 });
  await client.authorization("inference");
  await until(() => broker.actions.length === 1, "subscribed");
  using connection = await client.connection("inference");
  await sleep(80);
  broker.send({ $case: "authorization", value: authorizationMessage({ revision: "r2" }) });
  await sleep(80);
  assert.equal(client.state().held, 1); // the connection uses it
  connection.close();
  broker.send({ $case: "authorization", value: authorizationMessage({ revision: "r3" }) });
  await until(() => broker.actions.length === 2, "unsubscribed");
  assert.equal(broker.actions[1]?.$case, "unsubscribe");
  assert.equal(client.state().held, 0);
});

test("a stream that fails says that the broker is away, whatever it fails with", async () => {
  await using broker = await FakeBroker.start();
  const { lines, logger } = keepingLog();
  using client = clientOf(broker, { logger });
  await client.authorization("inference");
  await until(() => broker.streams.length === 1, "watching");
  broker.streams[0]?.emit("error", { code: status.INTERNAL, details: "as told" });
  await until(() => lines.length === 1, "away");
  assert.match(lines[0] ?? "", /^warn: .*the broker is away/);
});
