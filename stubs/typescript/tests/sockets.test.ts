import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { connect, createServer, type AddressInfo, type Server, type Socket } from "node:net";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { createServer as createTlsServer } from "node:tls";
import { promisify } from "node:util";

import { credentials } from "@grpc/grpc-js";

import { BrokerClient } from "../src/index.js";
import { Sockets } from "../src/sockets.js";
import { FakeBroker, issue, quiet, until } from "./support.js";

const { certificate, key } = issue("gateway");

/** Takes connections, says nothing on the first so many, and passes the others on to a broker. */
class Gateway implements AsyncDisposable {
  /** Those that are open, and how many were taken. */
  readonly open = new Set<Socket>();
  taken = 0;
  readonly #server: Server;

  private constructor(silent: number, broker: FakeBroker | undefined, hasTls: boolean) {
    const take = (socket: Socket): void => {
      this.taken += 1;
      this.open.add(socket.resume());
      socket.on("error", () => undefined).once("close", () => this.open.delete(socket));
      if (this.taken > silent && broker !== undefined) {
        const onward = connect(broker.port, "127.0.0.1").on("error", () => undefined);
        socket.once("close", () => onward.destroy());
        socket.pipe(onward).pipe(socket);
      }
    };
    const pem = { cert: readFileSync(certificate), key: readFileSync(key), ALPNProtocols: ["h2"] };
    this.#server = hasTls ? createTlsServer(pem, take) : createServer(take);
  }

  static async start(silent: number, broker?: FakeBroker, hasTls = false): Promise<Gateway> {
    const gateway = new Gateway(silent, broker, hasTls);
    gateway.#server.listen(0, "127.0.0.1");
    await once(gateway.#server, "listening");
    return gateway;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  get address(): string {
    return `localhost:${String(this.port)}`;
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.open.forEach((socket) => socket.destroy());
    this.#server.close();
    return Promise.resolve();
  }
}

test("nothing is left of a connection that was never answered when the client is closed", async () => {
  for (const tls of [{}, { caFile: certificate }]) {
    await using silent = await Gateway.start(Infinity);
    const client = new BrokerClient({ address: silent.address, timeoutMs: 200, logger: quiet, ...tls });
    await assert.rejects(client.authorization("inference"), { code: "DEADLINE_EXCEEDED" });
    await until(() => silent.taken === 1, "taken");
    const closedAt = performance.now();
    client.close();
    await until(() => silent.open.size === 0, "closed");
    assert.ok(performance.now() - closedAt < 4_000, "before it would be given up in any case");
  }
});

test("a connection that is made only after the end is dropped", async () => {
  await using silent = await Gateway.start(Infinity);
  const sockets = new Sockets();
  const connector = sockets.attach(credentials.createInsecure())._createSecureConnector({ path: silent.address }, {});
  sockets.close();
  const socket = connect(silent.port, "localhost");
  await once(socket, "connect");
  await assert.rejects(connector.connect(socket), /closed/);
  assert.ok(socket.destroyed);
});

test("a connection that was never answered does not keep the process alive", async () => {
  await using silent = await Gateway.start(Infinity);
  for (const tls of ["", `caFile: "${certificate}"`]) {
    const program = `
      import { BrokerClient } from "credentialbroker";
      const client = new BrokerClient({ address: "${silent.address}", timeoutMs: 200, ${tls} });
      console.log((await client.authorization("inference").catch((error) => error)).code);
    `;
    const running = promisify(execFile)("node", ["--input-type=module", "--eval", program], { timeout: 4_000 });
    assert.equal((await running).stdout, "DEADLINE_EXCEEDED\n");
  }
});

test("a call whose deadline passes before it is sent does not keep the process alive", async () => {
  const program = `
    import { BrokerClient } from "credentialbroker";
    const client = new BrokerClient({ address: "127.0.0.1:1", timeoutMs: 200 });
    const asking = client.authorization("inference").catch((error) => error);
    for (const end = performance.now() + 400; performance.now() < end; ); // as a process does that is busy starting
    console.log((await asking).code);
  `;
  const running = promisify(execFile)("node", ["--input-type=module", "--eval", program], { timeout: 5_000 });
  assert.equal((await running).stdout, "DEADLINE_EXCEEDED\n");
});

test("a stream over TLS does not keep the process alive", async () => {
  await using broker = await FakeBroker.start();
  await using gateway = await Gateway.start(0, broker, true);
  const program = `
    import { BrokerClient } from "credentialbroker";
    const client = new BrokerClient({ address: "${gateway.address}", caFile: "${certificate}" });
    console.log((await client.authorization("inference")).revision);
    await new Promise((resolve) => setTimeout(resolve, 300)); // for the stream to be open
  `;
  const running = promisify(execFile)("node", ["--input-type=module", "--eval", program], { timeout: 10_000 });
  assert.equal((await running).stdout, "r1\n");
  assert.equal(broker.streams.length, 1);
});

test("a connection that is not answered is given up while there is time for another, one that is answered stays", async () => {
  await using broker = await FakeBroker.start();
  await Promise.all(
    [{}, { caFile: certificate }].map(async (tls) => {
      await using gateway = await Gateway.start(1, broker, "caFile" in tls);
      using client = new BrokerClient({ address: gateway.address, logger: quiet, ...tls });
      await client.authorization("inference");
      await until(() => gateway.open.size === 1, "given up");
      await sleep(5_500);
      assert.deepEqual([gateway.taken, gateway.open.size], [2, 1]);
    }),
  );
});
