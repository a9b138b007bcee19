import { Channel, type Send, type WatchCall } from "./channel.js";
import { BrokerError } from "./errors.js";
import type { Clock } from "./lifetimes.js";
import type { Settings } from "./settings.js";

/** What is held, for the word that the broker is away. */
export type Summary = () => { readonly held: number; readonly firstEndInMs: number | undefined };

/** The broker, and whether it is away: makes calls and streams, and says in the log when it goes and when it is back. */
export class Broker {
  readonly #channel: Channel;
  readonly #settings: Settings;
  readonly #summary: Summary;
  #lastError: BrokerError | undefined;
  #isAway = false;
  #isClosed = false;

  /** @throws as {@link Channel}. */
  constructor(settings: Settings, clock: Clock, summary: Summary) {
    this.#settings = settings;
    this.#summary = summary;
    this.#channel = new Channel(settings, clock, () => {
      this.#wentAway("it cannot be reached");
    });
  }

  /** Whether there is a connection. */
  get isConnected(): boolean {
    return this.#channel.isReady;
  }

  /** The last failure of a call, a subscription or the stream; undefined when there has been none. */
  get lastError(): BrokerError | undefined {
    return this.#lastError;
  }

  /**
   * Makes one call.
   *
   * @throws as {@link Channel.call}.
   */
  async call<Response>(send: Send<Response>, timeoutMs: number, signal: AbortSignal): Promise<Response> {
    try {
      const response = await this.#channel.call(send, timeoutMs, signal);
      this.answered();
      return response;
    } catch (error) {
      if (error instanceof BrokerError && !signal.aborted) {
        this.#lastError = error;
        if (error.reasonText !== "") {
          this.answered();
        } else if (error.code === "UNAVAILABLE" && !this.#channel.isReady) {
          this.#wentAway(error.message);
        } // that a deadline passed says nothing of the broker
      }
      throw error;
    }
  }

  /** Opens a stream of authorizations. */
  watch(): WatchCall {
    return this.#channel.watch();
  }

  /** Takes note that it has said something: it is not away, or no longer. */
  answered(): void {
    if (this.#isAway) {
      this.#isAway = false;
      this.#log("info", `the broker is back (${this.#settings.address.target})`);
    }
  }

  /** Takes note that it has no value for a subscription. */
  failed(error: BrokerError): void {
    this.#lastError = error;
  }

  /**
   * Takes note that a stream has ended without being asked to; with the error unless it ended well. Whatever that is, the
   * broker is away, unless it was a word of its own.
   */
  lost(error: BrokerError | undefined): void {
    this.#lastError = error ?? this.#lastError;
    if (error?.reasonText === "") {
      this.#wentAway(error.message);
    }
  }

  /** Closes the connections, and says nothing any more. */
  close(): void {
    this.#isClosed = true;
    this.#channel.close();
  }

  #wentAway(why: string): void {
    if (!this.#isAway && !this.#isClosed) {
      this.#isAway = true;
      const { held, firstEndInMs } = this.#summary();
      const first =
        firstEndInMs === undefined ? "" : `, of which the first ends in ${(firstEndInMs / 1_000).toFixed(1)} s`;
      this.#log(
        "warn",
        `the broker is away (${this.#settings.address.target}: ${why}); ` +
          `${String(held)} authorizations are held${first}`,
      );
    }
  }

  #log(level: "info" | "warn", words: string): void {
    try {
      this.#settings.logger[level](`credential broker: ${words}`);
    } catch {
      // a logger that fails must end neither a call nor the watch
    }
  }
}
