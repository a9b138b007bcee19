import type { Authorization } from "./authorization.js";
import type { Connection } from "./connection.js";
import { Backoff, type Lifetime } from "./lifetimes.js";

/** Under what an authorization is kept: the words that were asked with. Empty where there was none. */
export interface Key {
  readonly identity: string;
  readonly scope: string;
  readonly thread: string;
}

/** A value, as it is held. */
export interface Held {
  readonly authorization: Authorization;
  readonly lifetime: Lifetime;
  /** The authorization as a promise, made once, so that handing it out makes nothing. */
  readonly answer: Promise<Authorization>;
}

const MOST_ORIGINS = 8;

/** What is known under one key: the value that is held, if any, and what goes with it. */
export class Entry {
  readonly key: Key;
  /** Names the entry on streams. Never used again. */
  readonly id: string;
  /** When it was last asked for, on the clock. */
  lastUsed: number;
  /** Open connections that were authenticated with what is held here. */
  readonly connections = new Set<Connection>();
  /** Before when a background refresh is not tried again, on the clock. */
  notBefore = -Infinity;
  readonly backoff = new Backoff();
  #held: Held | undefined;
  readonly #origins = new Set<string>();

  constructor(key: Key, id: string, now: number) {
    this.key = key;
    this.id = id;
    this.lastUsed = now;
  }

  /** What is held, whether it has ended or not. */
  get held(): Held | undefined {
    return this.#held;
  }

  /** Takes a value in the place of what was held. */
  hold(held: Held): void {
    const { connectionTag } = held.authorization;
    if (this.#held?.authorization.connectionTag !== connectionTag) {
      this.#origins.clear();
    }
    this.#held = held;
    this.notBefore = -Infinity;
    this.backoff.reset();
    for (const connection of this.connections) {
      if (connection.connectionTag !== connectionTag) {
        connection.end("its connection tag changed");
      }
    }
  }

  /** Drops the value: it must not be used any more, nor connections that were authenticated with it. */
  withdraw(why: string | Error = "its authorization was withdrawn"): void {
    this.#held = undefined;
    this.#origins.clear();
    for (const connection of this.connections) {
      connection.end(why);
    }
  }

  /** Whether the broker has said of an origin that it is the backend's. */
  knowsOrigin(origin: string): boolean {
    return this.#origins.has(origin);
  }

  /** Remembers that an origin is the backend's. */
  addOrigin(origin: string): void {
    this.#origins.add(origin);
    if (this.#origins.size > MOST_ORIGINS) {
      const [oldest = ""] = this.#origins;
      this.#origins.delete(oldest);
    }
  }

  /** Whether nobody has used it for so long. An open connection uses it. */
  isIdle(now: number, idleMs: number): boolean {
    return this.connections.size === 0 && now - this.lastUsed >= idleMs;
  }
}
