import type { CallCredentials, ChannelCredentials } from "@grpc/grpc-js";

import type { Authorization } from "./authorization.js";
import { Broker } from "./broker.js";
import { Cache } from "./cache.js";
import { Connection } from "./connection.js";
import type { Key } from "./entry.js";
import { BrokerError, ClosedError } from "./errors.js";
import { brokerFetch, type Fetch, type FetchOptions } from "./fetch.js";
import {
  TaskKind,
  type EndTaskResponse,
  type RegisterTaskResponse,
  type Task as TaskMessage,
} from "./generated/credentialbroker/v1/credential_broker.js";
import { brokerCallCredentials, brokerChannelCredentials, type CallCredentialsOptions } from "./grpc.js";
import type { Clock } from "./lifetimes.js";
import { originOf, Questions } from "./questions.js";
import { given, positive, readSettings, type BrokerClientOptions, type Settings } from "./settings.js";
import { SharedCalls, type Limits } from "./shared-calls.js";
import { Upkeep } from "./upkeep.js";

/** What every call may be told. */
export interface CallOptions {
  /** A shorter deadline than the client's, in milliseconds. */
  readonly timeoutMs?: number | undefined;
  /** Ends the wait of this caller, and the call when nobody else waits for the same answer. */
  readonly signal?: AbortSignal | undefined;
}

/** Whose authorization it is. */
export interface Whose {
  /** The conversation or run that the call belongs to. Required where the scope works on a thread's task. */
  readonly thread?: string | undefined;
  /** Name of the identity. By default that of the client, else the broker decides. */
  readonly identity?: string | undefined;
}

/** What {@link BrokerClient.authorization} may be told. */
export interface AuthorizationOptions extends Whose, CallOptions {
  /** Where the headers will be sent. The broker refuses what is not the backend's; it is asked once for each origin. */
  readonly targetUrl?: string | undefined;
  /** For how many milliseconds the headers must at least be usable. */
  readonly minValidityMs?: number | undefined;
}

/** A thread's task, or that of an identity's background work. */
export interface Task {
  readonly identity: string;
  /** Empty for background work. */
  readonly thread: string;
  /** `"ACTIVE"`, `"ENDED"` and so on; see `TaskState` of the stubs (`credentialbroker/v1`). */
  readonly state: string;
}

/** How a client is doing. */
export interface ClientState {
  /** Whether the stream is up, over which the broker keeps authorizations current. */
  readonly watching: boolean;
  /** How many authorizations are held that have not ended. */
  readonly held: number;
  /** In how many milliseconds the first of them ends; undefined when there is none. */
  readonly firstEndInMs: number | undefined;
  /** The last failure of a call, a subscription or the stream; undefined when there has been none. */
  readonly lastError: BrokerError | undefined;
}

const NO_OPTIONS: AuthorizationOptions = Object.freeze({});

/**
 * A client of the credential broker: hands out authorization headers from memory, and keeps them current.
 *
 * Make one for the process (each worker thread needs its own), share it, and close it at the end. It does not keep the
 * process alive by itself.
 *
 * ```ts
 * const client = new BrokerClient();
 * const authorization = await client.authorization("inference", { thread: "t1" });
 * ```
 */
export class BrokerClient implements Disposable {
  readonly #settings: Settings;
  readonly #clock: Clock = () => performance.now();
  readonly #broker: Broker;
  readonly #cache: Cache;
  readonly #questions: Questions;
  readonly #upkeep: Upkeep;
  /** Calls about tasks that are under way; none is shared. */
  readonly #tasks: SharedCalls<Task>;
  #isClosed = false;

  /**
   * Finds the broker, by the options, the environment and the defaults. Does no I/O but reading the TLS files.
   *
   * @throws TypeError when the options make no sense; Error that names a TLS file which cannot be used.
   */
  constructor(options: BrokerClientOptions = {}) {
    this.#settings = readSettings(options, process.env);
    this.#cache = new Cache(this.#settings.cacheSize, this.#clock, {
      kept: (entry) => {
        this.#upkeep.begin(entry);
      },
      dropped: (entry) => {
        this.#upkeep.end(entry);
      },
    });
    this.#broker = new Broker(this.#settings, this.#clock, () => this.#cache.summary());
    this.#questions = new Questions(this.#broker, this.#cache, this.#clock, this.#settings.timeoutMs);
    this.#upkeep = new Upkeep(this.#broker, this.#cache, this.#questions, this.#clock, this.#settings);
    this.#tasks = new SharedCalls(this.#clock, 0);
  }

  /**
   * Returns the headers to attach to one call, from memory where it can.
   *
   * @param scope what the call is for, for example `inference`.
   * @throws BrokerError when nothing is held and the broker refuses or cannot be reached.
   * @throws ClosedError; the reason of `signal`.
   */
  authorization(scope: string, options: AuthorizationOptions = NO_OPTIONS): Promise<Authorization> {
    const { thread = "", targetUrl = "", minValidityMs, signal } = options;
    if (this.#isClosed || signal?.aborted === true) {
      return Promise.reject(this.#isClosed ? new ClosedError() : (signal?.reason as Error));
    }
    const key = { identity: given(options.identity) ?? this.#settings.identity, scope, thread };
    const entry = this.#cache.find(key);
    if (entry !== undefined) {
      const { held } = entry;
      const now = this.#clock();
      entry.lastUsed = now;
      if (
        held !== undefined &&
        held.lifetime.expireAt > now &&
        (minValidityMs === undefined || held.lifetime.expireAt - now >= minValidityMs) &&
        (targetUrl === "" || entry.knowsOrigin(targetUrl) || entry.knowsOrigin(originOf(targetUrl)))
      ) {
        if (held.lifetime.refreshAt <= now) {
          this.#upkeep.refresh(entry);
        }
        return held.answer;
      }
    }
    return this.#ask(key, options);
  }

  /**
   * Tells the broker that the backend answered 401 to these headers, and returns better ones, which take their place.
   * If the client already holds others, they are returned without a call.
   *
   * @param detail what the backend said, for the broker's audit record; cut to 256 bytes. Never a header's value.
   * @throws BrokerError when there is nothing better. TypeError for an authorization that is not of this client.
   */
  async reportRejected(
    authorization: Authorization,
    { detail = "", ...options }: CallOptions & { readonly detail?: string | undefined } = {},
  ): Promise<Authorization> {
    return this.#questions.report(authorization, detail, this.#limits(options));
  }

  /**
   * Returns the headers to dial a long-lived connection with, and word of when it must be closed.
   *
   * Until it is closed its authorization is in use: the client keeps it current, also if it does not watch.
   *
   * @throws as {@link authorization}.
   */
  async connection(scope: string, options: AuthorizationOptions = NO_OPTIONS): Promise<Connection> {
    const authorization = await this.authorization(scope, options);
    const key = this.#questions.keyOf(authorization);
    return new Connection(authorization, key && this.#cache.find(key));
  }

  /**
   * Returns a `fetch` for one origin that attaches the headers; see {@link brokerFetch}.
   *
   * @throws TypeError when `origin` is not an origin.
   */
  fetch(options: FetchOptions): Fetch {
    return brokerFetch(this, options);
  }

  /**
   * Returns channel credentials for a gRPC client of the backend: the headers are metadata of each call, over TLS only.
   *
   * ```ts
   * const backend = new Backend(target, client.channelCredentials(credentials.createSsl(), "inference", { thread }));
   * ```
   *
   * @throws Error when `tls` is not secure.
   */
  channelCredentials(
    tls: ChannelCredentials,
    scope: string,
    options: CallCredentialsOptions = NO_OPTIONS,
  ): ChannelCredentials {
    return brokerChannelCredentials(this, tls, scope, options);
  }

  /**
   * Returns credentials for single calls on a channel that was made with {@link channelCredentials}, in the place of the
   * channel's own: another thread, another scope. On any other channel the call fails.
   */
  callCredentials(scope: string, options: CallCredentialsOptions = NO_OPTIONS): CallCredentials {
    return brokerCallCredentials(this, scope, options);
  }

  /**
   * Makes sure that a thread (or the background work of an identity, where none is named) has a live task. Nobody has to:
   * the first authorization does it.
   *
   * @throws BrokerError, ClosedError; the reason of `signal`.
   */
  async registerTask({ thread, identity, ...options }: Whose & CallOptions = {}): Promise<Task> {
    const target =
      given(thread) === undefined
        ? { $case: "kind" as const, value: TaskKind.BACKGROUND }
        : { $case: "threadId" as const, value: thread ?? "" };
    const request = { target, identity: given(identity) ?? this.#settings.identity };
    return this.#tasks.share(Symbol("registerTask"), this.#limits(options), async (timeoutMs, signal) => {
      const answer = await this.#broker.call<RegisterTaskResponse>(
        (stub, ...rest) => stub.registerTask(request, ...rest),
        timeoutMs,
        signal,
      );
      return taskOf(answer.task);
    });
  }

  /**
   * Ends the task of a thread: what is held of it is dropped, and authorizations of it are refused with TASK_ENDED until
   * it is registered again.
   *
   * @throws BrokerError, ClosedError; the reason of `signal`. Then what is held stays.
   */
  async endTask(thread: string, { identity, ...options }: Omit<Whose, "thread"> & CallOptions = {}): Promise<Task> {
    const request = { threadId: thread, identity: given(identity) ?? this.#settings.identity };
    return this.#tasks.share(Symbol("endTask"), this.#limits(options), async (timeoutMs, signal) => {
      const answer = await this.#broker.call<EndTaskResponse>(
        (stub, ...rest) => stub.endTask(request, ...rest),
        timeoutMs,
        signal,
      );
      this.#cache.withdrawThread(request.identity, thread);
      return taskOf(answer.task);
    });
  }

  /** Says how the client is doing. */
  state(): ClientState {
    return { watching: this.#upkeep.isWatching, ...this.#cache.summary(), lastError: this.#broker.lastError };
  }

  /**
   * Ends stream, connections and background work. Whoever waits fails with {@link ClosedError}, as all later calls do.
   * Closing twice is fine.
   */
  close(): void {
    if (this.#isClosed) {
      return;
    }
    this.#isClosed = true;
    const reason = new ClosedError();
    this.#questions.close(reason);
    this.#tasks.close(reason);
    this.#upkeep.close();
    this.#cache.close(reason);
    this.#broker.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  async #ask(key: Key, { targetUrl = "", minValidityMs, ...limits }: AuthorizationOptions): Promise<Authorization> {
    return this.#questions.ask(key, { targetUrl, minValidityMs }, this.#limits(limits));
  }

  #limits({ timeoutMs, signal }: CallOptions): Limits {
    return { timeoutMs: positive("timeoutMs", timeoutMs ?? this.#settings.timeoutMs), signal };
  }
}

function taskOf(task: TaskMessage | undefined): Task {
  if (task === undefined) {
    throw new BrokerError("INTERNAL", "the broker's answer holds no task");
  }
  return { identity: task.identity, thread: task.threadId, state: task.state.replace(/^TASK_STATE_/, "") };
}
