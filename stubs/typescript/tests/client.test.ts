import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtempSync, readdirSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { format, inspect, promisify } from "node:util";

import { status } from "@grpc/grpc-js";

import { Channel } from "../src/channel.js";
import {
  BrokerClient,
  BrokerError,
  ClosedError,
  type BrokerClientOptions,
  type Header,
  type Logger,
} from "../src/index.js";
import { readSettings } from "../src/settings.js";
import { authorizationMessage, errorStatus, FakeBroker, gate, until } from "./support.js";

const quiet: Logger = { info: () => undefined, warn: () => undefined };

/** Keeps what is logged, each with its level. */
function keepingLog(): { lines: string[]; logger: Logger } {
  const lines: string[] = [];
  const keep = (level: string) => (message: string) => void lines.push(`${level}: ${message}`);
  return { lines, logger: { info: keep("info"), warn: keep("warn") } };
}

function connect(broker: FakeBroker, options: BrokerClientOptions = {}): BrokerClient {
  return new BrokerClient({ address: broker.address, logger: quiet, ...options });
}

test("what is held is handed out without a macrotask, as the same promise", async () => {
  await using broker = await FakeBroker.start();
  using client = connect(broker, { watch: false });
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
  using client = connect(broker, { watch: false });
  await client.authorization("a", { thread: "b.c", identity: "x" });
  await client.authorization("a.b", { thread: "c", identity: "x" });
  await client.authorization("a", { thread: "b.c", identity: "y" });
  await client.authorization("a", { thread: "b.c" });
  assert.equal(broker.asked.length, 4);
});

test("who waits with a short deadline fails alone, and the call goes on for the others", async () => {
  await using broker = await FakeBroker.start();
  using client = connect(broker, { watch: false });
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
  using client = connect(broker, { watch: false, timeoutMs: 300 });
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
  using client = connect(broker, { watch: false });
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
  using client = connect(broker);
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
  using client = connect(broker);
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
  using client = connect(broker);
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
    using client = connect(broker);
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
    using client = connect(broker);
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

test("an empty text is as if it were not given", async () => {
  await using broker = await FakeBroker.start();
  using client = connect(broker, { identity: "mine", watch: false });
  const first = await client.authorization("inference", { thread: "", identity: "", targetUrl: "" });
  assert.equal(await client.authorization("inference", { targetUrl: "" }), first);
  assert.deepEqual(
    broker.asked.map(({ identity, targetUrl }) => [identity, targetUrl]),
    [["mine", ""]],
  );
});

test("a wish that is refused leaves what is held", async () => {
  await using broker = await FakeBroker.start();
  using client = connect(broker, { watch: false });
  await client.authorization("inference");
  broker.answers = [{ error: status.FAILED_PRECONDITION }];
  await assert.rejects(client.authorization("inference", { targetUrl: "https://evil.test/" }), BrokerError);
  await assert.rejects(client.authorization("inference", { minValidityMs: 3_600_000 }), BrokerError);
  assert.equal((await client.authorization("inference")).revision, "r1");
});

test("a target that is no URL is for the broker to refuse", async () => {
  await using broker = await FakeBroker.start();
  using client = connect(broker, { watch: false });
  broker.answers = [{ error: status.INVALID_ARGUMENT }];
  await assert.rejects(client.authorization("inference", { targetUrl: "nonsense" }), { code: "INVALID_ARGUMENT" });
  assert.equal(broker.asked[0]?.targetUrl, "nonsense");
});

test("after a restart of the broker the stream is opened again, and told once each", async () => {
  await using broker = await FakeBroker.start();
  const { lines, logger } = keepingLog();
  using client = connect(broker, { logger });
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
  using client = connect(broker, { watch: false, logger });
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

test("nobody can change the headers that others get", async () => {
  await using broker = await FakeBroker.start();
  using client = connect(broker, { watch: false });
  const { headers } = await client.authorization("inference");
  assert.throws(() => (headers as Header[]).pop(), TypeError);
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

test("a hundred clients leave no thread, file or connection behind", async () => {
  await using broker = await FakeBroker.start();
  const count = (): [number, number] => [readdirSync("/proc/self/fd").length, process.getActiveResourcesInfo().length];
  const openAndClose = async (): Promise<void> => {
    const streams = broker.streams.length;
    const client = connect(broker);
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

test("a hundred restarts of the broker leave nothing behind, and fail nobody who holds a value", async () => {
  await using broker = await FakeBroker.start();
  using client = connect(broker);
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

test("whoever waits when the client is closed fails at once, and so does every later use", async () => {
  await using broker = await FakeBroker.start();
  const client = connect(broker);
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
  using client = connect(broker);
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
  using client = connect(broker);
  using other = connect(broker);
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

test("what is due or withdrawn goes when nobody has used it for long, with a watch and without", async () => {
  await using broker = await FakeBroker.start();
  broker.answers = [{ refreshMs: 10 }];
  using unwatched = connect(broker, { idleMs: 50, watch: false });
  await unwatched.authorization("inference");
  using watched = connect(broker, { idleMs: 50 });
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
  using client = connect(broker, { idleMs: 50, watch: false });
  using connection = await client.connection("inference");
  await until(() => connection.changed, "changed");
  assert.equal(broker.asked.length, 2);
});

test("a stream is given no more than it takes, and what it cannot take is asked for when it is due", async () => {
  await using broker = await FakeBroker.start();
  using client = connect(broker, { cacheSize: 1_002 });
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
  using client = connect(broker, { silenceMs: 200, logger });
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
  using client = connect(broker, { silenceMs: 100, logger: { info: fail, warn: fail } });
  await client.authorization("inference");
  await until(() => broker.streams.length === 2, "opened again");
  assert.equal((await client.authorization("inference", { thread: "t" })).revision, "r1");
});

test("a value that comes while nobody has used the entry for long is not kept", async () => {
  await using broker = await FakeBroker.start();
  using client = connect(broker, { idleMs: 50 });
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
