import type { Broker } from "./broker.js";
import type { Cache } from "./cache.js";
import type { Entry } from "./entry.js";
import type { BrokerError } from "./errors.js";
import type { Authorization as Message } from "./generated/credentialbroker/v1/credential_broker.js";
import type { Clock } from "./lifetimes.js";
import { refuses, type Questions } from "./questions.js";
import type { Settings } from "./settings.js";
import { Watch, type Subscription, type WatchOwner } from "./watch.js";

/** How often what is held is looked after, in milliseconds. */
const LOOK_EVERY_MS = 1_000;

/** Keeps what is held current: from the stream, by asking when the stream does not bring it, and not what nobody uses. */
export class Upkeep implements WatchOwner {
  readonly #broker: Broker;
  readonly #cache: Cache;
  readonly #questions: Questions;
  readonly #clock: Clock;
  readonly #idleMs: number;
  readonly #watch: Watch | undefined;
  #looking: NodeJS.Timeout | undefined;

  constructor(
    broker: Broker,
    cache: Cache,
    questions: Questions,
    clock: Clock,
    { watch, idleMs, silenceMs }: Pick<Settings, "watch" | "idleMs" | "silenceMs">,
  ) {
    this.#broker = broker;
    this.#cache = cache;
    this.#questions = questions;
    this.#clock = clock;
    this.#idleMs = idleMs;
    this.#watch = watch ? new Watch(broker, this, clock, silenceMs) : undefined;
  }

  /** Whether the stream is up. */
  get isWatching(): boolean {
    return this.#watch?.up ?? false;
  }

  /** Begins to look after an entry that has got a value, or goes on doing so. */
  begin(entry: Entry): void {
    this.#watch?.subscribe(entry);
    this.#looking ??= setInterval(() => {
      this.#lookAfterAll();
    }, LOOK_EVERY_MS).unref();
  }

  /** Looks after an entry no longer. */
  end(entry: Entry): void {
    this.#watch?.unsubscribe(entry);
  }

  /** Asks in the background for the next value of what is due, unless the broker can be expected to send it in time. */
  refresh(entry: Entry): void {
    const isOverdue = entry.held === undefined || entry.held.lifetime.overdueAt <= this.#clock();
    if (isOverdue || this.#watch?.expects(entry) !== true) {
      this.#questions.refresh(entry);
    }
  }

  /** Ends the stream and all looking after. */
  close(): void {
    clearInterval(this.#looking);
    this.#watch?.close();
  }

  /** Lets go what nobody uses any more, and refreshes for open connections. Goes on while anything is held. */
  #lookAfterAll(): void {
    const now = this.#clock();
    for (const entry of this.#cache.entries) {
      const { held } = entry;
      if (held !== undefined && held.lifetime.refreshAt > now) {
        continue;
      }
      if (entry.isIdle(now, this.#idleMs)) {
        this.#cache.drop(entry);
      } else if (held !== undefined && entry.connections.size > 0) {
        this.refresh(entry);
      }
    }
    if (this.#cache.size === 0) {
      clearInterval(this.#looking);
      this.#looking = undefined;
    }
  }

  // What the watch asks, and tells.

  subscriptions(): Iterable<Subscription> {
    return this.#cache.entries;
  }

  knownRevision(id: string): string {
    const held = this.#cache.findById(id)?.held;
    return held && held.lifetime.refreshAt > this.#clock() ? held.authorization.revision : "";
  }

  authorization(id: string, message: Message): void {
    const entry = this.#cache.findById(id);
    if (entry?.isIdle(this.#clock(), this.#idleMs) === true) {
      this.#cache.drop(entry);
    } else if (entry !== undefined) {
      this.#cache.replace(entry.key, this.#questions.make(entry.key, message));
    }
  }

  withdrawal(id: string, isRejection: boolean): void {
    const entry = this.#cache.findById(id);
    if (entry !== undefined) {
      this.#cache.withdraw(entry, isRejection);
    }
  }

  failed(id: string, error: BrokerError): void {
    this.#broker.failed(error);
    const entry = this.#cache.findById(id);
    if (entry !== undefined && refuses(error)) {
      this.#cache.drop(entry);
    }
  }
}
