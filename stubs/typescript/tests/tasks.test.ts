import assert from "node:assert/strict";
import { test } from "node:test";

import { status } from "@grpc/grpc-js";

import { clientOf, FakeBroker, gate, IDENTITY, until } from "./support.js";

test("a task that ended takes what its thread has in every scope, and nothing of other threads and identities", async () => {
  await using broker = await FakeBroker.start();
  using client = clientOf(broker, { watch: false });
  const connection = await client.connection("inference", { thread: "t" });
  await client.authorization("control_plane.models", { thread: "t" });
  await client.authorization("inference", { thread: "t", identity: "another" });
  await client.authorization("inference", { thread: "u" });

  const { identity, thread, state } = await client.endTask("t");
  assert.deepEqual([identity, thread, state], [IDENTITY, "t", "ENDED"]);
  assert.equal(client.state().held, 2);
  assert.ok(connection.changed);
  broker.answers = [{ error: status.FAILED_PRECONDITION }];
  await assert.rejects(client.authorization("inference", { thread: "t" }), { code: "FAILED_PRECONDITION" });
  await client.authorization("inference", { thread: "t", identity: "another" });
  await client.authorization("inference", { thread: "u" });
});

test("an end that fails leaves what is held", async () => {
  await using broker = await FakeBroker.start();
  using client = clientOf(broker, { watch: false });
  await client.authorization("inference", { thread: "t" });
  broker.ends = [{ error: status.PERMISSION_DENIED }];
  await assert.rejects(client.endTask("t"), { code: "PERMISSION_DENIED" });
  assert.equal(client.state().held, 1);
});

test("who asked for a first value before the task ended, and who joins after, are given nothing of before", async () => {
  await using broker = await FakeBroker.start();
  using client = clientOf(broker, { watch: false });
  const { opened, open } = gate();
  broker.answers = [{ after: opened }, { error: status.FAILED_PRECONDITION }];
  const first = assert.rejects(client.authorization("inference", { thread: "t" }), { code: "FAILED_PRECONDITION" });
  await until(() => broker.asked.length === 1, "asked");
  await client.endTask("t");
  const joined = assert.rejects(client.authorization("inference", { thread: "t" }), { code: "FAILED_PRECONDITION" });
  open();
  await Promise.all([first, joined]);
  assert.equal(broker.asked.length, 2);
});

test("an answer that the end of another thread's task, or of another identity's, meets on its way is kept", async () => {
  await using broker = await FakeBroker.start();
  using client = clientOf(broker, { watch: false });
  const { opened, open } = gate();
  broker.answers = [{ after: opened }];
  const asking = client.authorization("inference", { thread: "t", identity: "mine" });
  await until(() => broker.asked.length === 1, "asked");
  await client.endTask("u", { identity: "mine" });
  await client.endTask("t", { identity: "another" });
  open();
  await asking;
  assert.deepEqual([broker.asked.length, client.state().held], [1, 1]);
});
