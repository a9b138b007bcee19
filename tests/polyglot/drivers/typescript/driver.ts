// Does what the conformance suite tells it with the TypeScript client: see ../../README.md for the protocol.

import { readdirSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { format, inspect } from "node:util";

import { credentials, Metadata, status, type ServiceError } from "@grpc/grpc-js";
import {
  Authorization,
  BrokerClient,
  BrokerError,
  ClosedError,
  Connection,
  OriginError,
  type AuthorizationOptions,
  type BrokerClientOptions,
} from "credentialbroker";
import { CredentialBrokerClient, type ListScopesResponse } from "credentialbroker/v1";

/** A command, as it stands in its line. */
interface Command {
  readonly id: number;
  readonly do: string;
  readonly [member: string]: unknown;
}

/** An error that is the user's own fault and was found before any call. */
class ArgumentError extends Error {}

interface Traffic {
  readonly ended: AbortController;
  readonly workers: Promise<void>[];
  readonly began: number;
  calls: number;
  failed: number;
  readonly errors: Record<string, number>;
  slowest: number;
  longestExpired: number;
  readonly revisions: Set<string>;
}

const clients = new Map<string, BrokerClient>();
const held = new Map<number, Authorization>();
const connections = new Map<string, Connection>();
const traffics = new Map<string, Traffic>();

const text = (command: Command, member: string): string => (command[member] as string | undefined) ?? "";
const optional = (command: Command, member: string): string | undefined => command[member] as string | undefined;
const number = (command: Command, member: string): number | undefined => command[member] as number | undefined;
const milliseconds = (command: Command, member: string): number | undefined => {
  const seconds = number(command, member);
  return seconds === undefined ? undefined : seconds * 1_000;
};

function clientOf(command: Command): BrokerClient {
  const client = clients.get(text(command, "client"));
  if (client === undefined) {
    throw new ArgumentError(`there is no client ${text(command, "client")}`);
  }
  return client;
}

function connectionOf(command: Command): Connection {
  const connection = connections.get(text(command, "connection"));
  if (connection === undefined) {
    throw new ArgumentError(`there is no connection ${text(command, "connection")}`);
  }
  return connection;
}

function heldOf(command: Command): Authorization {
  const authorization = held.get(number(command, "held") ?? 0);
  if (authorization === undefined) {
    throw new ArgumentError("there is no such authorization");
  }
  return authorization;
}

function authorizationOptions(command: Command): AuthorizationOptions {
  return {
    thread: optional(command, "thread"),
    identity: optional(command, "identity"),
    targetUrl: optional(command, "target_url"),
    minValidityMs: milliseconds(command, "min_validity"),
    timeoutMs: milliseconds(command, "timeout"),
  };
}

function shownAuthorization(authorization: Authorization): object {
  return {
    headers: authorization.headers.map(({ name, value }) => [name, value]),
    kind: authorization.kind,
    reason: authorization.reason,
    revision: authorization.revision,
    identity: authorization.identity,
    connection_tag: authorization.connectionTag,
    stale: authorization.stale,
    expires_in: authorization.expiresInMs() / 1_000,
    refresh_in: authorization.refreshInMs() / 1_000,
  };
}

function shownError(error: unknown): object {
  const message = error instanceof Error ? error.message : String(error);
  if (error instanceof BrokerError) {
    return {
      type: "broker",
      reason: error.reason,
      reason_text: error.reasonText,
      code: error.code,
      message,
      retry_delay: error.retryDelayMs === undefined ? undefined : error.retryDelayMs / 1_000,
      metadata: error.metadata,
    };
  }
  if (error instanceof ClosedError) {
    return { type: "closed", message };
  }
  if (error instanceof OriginError) {
    return { type: "origin", message };
  }
  if (error instanceof ArgumentError) {
    return { type: "argument", message };
  }
  const { name, code } = error as Partial<ServiceError>;
  return {
    type: name === "AbortError" ? "cancelled" : "other",
    code: typeof code === "number" ? status[code] : undefined, // of a gRPC call of the backend
    message,
  };
}

/** Begins `count` of something at once, and answers with all their results. */
async function atOnce(count: number, begin: (index: number) => Promise<object>): Promise<object> {
  const began = performance.now();
  const results = await Promise.all(
    Array.from({ length: count }, async (_, index) => {
      try {
        return await begin(index);
      } catch (error) {
        return { error: shownError(error) };
      }
    }),
  );
  return { results, seconds: (performance.now() - began) / 1_000 };
}

async function work(client: BrokerClient, command: Command, traffic: Traffic, everyMs: number): Promise<void> {
  const threads = command["threads"] as string[];
  while (!traffic.ended.signal.aborted) {
    const began = performance.now();
    const thread = threads[traffic.calls % threads.length];
    traffic.calls += 1;
    try {
      const authorization = await client.authorization(text(command, "scope"), { thread });
      traffic.revisions.add(authorization.revision);
      traffic.longestExpired = Math.max(traffic.longestExpired, -authorization.expiresInMs() / 1_000);
    } catch (error) {
      traffic.failed += 1;
      const message = String(error);
      traffic.errors[message] = (traffic.errors[message] ?? 0) + 1;
    }
    const took = performance.now() - began;
    traffic.slowest = Math.max(traffic.slowest, took / 1_000);
    await sleep(Math.max(0, everyMs - took));
  }
}

async function sendHttp(client: BrokerClient, command: Command): Promise<object> {
  const send = client.fetch({
    origin: text(command, "origin"),
    scope: text(command, "scope"),
    thread: optional(command, "thread"),
    identity: optional(command, "identity"),
  });
  const body = optional(command, "body");
  const response = await send(text(command, "url"), {
    method: text(command, "method"),
    headers: (command["headers"] as Record<string, string> | undefined) ?? {},
    redirect: command["follow_redirects"] === true ? "follow" : "manual",
    ...(body !== undefined && {
      body: command["stream_body"] === true ? new Blob([body]).stream() : body,
      duplex: "half",
    }),
  });
  return { status: response.status, body: await response.text(), location: response.headers.get("location") };
}

async function echoOverGrpc(client: BrokerClient, command: Command): Promise<object> {
  const ca = optional(command, "ca_file");
  const [scope, options] = [text(command, "scope"), { thread: optional(command, "thread") }];
  const channel =
    ca === undefined
      ? credentials.createInsecure()
      : client.channelCredentials(credentials.createSsl(await readFile(ca)), scope, options);
  const serverName = optional(command, "server_name");
  const stub = new CredentialBrokerClient(text(command, "target"), channel, {
    ...(serverName !== undefined && { "grpc.ssl_target_name_override": serverName }),
  });
  const results: object[] = [];
  try {
    for (let n = 0; n < (number(command, "count") ?? 1); n += 1) {
      const answer = await new Promise<ListScopesResponse>((resolve, reject) => {
        const metadata = new Metadata();
        metadata.set("x-credential-broker", "1");
        // With each call too, so that a channel in the open is not spared for having none of its own.
        const own = { credentials: client.callCredentials(scope, options), deadline: Date.now() + 10_000 };
        stub.listScopes({ pageSize: 0, pageToken: "" }, metadata, own, (error, response) => {
          if (error === null) {
            resolve(response);
          } else {
            reject(error);
          }
        });
      });
      results.push({ metadata: answer.scopes.map(({ scope, description }) => [scope, description]) });
    }
  } finally {
    stub.close();
  }
  return { results };
}

/** Says on standard error what is logged, with its level. */
function saying(level: string): (message: string) => void {
  return (message) => {
    console.error(`${level}: ${message}`);
  };
}

/** All ways to print something. */
function printed(value: object): string[] {
  return [
    inspect(value),
    inspect(value, { depth: null, showHidden: true, getters: true }),
    format("%s %o %O %j", value, value, value, value),
    JSON.stringify(value),
    JSON.stringify(Object.entries(value)),
  ];
}

const doers: Record<string, (command: Command) => object | Promise<object>> = {
  hello: () => ({
    language: "TypeScript",
    runtime: `Node ${process.version}`,
    client: "credentialbroker 0.1.0",
    adapters: { http: ["fetch"], grpc: ["call_credentials"] },
  }),

  open: (command) => {
    const options: BrokerClientOptions = {
      address: optional(command, "address"),
      identity: optional(command, "identity"),
      watch: command["watch"] as boolean | undefined,
      timeoutMs: milliseconds(command, "timeout"),
      caFile: optional(command, "ca_file"),
      certificateFile: optional(command, "certificate_file"),
      privateKeyFile: optional(command, "private_key_file"),
      serverName: optional(command, "server_name"),
      plaintext: command["plaintext"] as boolean | undefined,
      cacheSize: number(command, "cache_size"),
      idleMs: milliseconds(command, "idle_seconds"),
      silenceMs: milliseconds(command, "silence_seconds"),
      logger: { info: saying("info"), warn: saying("warning") },
    };
    try {
      clients.set(text(command, "client"), command["env"] === true ? new BrokerClient() : new BrokerClient(options));
    } catch (error) {
      throw new ArgumentError(String(error));
    }
    return {};
  },

  close: (command) => {
    clientOf(command).close();
    return {};
  },

  authorization: async (command) => {
    const authorization = await clientOf(command).authorization(text(command, "scope"), authorizationOptions(command));
    held.set(command.id, authorization);
    return shownAuthorization(authorization);
  },

  many: (command) => {
    const client = clientOf(command);
    const threads = command["threads"] as string[] | undefined;
    return atOnce(number(command, "count") ?? 1, async (index) => {
      const thread = threads?.[index % threads.length] ?? optional(command, "thread");
      return shownAuthorization(
        await client.authorization(text(command, "scope"), { ...authorizationOptions(command), thread }),
      );
    });
  },

  cancel_after: async (command) => {
    const controller = new AbortController();
    const timer = setTimeout(
      () => {
        controller.abort();
      },
      milliseconds(command, "seconds"),
    );
    try {
      const options = { ...authorizationOptions(command), signal: controller.signal };
      return shownAuthorization(await clientOf(command).authorization(text(command, "scope"), options));
    } finally {
      clearTimeout(timer);
    }
  },

  report_rejected: async (command) => {
    const [client, authorization] = [clientOf(command), heldOf(command)];
    const report = async (): Promise<object> => {
      const better = await client.reportRejected(authorization, { detail: optional(command, "detail") });
      held.set(command.id, better);
      return shownAuthorization(better);
    };
    const count = number(command, "count") ?? 1;
    return count > 1 ? atOnce(count, report) : report();
  },

  register_task: async (command) => {
    const options = { thread: optional(command, "thread"), identity: optional(command, "identity") };
    const { state, thread, identity } = await clientOf(command).registerTask(options);
    return { state, thread_id: thread, identity };
  },

  end_task: async (command) => {
    const options = { identity: optional(command, "identity") };
    const { state, thread, identity } = await clientOf(command).endTask(text(command, "thread"), options);
    return { state, thread_id: thread, identity };
  },

  state: (command) => {
    const { watching, held: count, firstEndInMs, lastError } = clientOf(command).state();
    return {
      watching,
      held: count,
      first_end_in: firstEndInMs === undefined ? null : firstEndInMs / 1_000,
      last_error: lastError === undefined ? null : shownError(lastError),
    };
  },

  http: (command) => {
    const client = clientOf(command);
    const count = number(command, "count") ?? 1;
    return count > 1 ? atOnce(count, () => sendHttp(client, command)) : sendHttp(client, command);
  },

  grpc_echo: (command) => echoOverGrpc(clientOf(command), command),

  connect: async (command) => {
    const options = { thread: optional(command, "thread") };
    const connection = await clientOf(command).connection(text(command, "scope"), options);
    connections.set(text(command, "connection"), connection);
    const { headers, connectionTag } = connection.authorization;
    return { headers: headers.map(({ name, value }) => [name, value]), connection_tag: connectionTag };
  },

  changed: async (command) => {
    const connection = connectionOf(command);
    const waitMs = milliseconds(command, "wait") ?? 0;
    if (!connection.changed && waitMs > 0) {
      // Not AbortSignal.any with a time-out, which Node may collect before it fires (nodejs/node#57736).
      await sleep(waitMs, undefined, { signal: connection.signal }).catch(() => undefined);
    }
    if (connection.signal.reason instanceof ClosedError) {
      throw connection.signal.reason;
    }
    return { changed: connection.changed };
  },

  disconnect: (command) => {
    connectionOf(command).close();
    return {};
  },

  traffic_start: (command) => {
    const client = clientOf(command);
    const traffic: Traffic = {
      ended: new AbortController(),
      workers: [],
      began: performance.now(),
      calls: 0,
      failed: 0,
      errors: {},
      slowest: 0,
      longestExpired: 0,
      revisions: new Set(),
    };
    const workers = number(command, "workers") ?? 1;
    for (let n = 0; n < workers; n += 1) {
      traffic.workers.push(work(client, command, traffic, (1_000 * workers) / (number(command, "rate") ?? 1)));
    }
    traffics.set(text(command, "traffic"), traffic);
    return {};
  },

  traffic_stop: async (command) => {
    const traffic = traffics.get(text(command, "traffic"));
    if (traffic === undefined) {
      throw new ArgumentError("there is no such traffic");
    }
    traffic.ended.abort();
    await Promise.all(traffic.workers);
    return {
      calls: traffic.calls,
      failed: traffic.failed,
      errors: traffic.errors,
      slowest_seconds: traffic.slowest,
      longest_expired_seconds: traffic.longestExpired,
      revisions: traffic.revisions.size,
    };
  },

  burn: async (command) => {
    const client = clientOf(command);
    const [scope, options] = [text(command, "scope"), { thread: optional(command, "thread") }];
    const count = number(command, "count") ?? 1;
    const began = performance.now();
    for (let n = 0; n < count; n += 1) {
      await client.authorization(scope, options);
    }
    const seconds = (performance.now() - began) / 1_000;
    return { seconds, nanoseconds_each: (seconds / count) * 1e9 };
  },

  show: (command) => {
    const shown = [heldOf(command), ...heldOf(command).headers, clientOf(command), ...connections.values()];
    return { texts: shown.flatMap(printed) };
  },

  fork: () => ({ unsupported: true }),

  threads: () => ({ count: readdirSync("/proc/self/task").length }),
};

function answer(line: object): void {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}

async function run(command: Command): Promise<void> {
  try {
    const doer = doers[command.do];
    if (doer === undefined) {
      throw new ArgumentError(`there is no command ${command.do}`);
    }
    answer({ id: command.id, ok: await doer(command) });
  } catch (error) {
    answer({ id: command.id, error: shownError(error) });
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  void run(JSON.parse(line) as Command);
}
for (const client of clients.values()) {
  client.close();
}
