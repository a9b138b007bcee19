import assert from "node:assert/strict";
import { copyFileSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import {
  credentials,
  Metadata,
  Server,
  ServerCredentials,
  status,
  type CallCredentials,
  type ChannelCredentials,
  type Metadata as Received,
  type sendUnaryData,
  type ServerUnaryCall,
} from "@grpc/grpc-js";

import { BrokerClient } from "../src/index.js";
import { TlsFiles } from "../src/tls.js";
import {
  CredentialBrokerClient,
  CredentialBrokerService,
  type ListScopesRequest,
  type ListScopesResponse,
} from "../src/v1.js";
import { FakeBroker, folder, issue } from "./support.js";

const one = issue("one");
const other = issue("other");

/** A gRPC server that keeps the metadata of its calls. */
async function serve(secured: ServerCredentials): Promise<{ server: Server; port: number; calls: Received[] }> {
  const server = new Server();
  const calls: Received[] = [];
  const unused = (): undefined => undefined;
  server.addService(CredentialBrokerService, {
    listScopes: (
      call: ServerUnaryCall<ListScopesRequest, ListScopesResponse>,
      reply: sendUnaryData<ListScopesResponse>,
    ) => {
      calls.push(call.metadata);
      reply(null, { scopes: [], nextPageToken: "" });
    },
    getAuthorization: unused,
    registerTask: unused,
    endTask: unused,
    reportRejected: unused,
    watchAuthorizations: unused,
    explainAuthorization: unused,
  });
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync("127.0.0.1:0", secured, (error, bound) => {
      if (error === null) {
        resolve(bound);
      } else {
        reject(error);
      }
    });
  });
  return { server, port, calls };
}

function call(port: number, channel: ChannelCredentials, own?: CallCredentials): Promise<unknown> {
  const stub = new CredentialBrokerClient(`localhost:${String(port)}`, channel);
  return new Promise((resolve, reject) => {
    const options = { deadline: Date.now() + 5_000, ...(own !== undefined && { credentials: own }) };
    stub.listScopes({ pageSize: 0, pageToken: "" }, new Metadata(), options, (error, answer) => {
      stub.close();
      if (error === null) {
        resolve(answer);
      } else {
        reject(error);
      }
    });
  });
}

test("calls over TLS carry all headers as metadata; those of a single call replace the channel's", async () => {
  const pair = { cert_chain: readFileSync(one.certificate), private_key: readFileSync(one.key) };
  const { server, port, calls } = await serve(ServerCredentials.createSsl(null, [pair]));
  await using broker = await FakeBroker.start();
  using client = new BrokerClient({ address: broker.address, watch: false });
  broker.answers = [{ revision: "channel" }, { revision: "call" }];

  const tls = client.channelCredentials(credentials.createSsl(readFileSync(one.certificate)), "inference");
  await call(port, tls);
  await call(port, tls, client.callCredentials("inference", { thread: "t" }));
  assert.deepEqual(
    calls.map((metadata) => [metadata.get("authorization"), metadata.get("chatgpt-account-id")]),
    [
      [["secret-of-channel"], ["account"]],
      [["secret-of-call"], ["account"]],
    ],
  );
  server.forceShutdown();
});

test("without TLS the channel cannot be made, and a single call fails before anything is sent", async () => {
  const { server, port, calls } = await serve(ServerCredentials.createInsecure());
  await using broker = await FakeBroker.start();
  using client = new BrokerClient({ address: broker.address, watch: false });
  assert.throws(() => client.channelCredentials(credentials.createInsecure(), "inference"));
  const own = client.callCredentials("inference");
  await assert.rejects(call(port, credentials.createInsecure(), own), { code: status.UNAUTHENTICATED });
  assert.deepEqual([calls, broker.asked], [[], []]);
  server.forceShutdown();
});

test("when the broker refuses, the call is not sent, and its error says why", async () => {
  const pair = { cert_chain: readFileSync(one.certificate), private_key: readFileSync(one.key) };
  const { server, port, calls } = await serve(ServerCredentials.createSsl(null, [pair]));
  await using broker = await FakeBroker.start();
  using client = new BrokerClient({ address: broker.address, watch: false });
  broker.answers = [{ error: status.PERMISSION_DENIED }];
  const tls = client.channelCredentials(credentials.createSsl(readFileSync(one.certificate)), "inference");
  await assert.rejects(call(port, tls), /as told/);
  assert.deepEqual(calls, []);

  for (const [failure, code] of [
    [status.PERMISSION_DENIED, status.UNAUTHENTICATED],
    [status.RESOURCE_EXHAUSTED, status.UNAVAILABLE],
  ] as const) {
    broker.answers = [{ error: failure }];
    await assert.rejects(call(port, tls), { code }); // the second may pass
  }
  server.forceShutdown();
});

test("changed files are read again after 10 s, and broken ones leave those in use", () => {
  const caFile = join(folder, "ca.pem");
  copyFileSync(one.certificate, caFile);
  let now = 0;
  const files = new TlsFiles({ caFile, certificateFile: undefined, privateKeyFile: undefined }, () => now);
  const seen: string[] = [];
  files.addCaCertificateListener((update) => seen.push(update?.caCertificate.toString() ?? ""));

  copyFileSync(other.certificate, caFile);
  now = 9_999;
  files.refresh();
  assert.equal(seen.at(-1), readFileSync(one.certificate, "utf8"));
  now = 10_000;
  files.refresh();
  assert.equal(seen.at(-1), readFileSync(other.certificate, "utf8"));

  writeFileSync(caFile, "-----BEGIN CERTIFICATE-----\nhalf of a fi");
  now = 20_000;
  files.refresh();
  rmSync(caFile);
  now = 30_000;
  files.refresh();
  assert.equal(seen.at(-1), readFileSync(other.certificate, "utf8"));
});

test("a key that is not the certificate's is refused, with the names of both", () => {
  const paths = { caFile: one.certificate, certificateFile: one.certificate, privateKeyFile: other.key };
  assert.throws(() => new TlsFiles(paths, () => 0), /other\.key is not the private key of .*one\.crt/);
});

test("a certificate whose chain does not parse is refused with its name", () => {
  const certificateFile = join(folder, "chain.pem");
  const broken = "-----BEGIN CERTIFICATE-----\nanVuaw==\n-----END CERTIFICATE-----\n";
  writeFileSync(certificateFile, readFileSync(one.certificate, "utf8") + broken);
  const paths = { caFile: one.certificate, certificateFile, privateKeyFile: one.key };
  assert.throws(() => new TlsFiles(paths, () => 0), /cannot use the TLS file .*chain\.pem/);
});
