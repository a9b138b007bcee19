import assert from "node:assert/strict";
import { test } from "node:test";

import { status } from "@grpc/grpc-js";

import { Channel } from "../src/channel.js";
import { BrokerError, type Authorization } from "../src/index.js";
import { readSettings } from "../src/settings.js";
import { authorizationMessage, clientOf, FakeBroker, gate, until } from "./support.js";

test("who waits with a short deadline fails alone, and the call goes on for the others", async () => {
  await using broker = await FakeBroker.start();
  using client = clientOf(broker, { watch: false });
  const { opened, open } = gate();
  broker.answers = [{ after: opened }];
  const short = client.authorization("inference", { timeoutMs: 50 });
  const long = client.authorization("inference");
  await assert.rejects(short, { name: "BrokerError", code: "DEADLINE_EXCEEDED", reason: "UNSPECIFIED" });
  open();
  assert.equal((await long).revision, "r1");
  assert.equal(broker.asked.length, 1);
});

test("who may wait longer than the call begins another", async () => {
  await using broker = await FakeBroker.start();
  using client = clientOf(broker, { watch: false, timeoutMs: 300 });
  const { opened, open } = gate();
  broker.answers = [{ after: opened }, {}];
  const first = client.authorization("inference");
  const patient = client.authorization("inference", { timeoutMs: 5_000 });
  await assert.rejects(first, { code: "DEADLINE_EXCEEDED" });
  assert.equal((await patient).revision, "r1");
  assert.equal(broker.asked.length, 2);
  open();
});

test("what a signal cancels is cancelled for that user, and at the broker when nobody else waits", async () => {
  await using broker = await FakeBroker.start();
  using client = clientOf(broker, { watch: false });
  const { opened, open } = gate();
  broker.answers = [{ after: opened }];
  const controllers = [new AbortController(), new AbortController()];
  const waiting = controllers.map(({ signal }) => client.authorization("inference", { signal }));
  await until(() => broker.asked.length === 1, "asked");
  controllers[0]?.abort();
  await assert.rejects(waiting[0] ?? Promise.resolve(), { name: "AbortError" });
  assert.equal(broker.cancelled, 0);
  controllers[1]?.abort(new Error("mine"));
  await assert.rejects(waiting[1] ?? Promise.resolve(), { message: "mine" });
  await until(() => broker.cancelled === 1, "cancelled");
  await assert.rejects(client.authorization("inference", { signal: AbortSignal.abort() }), { name: "AbortError" });
  open();
});

test("an answer that a withdrawal has overtaken is asked for again", async () => {
  await using broker = await FakeBroker.start();
  using client = clientOf(broker);
  await client.authorization("inference");
  await until(() => broker.actions.length === 1, "subscribed");
  const { opened, open } = gate();
  broker.answers = [
    { revision: "outdated", after: opened, lifetimeMs: 90_000 },
    { revision: "new", lifetimeMs: 90_000 },
  ];
  const asking = client.authorization("inference", { minValidityMs: 80_000 });
  await until(() => broker.asked.length === 2, "asked");
  broker.send({ $case: "withdrawal", value: { reason: "WITHDRAWAL_REASON_GENERATION_CHANGED" } });
  await until(() => client.state().held === 0, "withdrawn");
  open();
  assert.equal((await asking).revision, "new");
  assert.equal((await client.authorization("inference")).revision, "new");
  assert.equal(broker.asked.length, 3);
});

test("a question whose every answer is withdrawn fails, and is asked again 3 times at most", async () => {
  await using broker = await FakeBroker.start();
  using client = clientOf(broker);
  await client.authorization("inference");
  await until(() => broker.actions.length === 1, "subscribed");
  let gates = Array.from({ length: 5 }, gate);
  broker.answers = gates.map(({ opened }) => ({ after: opened, lifetimeMs: 90_000 }));
  const asking = assert.rejects(client.authorization("inference", { minValidityMs: 80_000 }), { code: "ABORTED" });
  for (let asked = 2; asked <= 5; asked += 1) {
    await until(() => broker.asked.length === asked, "asked");
    broker.send({ $case: "authorization", value: authorizationMessage({ revision: "pushed" }) });
    await until(() => client.state().held === 1, "pushed");
    broker.send({ $case: "withdrawal", value: { reason: "WITHDRAWAL_REASON_GENERATION_CHANGED" } });
    await until(() => client.state().held === 0, "withdrawn");
    gates[0]?.open();
    gates = gates.slice(1);
  }
  await asking;
  assert.equal(broker.asked.length, 5);
});

test("a value of the stream stands over an answer that was asked for before, and is given", async () => {
  await using broker = await FakeBroker.start();
  using client = clientOf(broker);
  const first = await client.authorization("inference");
  await until(() => broker.actions.length === 1, "subscribed");
  const { opened, open } = gate();
  broker.answers = [{ revision: "older", after: opened, lifetimeMs: 90_000 }];
  const asking = client.authorization("inference", { minValidityMs: 80_000 });
  await until(() => broker.asked.length === 2, "asked");
  broker.send({ $case: "authorization", value: authorizationMessage({ revision: "pushed", lifetimeMs: 90_000 }) });
  await until(() => (client.state().firstEndInMs ?? 0) > 80_000, "pushed");
  open();
  assert.equal((await asking).revision, "pushed");
  assert.equal((await client.authorization("inference")).revision, "pushed");
  assert.equal((await client.reportRejected(first)).revision, "pushed");
  assert.deepEqual([broker.asked.length, broker.reported.length], [2, 0]);
});

test("the answer to a report is kept after the withdrawal of the rejection, and after no other", async () => {
  for (const [reason, kept] of [
    ["WITHDRAWAL_REASON_CREDENTIAL_REJECTED", "better"],
    ["WITHDRAWAL_REASON_IDENTITY_DISABLED", "asked"],
  ] as const) {
    await using broker = await FakeBroker.start();
    using client = clientOf(broker);
    const first = await client.authorization("inference");
    await until(() => broker.actions.length === 1, "subscribed");
    const { opened, open } = gate();
    broker.reports = [{ revision: "better", after: opened }];
    broker.answers = [{ revision: "asked" }];
    const reporting = client.reportRejected(first);
    await until(() => broker.reported.length === 1, "reported");
    broker.send({ $case: "withdrawal", value: { reason } });
    await until(() => client.state().held === 0, "withdrawn");
    open();
    assert.equal((await reporting).revision, "better");
    assert.equal((await client.authorization("inference")).revision, kept);
  }
});

test("a report that is refused drops what was rejected and nothing newer, and nothing if the report itself is wrong", async () => {
  for (const [error, pushed, asks] of [
    [status.FAILED_PRECONDITION, false, 2],
    [status.FAILED_PRECONDITION, true, 1],
    [status.INVALID_ARGUMENT, false, 1],
  ] as const) {
    await using broker = await FakeBroker.start();
    using client = clientOf(broker);
    const first = await client.authorization("inference");
    await until(() => broker.actions.length === 1, "subscribed");
    const { opened, open } = gate();
    broker.reports = [{ error, after: opened }];
    const reporting = assert.rejects(client.reportRejected(first), { code: status[error] });
    await until(() => broker.reported.length === 1, "reported");
    if (pushed) {
      broker.send({ $case: "authorization", value: authorizationMessage({ revision: "r2", lifetimeMs: 90_000 }) });
      await until(() => (client.state().firstEndInMs ?? 0) > 80_000, "pushed");
    }
    open();
    await reporting;
    await client.authorization("inference");
    assert.equal(broker.asked.length, asks);
  }
});

test("a wish that is refused leaves what is held", async () => {
  await using broker = await FakeBroker.start();
  using client = clientOf(broker, { watch: false });
  await client.authorization("inference");
  broker.answers = [{ error: status.FAILED_PRECONDITION }];
  await assert.rejects(client.authorization("inference", { targetUrl: "https://evil.test/" }), BrokerError);
  await assert.rejects(client.authorization("inference", { minValidityMs: 3_600_000 }), BrokerError);
  assert.equal((await client.authorization("inference")).revision, "r1");
});

test("a target that is no URL is for the broker to refuse", async () => {
  await using broker = await FakeBroker.start();
  using client = clientOf(broker, { watch: false });
  broker.answers = [{ error: status.INVALID_ARGUMENT }];
  await assert.rejects(client.authorization("inference", { targetUrl: "nonsense" }), { code: "INVALID_ARGUMENT" });
  assert.equal(broker.asked[0]?.targetUrl, "nonsense");
});

test("a call that is given up before it begins is not sent", async () => {
  const channel = new Channel(
    readSettings({}, {}),
    () => 0,
    () => undefined,
  );
  const send = (): never => {
    throw new Error("sent");
  };
  await assert.rejects(channel.call(send, 1_000, AbortSignal.abort(new Error("mine"))), { message: "mine" });
  channel.close();
});

test("the longest deadline that is taken is no short one", async () => {
  await using broker = await FakeBroker.start();
  using client = clientOf(broker, { watch: false });
  const { opened, open } = gate();
  broker.answers = [{ after: opened }];
  const waiting = client.authorization("inference", { timeoutMs: 2 ** 31 - 1 });
  await until(() => broker.asked.length === 1, "asked");
  setTimeout(open, 50);
  assert.equal((await waiting).revision, "r1");
});

test("a deadline that passes is told in the words of gRPC, which say more than ours, and is the last error", async () => {
  await using broker = await FakeBroker.start();
  using client = clientOf(broker, { watch: false, timeoutMs: 200 });
  const { opened, open } = gate();
  broker.answers = [{ after: opened }];
  await assert.rejects(client.authorization("inference"), { code: "DEADLINE_EXCEEDED", message: /remote_addr/ });
  assert.equal(client.state().lastError?.code, "DEADLINE_EXCEEDED");
  open();
});

test("who dials again on the word that a connection changed asks the broker once", async () => {
  for (const isTask of [false, true]) {
    await using broker = await FakeBroker.start();
    using client = clientOf(broker);
    const { signal } = await client.connection("inference", { thread: "t" });
    await until(() => broker.actions.length === 1, "subscribed");
    broker.answers = [{ revision: "r2" }];
    const again = new Promise<Authorization>((resolve, reject) => {
      signal.addEventListener("abort", () => {
        client.authorization("inference", { thread: "t" }).then(resolve, reject);
      });
    });
    if (isTask) {
      await client.endTask("t");
    } else {
      broker.send({ $case: "withdrawal", value: { reason: "WITHDRAWAL_REASON_GENERATION_CHANGED" } });
    }
    assert.equal((await again).revision, "r2");
    assert.equal(broker.asked.length, 2);
  }
});
