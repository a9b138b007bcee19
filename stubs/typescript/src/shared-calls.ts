import { BrokerError } from "./errors.js";
import type { Clock } from "./lifetimes.js";

/** Makes a call with a deadline; gives it up when the signal is aborted. */
export type Run<Result> = (timeoutMs: number, signal: AbortSignal) => Promise<Result>;

/** How long one caller waits. */
export interface Limits {
  readonly timeoutMs: number;
  readonly signal: AbortSignal | undefined;
}

/** Calls of which there is one at a time for each word, however many wait for it. */
export class SharedCalls<Result> {
  readonly #clock: Clock;
  readonly #timeoutMs: number;
  readonly #calls = new Map<string | symbol, SharedCall<Result>>();
  #closed: Error | undefined;

  /** @param timeoutMs how long a call may take at least, so that who waits longest gets its answer too. */
  constructor(clock: Clock, timeoutMs: number) {
    this.#clock = clock;
    this.#timeoutMs = timeoutMs;
  }

  /** Whether there is a call of this word. */
  has(word: string | symbol): boolean {
    return this.#calls.has(word);
  }

  /**
   * Waits for the call of a word, and begins it if there is none. While somebody waits the process is kept alive.
   *
   * Each waits no longer than it may. The call itself goes on for those who may wait longer; should it be over before
   * their time is, they begin another.
   *
   * @throws BrokerError DEADLINE_EXCEEDED; the signal's reason; whatever the call fails with.
   */
  async share(word: string | symbol, { timeoutMs, signal }: Limits, run: Run<Result>): Promise<Result> {
    let now = this.#clock();
    const deadline = now + timeoutMs;
    for (;;) {
      if (this.#closed !== undefined) {
        throw this.#closed;
      }
      signal?.throwIfAborted();
      const joined = this.#calls.get(word);
      const call = joined ?? this.#begin(word, Math.max(deadline, now + this.#timeoutMs), run);
      try {
        return await call.wait(deadline, signal);
      } catch (error) {
        const isOver = error instanceof BrokerError && error.code === "DEADLINE_EXCEEDED";
        now = this.#clock();
        if (!isOver || joined === undefined || deadline <= Math.max(call.endsAt, now)) {
          throw error;
        }
      }
    }
  }

  /** Begins the call of a word, of which there must be none, in the background: it does not keep the process alive. */
  async follow(word: string | symbol, run: Run<Result>): Promise<Result> {
    return this.#begin(word, this.#clock() + this.#timeoutMs, run).follow();
  }

  /** Gives all calls up: whoever waits, or comes later, fails with `reason`. */
  close(reason: Error): void {
    this.#closed = reason;
    for (const call of this.#calls.values()) {
      call.abort(reason);
    }
  }

  #begin(word: string | symbol, endsAt: number, run: Run<Result>): SharedCall<Result> {
    const call = new SharedCall(this.#clock, endsAt, run, () => {
      if (this.#calls.get(word) === call) {
        this.#calls.delete(word);
      }
    });
    this.#calls.set(word, call);
    return call;
  }
}

/** By how much gRPC may be late with its own error of a deadline, which says more than ours. */
const GRACE_MS = 100;
/** Timers take no longer time, and fire at once instead. */
const LONGEST_TIMER_MS = 2 ** 31 - 1;

/** One call, and who waits for it. It is cancelled when the last of them has left. */
class SharedCall<Result> {
  /** When it is over its own deadline. */
  readonly endsAt: number;
  readonly #clock: Clock;
  readonly #controller = new AbortController();
  readonly #result: Promise<Result>;
  readonly #over: () => void;
  #waiting = 0;

  /** @param over is called once when there is no result to wait for any more. */
  constructor(clock: Clock, endsAt: number, run: Run<Result>, over: () => void) {
    this.#clock = clock;
    this.#over = over;
    this.endsAt = endsAt;
    const { signal } = this.#controller;
    this.#result = new Promise((resolve, reject) => {
      signal.addEventListener("abort", () => {
        reject(signal.reason as Error);
      });
      run(endsAt - clock(), signal)
        .finally(over)
        .then(resolve, reject);
    });
    this.#result.catch(() => undefined); // those who wait get it, and it may be that nobody does
  }

  abort(reason: Error): void {
    this.#over();
    this.#controller.abort(reason);
  }

  async follow(): Promise<Result> {
    this.#waiting += 1;
    try {
      return await this.#result;
    } finally {
      this.#left();
    }
  }

  async wait(deadline: number, signal: AbortSignal | undefined): Promise<Result> {
    this.#waiting += 1;
    const left = deadline - this.#clock() + (deadline < this.endsAt ? 0 : GRACE_MS);
    let timer: NodeJS.Timeout | undefined;
    let cancel: (() => void) | undefined;
    try {
      return await new Promise<Result>((resolve, reject) => {
        this.#result.then(resolve, reject);
        timer = setTimeout(
          () => {
            reject(new BrokerError("DEADLINE_EXCEEDED", "the broker did not answer within the deadline"));
          },
          Math.min(left, LONGEST_TIMER_MS),
        );
        cancel = () => {
          reject(signal?.reason as Error);
        };
        signal?.addEventListener("abort", cancel);
      });
    } finally {
      clearTimeout(timer);
      if (cancel !== undefined) {
        signal?.removeEventListener("abort", cancel);
      }
      this.#left();
    }
  }

  #left(): void {
    this.#waiting -= 1;
    if (this.#waiting === 0) {
      this.abort(new BrokerError("CANCELLED", "nobody waits for the answer any more"));
    }
  }
}
