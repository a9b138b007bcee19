// What an authorization costs from memory, and what the call to the broker costs that it spares, in one run.
// Beside a broker without TLS (CREDENTIAL_BROKER_ADDRESS): npm run bench

import { credentials, Metadata } from "@grpc/grpc-js";
import { BrokerClient } from "credentialbroker";
import { CredentialBrokerClient } from "credentialbroker/v1";
import { Bench } from "tinybench";

const scope = "inference";
const options = { thread: "benchmark" };
/** Reading the clock costs as much as an authorization from memory, so that a sample is of many. */
const CALLS_A_SAMPLE = 10_000;

using client = new BrokerClient();
await client.authorization(scope, options);

const stub = new CredentialBrokerClient(
  process.env["CREDENTIAL_BROKER_ADDRESS"] ?? "127.0.0.1:50051",
  credentials.createInsecure(),
);
const metadata = new Metadata();
metadata.set("x-credential-broker", "1");
const request = {
  scope,
  threadId: options.thread,
  identity: "",
  targetUrl: "",
  minValidity: undefined,
  expectedAccountId: "",
};

const bench = new Bench({ time: 1_000, warmupTime: 300 });
bench.add("cached", async () => {
  for (let n = 0; n < CALLS_A_SAMPLE; n += 1) {
    await client.authorization(scope, options);
  }
});
bench.add("rpc", () => {
  return new Promise<void>((resolve, reject) => {
    stub.getAuthorization(request, metadata, (error) => {
      if (error === null) {
        resolve();
      } else {
        reject(error);
      }
    });
  });
});
await bench.run();
stub.close();

function medianNanoseconds(name: string): number {
  const result = bench.getTask(name)?.result;
  if (result?.state !== "completed") {
    throw new Error(`${name} did not complete`);
  }
  return result.latency.p50 * 1e6;
}

const cached = medianNanoseconds("cached") / CALLS_A_SAMPLE;
const rpc = medianNanoseconds("rpc");
console.log(`authorization() from memory  ${cached.toFixed(0)} ns\nGetAuthorization             ${rpc.toFixed(0)} ns`);
console.log(JSON.stringify({ cached_ns: cached, rpc_ns: rpc, ratio: rpc / cached }));
