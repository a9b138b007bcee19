import { Entry, type Held, type Key } from "./entry.js";
import type { Clock } from "./lifetimes.js";

/** A question to the broker that is under way, until it is disposed of, with what came of its key meanwhile. */
export interface Question extends Disposable {
  readonly key: Key;
  /** Whether its answer may be older than what came: a value, a withdrawal, or the entry went. */
  isOvertaken: boolean;
  /** Whether a withdrawal came for another reason than a rejection, or the entry went. */
  isRevoked: boolean;
}

/** What a cache tells its owner. */
export interface CacheEvents {
  /** An entry has got a value. */
  readonly kept: (entry: Entry) => void;
  /** An entry has gone. */
  readonly dropped: (entry: Entry) => void;
}

/** What a client holds, at most so many entries; and which answers that are under way came too late. */
export class Cache {
  readonly #size: number;
  readonly #clock: Clock;
  readonly #events: CacheEvents;
  readonly #entries = new Map<string, Entry>();
  readonly #byId = new Map<string, Entry>();
  readonly #questions = new Set<Question>();
  #lastId = 0;
  #isClosed = false;

  /** @param size how many entries are kept at most. */
  constructor(size: number, clock: Clock, events: CacheEvents) {
    this.#size = size;
    this.#clock = clock;
    this.#events = events;
  }

  /** Returns the entry of a key. */
  find({ identity, scope, thread }: Key): Entry | undefined {
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

  /** How many values are held that have not ended, and in how many milliseconds the first of them does. */
  summary(): { readonly held: number; readonly firstEndInMs: number | undefined } {
    const now = this.#clock();
    const ends = [...this.#byId.values()]
      .map(({ held }) => (held?.lifetime.expireAt ?? now) - now)
      .filter((endsInMs) => endsInMs > 0);
    return { held: ends.length, firstEndInMs: ends.length > 0 ? Math.min(...ends) : undefined };
  }

  /** Returns what is held of a key, if it has not ended and lasts so long. */
  live(key: Key, minValidityMs = 0): Held | undefined {
    const held = this.find(key)?.held;
    const left = held === undefined ? 0 : held.lifetime.expireAt - this.#clock();
    return left > 0 && left >= minValidityMs ? held : undefined;
  }

  /** Begins a question: what comes from now on overtakes its answer. */
  asking(key: Key): Question {
    const question: Question = {
      key,
      isOvertaken: false,
      isRevoked: false,
      [Symbol.dispose]: () => this.#questions.delete(question),
    };
    this.#questions.add(question);
    return question;
  }

  /** Keeps an answer. For a key that has no entry one is made; for that another may go. */
  keep(key: Key, held: Held): void {
    if (!this.#isClosed) {
      const entry = this.find(key) ?? this.#add(key);
      entry.hold(held);
      this.#events.kept(entry);
    }
  }

  /** Keeps what stands over the answers that are under way. */
  replace(key: Key, held: Held): void {
    this.#overtake((other) => isSame(other, key), false);
    this.keep(key, held);
  }

  /**
   * Drops the value of an entry, and answers that are under way.
   *
   * @param isRejection whether because the backend rejected it, which the answer to a report mends.
   */
  withdraw(entry: Entry, isRejection = false): void {
    this.#overtake((key) => isSame(key, entry.key), !isRejection);
    entry.withdraw(); // last: who hears of it asks at once, and that question is not overtaken
  }

  /** Drops the values of an identity's thread in every scope, and answers that are under way. */
  withdrawThread(identity: string, thread: string): void {
    const isMeant = (key: Key): boolean => key.thread === thread && key.identity === identity;
    this.#overtake(isMeant, true);
    for (const entry of this.#byId.values()) {
      if (isMeant(entry.key)) {
        this.withdraw(entry);
      }
    }
  }

  /** Takes an entry out, with its value, and drops answers that are under way. */
  drop(entry: Entry): void {
    if (this.#byId.delete(entry.id)) {
      this.#entries.delete(join(entry.key.identity, entry.key.scope, entry.key.thread));
      this.withdraw(entry);
      this.#events.dropped(entry);
    }
  }

  /** Takes all entries out, and keeps nothing any more. Connections end for this reason. */
  close(reason: Error): void {
    this.#isClosed = true;
    for (const entry of this.#byId.values()) {
      entry.withdraw(reason);
      this.drop(entry);
    }
  }

  #overtake(isMeant: (key: Key) => boolean, isRevoked: boolean): void {
    for (const question of this.#questions) {
      if (isMeant(question.key)) {
        question.isOvertaken = true;
        question.isRevoked ||= isRevoked;
      }
    }
  }

  #add(key: Key): Entry {
    this.#makeRoom();
    this.#lastId += 1;
    const entry = new Entry(key, this.#lastId.toString(), this.#clock());
    this.#entries.set(join(key.identity, key.scope, key.thread), entry);
    this.#byId.set(entry.id, entry);
    return entry;
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

function isSame(one: Key, other: Key): boolean {
  return one.thread === other.thread && one.scope === other.scope && one.identity === other.identity;
}

/** Makes one word of a key. No part that the broker accepts holds a control character. */
function join(identity: string, scope: string, thread: string): string {
  return `${identity}\n${scope}\n${thread}`;
}
