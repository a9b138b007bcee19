import type { Authorization } from "./authorization.js";
import type { Connection } from "./connection.js";
import { Backoff, type Clock, type Lifetime } from "./lifetimes.js";

/** Under what an authorization is kept: the words that were asked with. Empty where there was none. */
export interface Key {
  readonly identity: string;
  readonly scope: string;
  readonly thread: string;
}

/** A value that is held. */
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
  /** Counts what came in the place of older answers: what the stream brings or withdraws, and what reports bring. */
  changes = 0;
  /** Counts withdrawals for another reason than a rejection. */
  revocations = 0;
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
  hold(authorization: Authorization, lifetime: Lifetime): void {
    if (this.#held?.authorization.connectionTag !== authorization.connectionTag) {
      this.#origins.clear();
    }
    this.#held = { authorization, lifetime, answer: Promise.resolve(authorization) };
    this.notBefore = -Infinity;
    this.backoff.reset();
    for (const connection of this.connections) {
      if (connection.connectionTag !== authorization.connectionTag) {
        connection.end("its connection tag changed");
      }
    }
  }

  /**
   * Drops the value: it must not be used any more, nor connections that were authenticated with it.
   *
   * @param isRejection whether because the backend rejected it, which the answer to a report mends.
   */
  withdraw(isRejection = false): void {
    this.#held = undefined;
    this.#origins.clear();
    this.changes += 1;
    this.revocations += isRejection ? 0 : 1;
    for (const connection of this.connections) {
      connection.end("its authorization was withdrawn");
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

/** How things stood with a key when the broker was asked. */
export interface Asked {
  readonly key: Key;
  readonly entry: Entry | undefined;
  readonly changes: number;
  readonly revocations: number;
}

/** The entries of a client, at most so many. */
export class Cache {
  readonly #size: number;
  readonly #clock: Clock;
  readonly #dropped: (entry: Entry) => void;
  readonly #entries = new Map<string, Entry>();
  readonly #byId = new Map<string, Entry>();
  #lastId = 0;

  /**
   * @param size how many entries are kept at most.
   * @param dropped is told of each entry that goes.
   */
  constructor(size: number, clock: Clock, dropped: (entry: Entry) => void) {
    this.#size = size;
    this.#clock = clock;
    this.#dropped = dropped;
  }

  /** Returns the entry of a key. */
  find(identity: string, scope: string, thread: string): Entry | undefined {
    return this.#entries.get(join(identity, scope, thread));
  }

  /** Returns the entry that is named so on streams. */
  findById(id: string): Entry | undefined {
    return this.#byId.get(id);
  }

  /** How many entries there are. */
  get size(): number {
    return this.#byId.size;
  }

  /** All entries. */
  get entries(): Iterable<Entry> {
    return this.#byId.values();
  }

  /** Makes the entry of a key that has none; for it another may go. */
  add(key: Key): Entry {
    this.#makeRoom();
    this.#lastId += 1;
    const entry = new Entry(key, this.#lastId.toString(), this.#clock());
    this.#entries.set(join(key.identity, key.scope, key.thread), entry);
    this.#byId.set(entry.id, entry);
    return entry;
  }

  /** Takes an entry out, with its value. */
  drop(entry: Entry): void {
    if (this.#byId.delete(entry.id)) {
      this.#entries.delete(join(entry.key.identity, entry.key.scope, entry.key.thread));
      entry.withdraw();
      this.#dropped(entry);
    }
  }

  /** Notes how things stand, before the broker is asked. */
  asking(key: Key): Asked {
    const entry = this.find(key.identity, key.scope, key.thread);
    return { key, entry, changes: entry?.changes ?? 0, revocations: entry?.revocations ?? 0 };
  }

  /** Whether something newer than the answer came meanwhile, or the entry went. */
  isOvertaken({ key, entry, changes }: Asked): boolean {
    const now = this.find(key.identity, key.scope, key.thread);
    return (now?.changes ?? 0) !== changes || (entry !== undefined && now !== entry);
  }

  /** Whether the value was withdrawn meanwhile for another reason than a rejection, or the entry went. */
  isRevoked({ key, entry, revocations }: Asked): boolean {
    const now = this.find(key.identity, key.scope, key.thread);
    return (now?.revocations ?? 0) !== revocations || (entry !== undefined && now !== entry);
  }

  /** The values that have not ended. */
  live(): Held[] {
    const now = this.#clock();
    return [...this.#byId.values()].flatMap(({ held }) => (held && held.lifetime.expireAt > now ? held : []));
  }

  /**
   * Drops the least recently used while there is none to spare. Looking at all of them costs little beside the call to
   * the broker that comes before each new entry, and spares every use the upkeep of an order.
   */
  #makeRoom(): void {
    while (this.#byId.size >= this.#size) {
      let oldest: Entry | undefined;
      for (const entry of this.#byId.values()) {
        if (oldest === undefined || isBefore(entry, oldest)) {
          oldest = entry;
        }
      }
      if (oldest === undefined) {
        return;
      }
      this.drop(oldest);
    }
  }
}

/** Whether one entry goes before another: without an open connection first, then the least recently used. */
function isBefore(one: Entry, other: Entry): boolean {
  const [connected, otherConnected] = [one.connections.size > 0, other.connections.size > 0];
  return connected === otherConnected ? one.lastUsed < other.lastUsed : otherConnected;
}

/** Makes one word of a key. No part that the broker accepts holds a control character. */
function join(identity: string, scope: string, thread: string): string {
  return `${identity}\n${scope}\n${thread}`;
}
