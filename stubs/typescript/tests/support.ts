// A broker of the tests' own: a gRPC server in this process that answers as it is told, and keeps what it was asked.

import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer, type IncomingMessage, type Server as HttpServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import {
  Metadata,
  Server,
  ServerCredentials,
  status,
  type sendUnaryData,
  type ServerDuplexStream,
  type ServerUnaryCall,
} from "@grpc/grpc-js";

import {
  CredentialBrokerService,
  CredentialKind,
  DecisionReason,
  TaskKind,
  TaskState,
  type Authorization,
  type EndTaskRequest,
  type EndTaskResponse,
  type ErrorStatus,
  type GetAuthorizationRequest,
  type GetAuthorizationResponse,
  type RegisterTaskRequest,
  type RegisterTaskResponse,
  type ReportRejectedRequest,
  type ReportRejectedResponse,
  type Task,
  type WatchAuthorizationsRequest,
  type WatchAuthorizationsResponse,
} from "../src/generated/credentialbroker/v1/credential_broker.js";
import { ErrorReason } from "../src/generated/credentialbroker/v1/error_reason.js";
import { BrokerClient, type BrokerClientOptions, type Logger } from "../src/index.js";

/** Whose the calls are that name no identity. */
export const IDENTITY = "agents";

/** How a fake broker answers a call; what is left out is as it would be in health. */
export interface Answer {
  readonly revision?: string;
  readonly identity?: string;
  readonly tag?: string;
  readonly lifetimeMs?: number;
  readonly refreshMs?: number;
  /** Waits for this before it answers. */
  readonly after?: Promise<unknown>;
  readonly error?: status;
}

export type Stream = ServerDuplexStream<WatchAuthorizationsRequest, WatchAuthorizationsResponse>;

/** Makes the message that the broker sends. Its clock is two days ahead of ours. */
export function authorizationMessage(answer: Answer = {}): Authorization {
  const now = Date.now() + 2 * 24 * 3_600_000;
  const { revision = "r1", identity = IDENTITY, tag = "tag", lifetimeMs = 60_000, refreshMs = 30_000 } = answer;
  return {
    headers: [
      { name: "authorization", value: `secret-of-${revision}`, sensitive: true },
      { name: "chatgpt-account-id", value: "account", sensitive: false },
    ],
    kind: CredentialKind.AGENT_ASSERTION,
    reason: DecisionReason.TASK_ASSERTION,
    fallbackFrom: CredentialKind.UNSPECIFIED,
    mintTime: new Date(now),
    serverTime: new Date(now),
    refreshTime: new Date(now + refreshMs),
    expireTime: new Date(now + lifetimeMs),
    stale: false,
    offlineServingUntilTime: new Date(now),
    revision,
    identity,
    connectionTag: tag,
  };
}

/** Makes what the broker sends for a subscription that it has no value for. */
export function errorStatus(code: status): ErrorStatus {
  return { code, reason: ErrorReason.UNSPECIFIED, message: "as told" };
}

export class FakeBroker implements AsyncDisposable {
  /** What calls are answered with, first to last; the last one stays. */
  answers: Answer[] = [{}];
  reports: Answer[] = [{ revision: "better" }];
  ends: Answer[] = [{}];
  readonly asked: GetAuthorizationRequest[] = [];
  readonly reported: ReportRejectedRequest[] = [];
  readonly ended: EndTaskRequest[] = [];
  readonly streams: Stream[] = [];
  /** What was written on any stream, first to last. */
  readonly actions: NonNullable<WatchAuthorizationsRequest["action"]>[] = [];
  cancelled = 0;
  #server = new Server();
  #port = 0;

  static async start(): Promise<FakeBroker> {
    const broker = new FakeBroker();
    await broker.listen();
    return broker;
  }

  get address(): string {
    return `127.0.0.1:${String(this.#port)}`;
  }

  get port(): number {
    return this.#port;
  }

  /** Listens, on the port that it had before if there was one. */
  async listen(): Promise<void> {
    this.#server = new Server();
    this.#server.addService(CredentialBrokerService, {
      getAuthorization: (
        call: ServerUnaryCall<GetAuthorizationRequest, GetAuthorizationResponse>,
        reply: sendUnaryData<GetAuthorizationResponse>,
      ) => {
        this.asked.push(call.request);
        call.on("cancelled", () => (this.cancelled += 1));
        void answer(this.answers, reply, ({ identity = call.request.identity || IDENTITY, ...told }) => ({
          authorization: authorizationMessage({ identity, ...told }),
        }));
      },
      reportRejected: (
        call: ServerUnaryCall<ReportRejectedRequest, ReportRejectedResponse>,
        reply: sendUnaryData<ReportRejectedResponse>,
      ) => {
        this.reported.push(call.request);
        void answer(this.reports, reply, (told) => ({ authorization: authorizationMessage(told) }));
      },
      registerTask: (
        _: ServerUnaryCall<RegisterTaskRequest, RegisterTaskResponse>,
        reply: sendUnaryData<RegisterTaskResponse>,
      ) => {
        reply({ code: status.UNIMPLEMENTED });
      },
      endTask: (call: ServerUnaryCall<EndTaskRequest, EndTaskResponse>, reply: sendUnaryData<EndTaskResponse>) => {
        this.ended.push(call.request);
        void answer(this.ends, reply, () => ({ task: endedTask(call.request) }));
      },
      watchAuthorizations: (stream: Stream) => {
        this.streams.push(stream);
        stream.on("data", ({ action }: WatchAuthorizationsRequest) => action && this.actions.push(action));
        stream.on("end", () => {
          stream.end();
        });
      },
      explainAuthorization: () => undefined,
      listScopes: () => undefined,
    });
    this.#port = await new Promise<number>((resolve, reject) => {
      const where = `127.0.0.1:${String(this.#port)}`;
      this.#server.bindAsync(where, ServerCredentials.createInsecure(), (error, port) => {
        if (error === null) {
          resolve(port);
        } else {
          reject(error);
        }
      });
    });
  }

  /** Cuts all connections and listens no longer. */
  kill(): void {
    this.#server.forceShutdown();
  }

  /** Sends an event on the newest stream, for the newest subscription where it is about one. */
  send(event: NonNullable<WatchAuthorizationsResponse["event"]>): void {
    const subscribed = this.actions.findLast((action) => action.$case === "subscribe");
    const subscriptionId = subscribed?.$case === "subscribe" ? subscribed.value.subscriptionId : "";
    this.streams.at(-1)?.write({ subscriptionId, event });
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.kill();
    return Promise.resolve();
  }
}

function endedTask({ identity, threadId }: EndTaskRequest): Task {
  return {
    id: "task-1",
    identity: identity || IDENTITY,
    kind: TaskKind.THREAD,
    threadId,
    state: TaskState.ENDED,
    upstreamKey: "key",
    generation: 1n,
    version: 2n,
    etag: "etag",
  };
}

async function answer<Response>(
  answers: Answer[],
  reply: sendUnaryData<Response>,
  make: (told: Answer) => Response,
): Promise<void> {
  const next = (answers.length > 1 ? answers.shift() : answers[0]) ?? {};
  await next.after;
  if (next.error === undefined) {
    reply(null, make(next));
  } else {
    reply({ code: next.error, details: "as told", metadata: new Metadata() });
  }
}

/** A logger for what is not looked at. */
export const quiet: Logger = { info: () => undefined, warn: () => undefined };

/** Keeps what is logged, each with its level. */
export function keepingLog(): { lines: string[]; logger: Logger } {
  const lines: string[] = [];
  const keep = (level: string) => (message: string) => void lines.push(`${level}: ${message}`);
  return { lines, logger: { info: keep("info"), warn: keep("warn") } };
}

/** Makes a client of a broker. */
export function clientOf(broker: FakeBroker, options: BrokerClientOptions = {}): BrokerClient {
  return new BrokerClient({ address: broker.address, logger: quiet, ...options });
}

/** Lets a call be answered later. */
export function gate(): { opened: Promise<void>; open: () => void } {
  let open = (): void => undefined;
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { opened, open };
}

/** For files of the tests of one process. */
export const folder = mkdtempSync(join(tmpdir(), "tls-"));
after(() => {
  rmSync(folder, { recursive: true });
});

/** Makes a certificate for this machine that is its own authority. */
export function issue(name: string): { certificate: string; key: string } {
  const [certificate, key] = [join(folder, `${name}.crt`), join(folder, `${name}.key`)];
  const subject = ["-subj", `/CN=${name}`, "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"];
  const made = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
  execFileSync("openssl", ["req", "-x509", ...made, ...subject, "-keyout", key, "-out", certificate], {
    stdio: "ignore",
  });
  return { certificate, key };
}

/** Waits until something is so. */
export async function until(isSo: () => boolean, what: string): Promise<void> {
  const end = performance.now() + 10_000;
  while (!isSo()) {
    if (performance.now() > end) {
      throw new Error(`not so after 10 s: ${what}`);
    }
    await sleep(5);
  }
}

/** One request that an HTTP server of a test got. */
export interface Seen {
  readonly url: string;
  readonly headers: IncomingMessage["headers"];
  readonly body: string;
}

/** An HTTP server for as long as the block lasts. */
export class Origin implements AsyncDisposable {
  readonly seen: Seen[] = [];
  readonly #server: HttpServer;

  private constructor(respond: (seen: Seen, response: ServerResponse) => void) {
    this.#server = createServer((request, response) => {
      void (async () => {
        const chunks: Buffer[] = [];
        for await (const chunk of request) {
          chunks.push(chunk as Buffer);
        }
        const seen = { url: request.url ?? "", headers: request.headers, body: Buffer.concat(chunks).toString() };
        this.seen.push(seen);
        respond(seen, response);
      })();
    });
  }

  static async start(respond: (seen: Seen, response: ServerResponse) => void): Promise<Origin> {
    const origin = new Origin(respond);
    origin.#server.listen(0, "127.0.0.1");
    await once(origin.#server, "listening");
    return origin;
  }

  get url(): string {
    return `http://127.0.0.1:${String((this.#server.address() as AddressInfo).port)}`;
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    this.#server.close();
    return Promise.resolve();
  }
}
