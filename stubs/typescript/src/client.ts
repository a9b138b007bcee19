import type { CallCredentials, ChannelCredentials } from "@grpc/grpc-js";

import { Authorization } from "./authorization.js";
import { Cache, type Asked, type Entry, type Held, type Key } from "./cache.js";
import { Channel, type Send } from "./channel.js";
import { Connection } from "./connection.js";
import { BrokerError, ClosedError } from "./errors.js";
import { brokerFetch, type Fetch, type FetchOptions } from "./fetch.js";
import {
  TaskKind,
  type EndTaskResponse,
  type GetAuthorizationResponse,
  type RegisterTaskResponse,
  type ReportRejectedResponse,
  type Authorization as Message,
  type Task as TaskMessage,
} from "./generated/credentialbroker/v1/credential_broker.js";
import { brokerCallCredentials, brokerChannelCredentials, type CallCredentialsOptions } from "./grpc.js";
import { isRefusal, Lifetime, type Clock } from "./lifetimes.js";
import { given, positive, readSettings, type BrokerClientOptions, type Settings } from "./settings.js";
import { SharedCalls, type Limits, type Run } from "./shared-calls.js";
import { Watch, type WatchOwner } from "./watch.js";

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
/** How often a client looks after what it holds, in milliseconds. */
const LOOK_EVERY_MS = 1_000;
/** How often the broker is asked again because a withdrawal overtook its answer. */
const MOST_AGAIN = 3;

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
  readonly #channel: Channel;
  readonly #cache: Cache;
  readonly #watch: Watch | undefined;
  /** Calls for authorizations that are under way. */
  readonly #authorizations: SharedCalls<Authorization>;
  /** Calls about tasks that are under way; none is shared. */
  readonly #tasks: SharedCalls<Task>;
  /** What was asked to get an authorization, for reports about it. */
  readonly #keys = new WeakMap<Authorization, Key>();
  #lastError: BrokerError | undefined;
  #looking: NodeJS.Timeout | undefined;
  #isAway = false;
  #isClosed = false;

  /**
   * Finds the broker, by the options, the environment and the defaults. Does no I/O but reading the TLS files.
   *
   * @throws TypeError when the options make no sense; Error that names a TLS file which cannot be used.
   */
  constructor(options: BrokerClientOptions = {}) {
    this.#settings = readSettings(options, process.env);
    this.#channel = new Channel(this.#settings, this.#clock);
    this.#authorizations = new SharedCalls(this.#clock, this.#settings.timeoutMs);
    this.#tasks = new SharedCalls(this.#clock, 0);
    this.#cache = new Cache(this.#settings.cacheSize, this.#clock, (entry) => this.#watch?.unsubscribe(entry));
    this.#watch = this.#settings.watch ? this.#makeWatch() : undefined;
  }

  /**
   * Returns the headers to attach to one call, from memory where it can.
   *
   * @param scope what the call is for, for example `inference`.
   * @throws BrokerError when nothing is held and the broker refuses or cannot be reached.
   * @throws ClosedError; the reason of `signal`.
   */
  authorization(scope: string, options: AuthorizationOptions = NO_OPTIONS): Promise<Authorization> {
    const { thread = "", signal } = options;
    const identity = given(options.identity) ?? this.#settings.identity;
    if (this.#isClosed || signal?.aborted === true) {
      return Promise.reject(this.#isClosed ? new ClosedError() : (signal?.reason as Error));
    }
    const entry = this.#cache.find(identity, scope, thread);
    if (entry !== undefined) {
      const { held } = entry;
      const now = this.#clock();
      entry.lastUsed = now;
      if (
        held !== undefined &&
        held.lifetime.expireAt > now &&
        (options.minValidityMs === undefined || held.lifetime.expireAt - now >= options.minValidityMs) &&
        (given(options.targetUrl) === undefined ||
          entry.knowsOrigin(options.targetUrl ?? "") ||
          entry.knowsOrigin(originOf(options.targetUrl ?? "")))
      ) {
        if (held.lifetime.refreshAt <= now) {
          this.#refresh(entry, held.lifetime, now);
        }
        return held.answer;
      }
    }
    return this.#ask({ identity, scope, thread }, options);
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
    const key = this.#keys.get(authorization);
    if (key === undefined) {
      throw new TypeError("the authorization was not made by this client");
    }
    const { scope, thread } = key;
    const { revision } = authorization;
    const held = this.#live(key);
    if (held && held.authorization.revision !== revision) {
      return held.authorization;
    }
    const request = { scope, threadId: thread, revision, httpStatus: 401, detail: cut(detail) };
    return this.#authorizations.share(
      `rejected ${revision} ${wordOf(key, NO_WISH)}`,
      this.#limits(options),
      async (timeoutMs, signal) => {
        const asked = this.#cache.asking(key);
        try {
          const answer = await this.#call<ReportRejectedResponse>(
            (stub, ...rest) => stub.reportRejected(request, ...rest),
            timeoutMs,
            signal,
          );
          return this.#keepBetter(asked, revision, this.#make(key, answer.authorization));
        } catch (error) {
          const entry = this.#find(key);
          // INVALID_ARGUMENT is about the report, not about what is held
          if (entry?.held?.authorization.revision === revision && refuses(error) && error.code !== "INVALID_ARGUMENT") {
            this.#cache.drop(entry);
          }
          throw error;
        }
      },
    );
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
    const key = this.#keys.get(authorization);
    return new Connection(authorization, key && this.#find(key));
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
    return this.#tasks.share(Symbol("registerTask"), this.#limits(options), async (timeoutMs, signal) =>
      taskOf(
        (
          await this.#call<RegisterTaskResponse>(
            (stub, ...rest) => stub.registerTask(request, ...rest),
            timeoutMs,
            signal,
          )
        ).task,
      ),
    );
  }

  /**
   * Ends the task of a thread: authorizations of it are refused with TASK_ENDED until it is registered again.
   *
   * @throws BrokerError, ClosedError; the reason of `signal`.
   */
  async endTask(thread: string, { identity, ...options }: Omit<Whose, "thread"> & CallOptions = {}): Promise<Task> {
    const request = { threadId: thread, identity: given(identity) ?? this.#settings.identity };
    return this.#tasks.share(Symbol("endTask"), this.#limits(options), async (timeoutMs, signal) =>
      taskOf(
        (await this.#call<EndTaskResponse>((stub, ...rest) => stub.endTask(request, ...rest), timeoutMs, signal)).task,
      ),
    );
  }

  /** Says how the client is doing. */
  state(): ClientState {
    const now = this.#clock();
    const live = this.#cache.live();
    return {
      watching: this.#watch?.up ?? false,
      held: live.length,
      firstEndInMs: live.length > 0 ? Math.min(...live.map(({ lifetime }) => lifetime.expireAt - now)) : undefined,
      lastError: this.#lastError,
    };
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
    clearInterval(this.#looking);
    const reason = new ClosedError();
    this.#authorizations.close(reason);
    this.#tasks.close(reason);
    this.#watch?.close();
    for (const entry of this.#cache.entries) {
      for (const connection of entry.connections) {
        connection.end(reason);
      }
      this.#cache.drop(entry);
    }
    this.#channel.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** Asks the broker, together with whoever asks the same at this time. */
  async #ask(key: Key, options: AuthorizationOptions): Promise<Authorization> {
    const wish: Wish = { targetUrl: options.targetUrl ?? "", minValidityMs: options.minValidityMs };
    return this.#authorizations.share(wordOf(key, wish), this.#limits(options), this.#asking(key, wish));
  }

  /** Refreshes in the background what is due, unless the broker will do so or it is too early to try again. */
  #refresh(entry: Entry, { overdueAt }: Lifetime, now: number): void {
    const word = wordOf(entry.key, NO_WISH);
    const expectsNext = now < overdueAt && this.#watch?.expects(entry) === true;
    if (expectsNext || now < entry.notBefore || this.#authorizations.has(word)) {
      return;
    }
    this.#authorizations.follow(word, this.#asking(entry.key, NO_WISH)).catch((error: unknown) => {
      const atLeastMs = error instanceof BrokerError ? error.retryDelayMs : undefined;
      entry.notBefore = this.#clock() + entry.backoff.next(atLeastMs);
    });
  }

  /** Lets go what nobody uses any more, and refreshes for open connections. Goes on while anything is held. */
  #lookAfter(): void {
    const now = this.#clock();
    for (const entry of this.#cache.entries) {
      const lifetime = entry.held?.lifetime;
      if (lifetime !== undefined && lifetime.refreshAt > now) {
        continue;
      }
      if (entry.isIdle(now, this.#settings.idleMs)) {
        this.#cache.drop(entry);
      } else if (lifetime !== undefined && entry.connections.size > 0) {
        this.#refresh(entry, lifetime, now);
      }
    }
    if (this.#cache.size === 0) {
      clearInterval(this.#looking);
      this.#looking = undefined;
    }
  }

  /** Makes the call that gets an authorization and keeps it. */
  #asking(key: Key, wish: Wish): Run<Authorization> {
    const { targetUrl, minValidityMs } = wish;
    const request = {
      scope: key.scope,
      threadId: key.thread,
      identity: key.identity,
      targetUrl,
      minValidity: minValidityMs === undefined ? undefined : duration(minValidityMs),
      expectedAccountId: "",
    };
    return async (timeoutMs, signal) => {
      const endsAt = this.#clock() + timeoutMs;
      for (let again = 0; again <= MOST_AGAIN; again += 1) {
        const asked = this.#cache.asking(key);
        try {
          const { authorization: message } = await this.#call<GetAuthorizationResponse>(
            (stub, ...rest) => stub.getAuthorization(request, ...rest),
            endsAt - this.#clock(),
            signal,
          );
          const answer = this.#keep(asked, this.#make(key, message), wish);
          if (answer !== undefined) {
            return answer;
          }
        } catch (error) {
          const isWish = targetUrl !== "" || minValidityMs !== undefined; // whose refusal says nothing of what is held
          if (!isWish && asked.entry !== undefined && refuses(error) && !this.#cache.isOvertaken(asked)) {
            this.#cache.drop(asked.entry);
          }
          throw error;
        }
      }
      throw new BrokerError("ABORTED", "each answer was withdrawn before it came");
    };
  }

  /** Makes one call, and takes note of how the broker is. */
  async #call<Response>(send: Send<Response>, timeoutMs: number, signal: AbortSignal): Promise<Response> {
    try {
      const response = await this.#channel.call(send, timeoutMs, signal);
      this.#isBack();
      return response;
    } catch (error) {
      if (error instanceof BrokerError && !signal.aborted) {
        this.#lastError = error;
        const isUnreachable = error.code === "UNAVAILABLE" ? !this.#channel.isReady : this.#channel.isFailing;
        if (error.reasonText !== "") {
          this.#isBack();
        } else if (isUnreachable) {
          this.#wentAway(error);
        }
      }
      throw error;
    }
  }

  /** Makes what users get of an answer that has just come. */
  #make(key: Key, message: Message | undefined): Made {
    if (message === undefined) {
      throw new BrokerError("INTERNAL", "the broker's answer holds no authorization");
    }
    const lifetime = new Lifetime(message, this.#clock());
    const authorization = new Authorization(message, lifetime, this.#clock);
    this.#keys.set(authorization, key);
    return { authorization, lifetime };
  }

  /**
   * Keeps an answer, unless something newer came meanwhile.
   *
   * @returns What to give: the answer, or what came meanwhile if it does as well. Undefined if the broker must be asked
   *   again: the answer may be what was withdrawn while it was on its way.
   */
  #keep(asked: Asked, made: Made, { targetUrl, minValidityMs = 0 }: Wish): Authorization | undefined {
    const { key } = asked;
    let answer: Authorization | undefined = made.authorization;
    if (this.#cache.isOvertaken(asked)) {
      answer = this.#live(key, minValidityMs)?.authorization;
      if (targetUrl !== "" && answer?.connectionTag !== made.authorization.connectionTag) {
        return undefined; // what the broker said of the target, it said of another identity
      }
    } else {
      this.#hold(key, made);
    }
    if (targetUrl !== "") {
      this.#find(key)?.addOrigin(originOf(targetUrl));
    }
    return answer;
  }

  /** Keeps the answer to a report, unless something better came meanwhile or it was withdrawn; returns what to give. */
  #keepBetter(asked: Asked, rejected: string, made: Made): Authorization {
    const held = this.#live(asked.key)?.authorization;
    if (held !== undefined && held.revision !== rejected) {
      return held;
    }
    if (!this.#cache.isRevoked(asked)) {
      this.#hold(asked.key, made);
      const entry = this.#find(asked.key);
      if (entry !== undefined) {
        entry.changes += 1; // what was asked for before may be what was rejected
      }
    }
    return made.authorization;
  }

  /** Returns what is held of a key, if it has not ended and lasts so long. */
  #live(key: Key, minValidityMs = 0): Held | undefined {
    const held = this.#find(key)?.held;
    const left = held === undefined ? 0 : held.lifetime.expireAt - this.#clock();
    return left > 0 && left >= minValidityMs ? held : undefined;
  }

  /** Keeps an answer, and watches what is new. */
  #hold(key: Key, { authorization, lifetime }: Made): void {
    if (this.#isClosed) {
      return;
    }
    const entry = this.#find(key) ?? this.#cache.add(key);
    entry.hold(authorization, lifetime);
    this.#watch?.subscribe(entry);
    this.#looking ??= setInterval(() => {
      this.#lookAfter();
    }, LOOK_EVERY_MS).unref();
  }

  #makeWatch(): Watch {
    const { idleMs, silenceMs } = this.#settings;
    const owner: WatchOwner = {
      subscriptions: () => this.#cache.entries,
      knownRevision: (id) => {
        const held = this.#cache.findById(id)?.held;
        return held && held.lifetime.refreshAt > this.#clock() ? held.authorization.revision : "";
      },
      authorization: (id, message) => {
        const entry = this.#cache.findById(id);
        if (entry?.isIdle(this.#clock(), idleMs) === true) {
          this.#cache.drop(entry);
        } else if (entry !== undefined) {
          const { authorization, lifetime } = this.#make(entry.key, message);
          entry.hold(authorization, lifetime);
          entry.changes += 1;
        }
      },
      withdrawal: (id, isRejection) => this.#cache.findById(id)?.withdraw(isRejection),
      failed: (id, error) => {
        this.#lastError = error;
        const entry = this.#cache.findById(id);
        if (entry !== undefined && refuses(error)) {
          this.#cache.drop(entry);
        }
      },
      lost: (error) => {
        this.#lastError = error ?? this.#lastError;
        if (error?.code === "UNAVAILABLE" && error.reasonText === "") {
          this.#wentAway(error);
        }
      },
      answered: () => {
        this.#isBack();
      },
    };
    return new Watch(this.#channel, owner, this.#clock, silenceMs);
  }

  #wentAway(error: BrokerError): void {
    if (!this.#isAway && !this.#isClosed) {
      this.#isAway = true;
      const { held, firstEndInMs } = this.state();
      const first =
        firstEndInMs === undefined ? "" : `, of which the first ends in ${(firstEndInMs / 1_000).toFixed(1)} s`;
      this.#warn(
        `credential broker: the broker is away (${this.#settings.address.target}: ${error.message}); ` +
          `${String(held)} authorizations are held${first}`,
      );
    }
  }

  #isBack(): void {
    if (this.#isAway) {
      this.#isAway = false;
      this.#warn(`credential broker: the broker is back (${this.#settings.address.target})`);
    }
  }

  #warn(message: string): void {
    try {
      this.#settings.logger.warn(message);
    } catch {
      // a logger that fails must end neither a call nor the watch
    }
  }

  #limits({ timeoutMs, signal }: CallOptions): Limits {
    return { timeoutMs: positive("timeoutMs", timeoutMs ?? this.#settings.timeoutMs), signal };
  }

  #find(key: Key): Entry | undefined {
    return this.#cache.find(key.identity, key.scope, key.thread);
  }
}

/** An answer that has just come. */
interface Made {
  readonly authorization: Authorization;
  readonly lifetime: Lifetime;
}

/** What is asked for beyond the key. */
interface Wish {
  readonly targetUrl: string;
  readonly minValidityMs: number | undefined;
}

const NO_WISH: Wish = { targetUrl: "", minValidityMs: undefined };

/** Whether the broker says that it would not give any more what is held. */
function refuses(error: unknown): error is BrokerError {
  return error instanceof BrokerError && isRefusal(error.code);
}

/** Names a call, so that those who ask the same share it. */
function wordOf({ identity, scope, thread }: Key, wish: Wish): string {
  return JSON.stringify([identity, scope, thread, wish.targetUrl && originOf(wish.targetUrl), wish.minValidityMs]);
}

/** Returns the origin of a URL as every fetch sees it; what is no such URL as it is, for the broker to refuse. */
function originOf(url: string): string {
  const origin = URL.canParse(url) ? new URL(url).origin : "null";
  return origin === "null" ? url : origin;
}

const LONGEST_DETAIL = 256;

/** Cuts a text to the bytes that the broker takes, between characters. */
function cut(detail: string): string {
  const { read } = new TextEncoder().encodeInto(detail, new Uint8Array(LONGEST_DETAIL));
  return detail.slice(0, read);
}

function duration(ms: number): { seconds: bigint; nanos: number } {
  const seconds = Math.trunc(ms / 1_000);
  return { seconds: BigInt(seconds), nanos: Math.round((ms - seconds * 1_000) * 1e6) };
}

function taskOf(task: TaskMessage | undefined): Task {
  if (task === undefined) {
    throw new BrokerError("INTERNAL", "the broker's answer holds no task");
  }
  return { identity: task.identity, thread: task.threadId, state: task.state.replace(/^TASK_STATE_/, "") };
}
