import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { Metadata } from "@grpc/grpc-js";

import { parseAddress } from "../src/address.js";
import { Header, setAll } from "../src/authorization.js";
import { Cache } from "../src/cache.js";
import type { Held } from "../src/entry.js";
import { Backoff, isRefusal, Lifetime } from "../src/lifetimes.js";
import { SERVICE_CONFIG } from "../src/service-config.js";
import { readSettings } from "../src/settings.js";
import { readStatusDetails } from "../src/status-details.js";
import { VERSION } from "../src/version.js";

test("addresses are taken in their forms, and told whether they can leave the machine", () => {
  const cases: [string, string, string, boolean][] = [
    ["unix:///run/broker.sock", "unix:///run/broker.sock", "", true],
    ["dns:///broker.internal:50051", "dns:///broker.internal:50051", "broker.internal", false],
    ["broker.internal:443", "dns:///broker.internal:443", "broker.internal", false],
    ["localhost:1", "dns:///localhost:1", "localhost", true],
    ["127.8.8.8:1", "dns:///127.8.8.8:1", "127.8.8.8", true],
    ["[::1]:1", "dns:///[::1]:1", "::1", true],
    ["[2001:db8::1]:1", "dns:///[2001:db8::1]:1", "2001:db8::1", false],
    ["localhost.evil.test:1", "dns:///localhost.evil.test:1", "localhost.evil.test", false],
    ["127.0.0.1.evil.test:1", "dns:///127.0.0.1.evil.test:1", "127.0.0.1.evil.test", false],
    ["127.999.1.1:1", "dns:///127.999.1.1:1", "127.999.1.1", false],
    ["127.0.0.010:1", "dns:///127.0.0.010:1", "127.0.0.010", false],
    ["127.1:1", "dns:///127.1:1", "127.1", false],
    ["broker_a:1", "dns:///broker_a:1", "broker_a", false],
  ];
  for (const [text, target, host, local] of cases) {
    assert.deepEqual(parseAddress(text), { target, host, local });
  }
});

test("anything else than an address is refused with the forms that there are", () => {
  const wrong = [
    "",
    "broker",
    "http://h:1",
    "unix:x",
    "unix:///",
    "h:",
    ":1",
    "h:0",
    "h:65536",
    "h:1/x",
    "dns://a/h:1",
  ];
  for (const text of wrong) {
    assert.throws(() => parseAddress(text), /unix:\/\/\/absolute\/path, dns:\/\/\/host:port or host:port/, text);
  }
});

test("arguments win over the environment, and that over the defaults", () => {
  const environment = { CREDENTIAL_BROKER_ADDRESS: "localhost:2", CREDENTIAL_BROKER_CA_FILE: "" };
  assert.equal(readSettings({}, {}).address.target, "dns:///127.0.0.1:50051");
  assert.equal(readSettings({}, environment).address.target, "dns:///localhost:2");
  assert.equal(readSettings({ address: "localhost:3" }, environment).address.target, "dns:///localhost:3");
  assert.equal(readSettings({}, environment).tls, undefined);
});

test("an empty text is as if it were not given", () => {
  const environment = { CREDENTIAL_BROKER_ADDRESS: "localhost:2", CREDENTIAL_BROKER_CA_FILE: "ca.pem" };
  const settings = readSettings({ address: "", caFile: "", serverName: "" }, environment);
  assert.deepEqual(
    [settings.address.target, settings.tls?.caFile, settings.serverName],
    ["dns:///localhost:2", "ca.pem", undefined],
  );
});

test("headers do not travel in the open to another host unless that is allowed in so many words", () => {
  const far = { address: "broker.internal:1" };
  assert.throws(() => readSettings(far, {}), /plaintext/);
  assert.throws(() => readSettings(far, { CREDENTIAL_BROKER_PLAINTEXT: "yes" }), /plaintext/);
  assert.throws(() => readSettings({ ...far, plaintext: false }, { CREDENTIAL_BROKER_PLAINTEXT: "1" }), /plaintext/);
  assert.equal(readSettings(far, { CREDENTIAL_BROKER_PLAINTEXT: "1" }).tls, undefined);
  assert.equal(readSettings({ ...far, caFile: "ca.pem" }, {}).tls?.caFile, "ca.pem");
});

test("half of mTLS is refused", () => {
  assert.throws(() => readSettings({ caFile: "c", certificateFile: "x" }, {}), /belong together/);
  assert.throws(() => readSettings({ caFile: "c", privateKeyFile: "x" }, {}), /belong together/);
  assert.throws(() => readSettings({ certificateFile: "x", privateKeyFile: "y" }, {}), /need caFile/);
});

test("numbers that a timer would not take are refused", () => {
  for (const timeoutMs of [0, -1, NaN, Infinity, 2 ** 31]) {
    assert.throws(() => readSettings({ timeoutMs }, {}), /timeoutMs/);
  }
});

test("only differences of the broker's times count, from the moment of receipt", () => {
  const serverTime = new Date("1999-01-01T00:00:00Z");
  const later = (ms: number): Date => new Date(serverTime.getTime() + ms);
  const lifetime = new Lifetime({ serverTime, refreshTime: later(20_000), expireTime: later(60_000) }, 1_000);
  assert.deepEqual([lifetime.refreshAt, lifetime.overdueAt, lifetime.expireAt], [21_000, 41_000, 61_000]);
});

test("an answer whose times are missing does not last at all", () => {
  assert.ok(new Lifetime({}, 1_000).expireAt <= 1_000);
  assert.ok(new Lifetime({ expireTime: new Date() }, 1_000).expireAt <= 1_000);
});

test("waits double from 0.2 s to 10 s, times a random half to one, and no shorter than asked for", () => {
  const longest = new Backoff(() => 1);
  assert.deepEqual(
    Array.from({ length: 8 }, () => longest.next()),
    [200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000],
  );
  longest.reset();
  assert.equal(longest.next(), 200);
  assert.equal(new Backoff(() => 0).next(), 100);
  assert.equal(new Backoff(() => 0).next(5_000), 5_000);
});

test("refusals drop what is held, other failures do not", () => {
  const refusals = ["PERMISSION_DENIED", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "NOT_FOUND"] as const;
  const passing = [
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "ABORTED",
    "CANCELLED",
    "INTERNAL",
  ] as const;
  assert.ok(refusals.every(isRefusal));
  assert.ok(![...passing, "UNKNOWN" as const, "UNAUTHENTICATED" as const, "DATA_LOSS" as const].some(isRefusal));
});

/** A length-delimited field. */
function field(number: number, value: string | Uint8Array): Buffer {
  const bytes = Buffer.from(value);
  return Buffer.concat([Buffer.from([(number << 3) | 2, bytes.length]), bytes]);
}

test("the details of a status give reason, metadata and delay, in whatever order", () => {
  const pair = Buffer.concat([field(1, "identity"), field(2, "agents")]);
  const info = Buffer.concat([field(1, "QUOTA_TASKS"), field(2, "credentialbroker.v1"), field(3, pair)]);
  const delay = field(1, Buffer.from([0x08, 0x02, 0x10, 0x80, 0xca, 0xb5, 0xee, 0x01])); // 2.5 s
  const any = (type: string, value: Uint8Array): Buffer =>
    field(3, Buffer.concat([field(1, `type.googleapis.com/google.rpc.${type}`), field(2, value)]));
  const status = Buffer.concat([
    Buffer.from([0x08, 0x08]), // code
    any("RetryInfo", delay),
    field(2, "the message"),
    any("SomethingNewer", field(1, "x")),
    any("ErrorInfo", info),
  ]);
  assert.deepEqual(readStatusDetails(status), {
    reason: "QUOTA_TASKS",
    metadata: { identity: "agents" },
    retryDelayMs: 2_500,
  });
});

test("an ErrorInfo of somebody else and bytes that are none give no details", () => {
  const foreign = field(1, "RATE_LIMITED");
  const proxy = field(3, Buffer.concat([field(1, "x/google.rpc.ErrorInfo"), field(2, foreign)]));
  const none = { reason: "", metadata: {}, retryDelayMs: undefined };
  assert.deepEqual(readStatusDetails(proxy), none);
  assert.deepEqual(readStatusDetails(Buffer.from([0x1a, 0xff, 0xff])), none);
  assert.deepEqual(readStatusDetails(undefined), none);
});

test("the service config is the one that all clients ship", () => {
  const shipped: unknown = JSON.parse(readFileSync("../../protos/service_config.json", "utf8"));
  assert.deepEqual(SERVICE_CONFIG, shipped);
});

test("the version is that of the package", () => {
  const { version } = JSON.parse(readFileSync("package.json", "utf8")) as { version: string };
  assert.equal(VERSION, version);
});

test("a cache that was closed keeps nothing that comes late", () => {
  const never = (): never => assert.fail();
  const cache = new Cache(1, () => 0, { kept: never, dropped: never });
  cache.close(new Error("closed"));
  cache.keep({ identity: "", scope: "inference", thread: "" }, {} as Held);
  assert.equal(cache.size, 0);
});

test("a value that no header may hold is refused without being named", () => {
  const headers = [new Header("authorization", "secret\nvalue", true)];
  for (const into of [new Headers(), new Metadata()]) {
    assert.throws(
      () => {
        setAll(headers, into);
      },
      (error: Error) =>
        error instanceof TypeError && error.message.includes("authorization") && !error.message.includes("secret"),
    );
  }
});
