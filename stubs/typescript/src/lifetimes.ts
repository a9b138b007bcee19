import type { ErrorCode } from "./errors.js";

/** A monotonic clock, in milliseconds from any moment. */
export type Clock = () => number;

/** The times of an answer in the broker's clock. */
export interface BrokerTimes {
  readonly serverTime?: Date | undefined;
  readonly refreshTime?: Date | undefined;
  readonly expireTime?: Date | undefined;
}

/**
 * How long an answer lasts, on the monotonic clock of this process.
 *
 * Only differences of the broker's times are used, counted from the moment of receipt: neither the date of this machine
 * nor the way of the answer can lengthen it.
 */
export class Lifetime {
  /** From when on it is due for a refresh. */
  readonly refreshAt: number;
  /** Half-way between being due and ending: a watching client asks for itself from here on. */
  readonly overdueAt: number;
  /** From when on it must not be used. */
  readonly expireAt: number;

  constructor(times: BrokerTimes, receivedAt: number) {
    const server = times.serverTime?.getTime() ?? Infinity; // without it nothing lasts
    this.expireAt = receivedAt + ((times.expireTime?.getTime() ?? 0) - server);
    this.refreshAt = Math.min(this.expireAt, receivedAt + ((times.refreshTime?.getTime() ?? 0) - server));
    this.overdueAt = (this.refreshAt + this.expireAt) / 2;
  }
}

const FIRST_DELAY_MS = 200;
const LONGEST_DELAY_MS = 10_000;

/** Waits between tries: 0.2 s, doubling to 10 s, each times a random 0.5 to 1, and no shorter than the broker says. */
export class Backoff {
  readonly #random: () => number;
  #delayMs = FIRST_DELAY_MS;

  constructor(random: () => number = Math.random) {
    this.#random = random;
  }

  /** Returns the next wait in milliseconds, at least `atLeastMs`. */
  next(atLeastMs = 0): number {
    const delayMs = this.#delayMs * (0.5 + this.#random() / 2);
    this.#delayMs = Math.min(this.#delayMs * 2, LONGEST_DELAY_MS);
    return Math.max(delayMs, atLeastMs);
  }

  /** Begins again with the first wait. */
  reset(): void {
    this.#delayMs = FIRST_DELAY_MS;
  }
}

const REFUSALS: ReadonlySet<ErrorCode> = new Set([
  "PERMISSION_DENIED",
  "FAILED_PRECONDITION",
  "INVALID_ARGUMENT",
  "NOT_FOUND",
]);

/** Whether a failure says that what is held would not be given any more; others may pass, and leave it. */
export function isRefusal(code: ErrorCode): boolean {
  return REFUSALS.has(code);
}
