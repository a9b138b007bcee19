import type { Broker } from "./broker.js";
import type { WatchCall } from "./channel.js";
import type { Key } from "./entry.js";
import { BrokerError } from "./errors.js";
import {
  WithdrawalReason,
  type Authorization,
  type WatchAuthorizationsRequest,
  type WatchAuthorizationsResponse,
} from "./generated/credentialbroker/v1/credential_broker.js";
import { Backoff, type Clock } from "./lifetimes.js";
import { durationMs } from "./status-details.js";

/** What is to be kept current, under the caller's name of it. */
export interface Subscription {
  readonly id: string;
  readonly key: Key;
}

/** What a watch asks of its owner, and tells it. */
export interface WatchOwner {
  /** All subscriptions there are now. */
  subscriptions(): Iterable<Subscription>;
  /** The revision that is held of one and is not due yet; empty when there is none. */
  knownRevision(id: string): string;
  /** A value, in the place of what is held. */
  authorization(id: string, message: Authorization): void;
  /** What is held must not be used any longer; with whether the backend's rejection is the reason. */
  withdrawal(id: string, isRejection: boolean): void;
  /** There is no value for now. */
  failed(id: string, error: BrokerError): void;
}

/** A stream that has lived so long was a good one: waiting begins anew. */
const GOOD_AFTER_MS = 5_000;

/** Keeps one stream of authorizations open for as long as there is something to watch. */
export class Watch {
  readonly #broker: Broker;
  readonly #owner: WatchOwner;
  readonly #clock: Clock;
  readonly #silenceMs: number;
  readonly #backoff = new Backoff();
  /** All that have not ended: after `closing` there are two for a while, of which the last is the one in use. */
  readonly #streams = new Set<Stream>();
  #current: Stream | undefined;
  #reopening: NodeJS.Timeout | undefined;
  /** Whether the last stream ended with an error and the broker has said nothing on one since. */
  #isFailing = false;
  #closed = false;

  constructor(broker: Broker, owner: WatchOwner, clock: Clock, silenceMs: number) {
    this.#broker = broker;
    this.#owner = owner;
    this.#clock = clock;
    this.#silenceMs = silenceMs;
  }

  /** Whether there is a stream to a connected broker. */
  get up(): boolean {
    return this.#current !== undefined && this.#broker.isConnected;
  }

  /** Whether values of one can be expected to come: over a stream, or after a wait over that which follows a good one. */
  expects(subscription: Subscription): boolean {
    const works = this.up || (!this.#isFailing && (this.#current !== undefined || this.#reopening !== undefined));
    return works && this.#current?.leavesOut(subscription) !== true;
  }

  /** Watches one more, or goes on doing so; opens the stream with the first. */
  subscribe(subscription: Subscription): void {
    if (this.#current !== undefined) {
      this.#current.subscribe(subscription);
    } else if (this.#reopening === undefined) {
      this.#open();
    } // else the stream to come takes it along
  }

  /** Watches one less. */
  unsubscribe(subscription: Subscription): void {
    for (const stream of this.#streams) {
      stream.unsubscribe(subscription);
    }
  }

  /** Ends all streams, and opens none any more. */
  close(): void {
    this.#closed = true;
    clearTimeout(this.#reopening);
    for (const stream of this.#streams) {
      stream.cancel();
    }
  }

  #open(): void {
    const subscriptions = [...this.#owner.subscriptions()];
    const previous = this.#current;
    if (subscriptions.length === 0) {
      // The first to come opens it. One that is closing takes nobody any more.
      previous?.finish();
      this.#current = undefined;
      return;
    }
    const stream = new Stream(this.#broker.watch(), this.#owner, this.#silenceMs, {
      closing: (retryDelayMs) => {
        if (stream === this.#current) {
          this.#reopen(stream, retryDelayMs);
        }
      },
      answered: () => {
        this.#isFailing = false;
        this.#broker.answered();
      },
      ended: (error) => {
        this.#ended(stream, error);
      },
      openedAt: this.#clock(),
    });
    this.#streams.add(stream);
    this.#current = stream;
    for (const subscription of subscriptions) {
      stream.subscribe(subscription);
    }
    previous?.finish();
  }

  /** Opens the next stream, after a wait in any case. */
  #reopen(stream: Stream, atLeastMs: number): void {
    if (this.#clock() - stream.openedAt >= GOOD_AFTER_MS) {
      this.#backoff.reset();
    }
    clearTimeout(this.#reopening);
    this.#reopening = setTimeout(() => {
      this.#reopening = undefined;
      this.#open();
    }, this.#backoff.next(atLeastMs));
    this.#reopening.unref();
  }

  #ended(stream: Stream, error: BrokerError | undefined): void {
    this.#streams.delete(stream);
    if (this.#closed || stream !== this.#current) {
      return;
    }
    this.#current = undefined;
    this.#isFailing = error !== undefined;
    if (this.#reopening === undefined) {
      this.#reopen(stream, error?.retryDelayMs ?? 0);
    }
    if (error !== undefined || !stream.isClosing) {
      this.#broker.lost(error);
    }
  }
}

interface StreamEvents {
  answered(): void;
  closing(retryDelayMs: number): void;
  ended(error: BrokerError | undefined): void;
  readonly openedAt: number;
}

/** The broker takes no more on one stream, and refuses those that are over. */
const MOST_SUBSCRIPTIONS = 1_000;

/** One stream, from its opening to its end. */
class Stream {
  readonly openedAt: number;
  readonly #call: WatchCall;
  readonly #owner: WatchOwner;
  readonly #events: StreamEvents;
  readonly #silence: NodeJS.Timeout;
  /** What is subscribed, by id. */
  readonly #ids = new Set<string>();
  #isClosing = false;
  #wasSilent = false;
  #isWritable = true;
  /** Whether another stream does now what this one did: it may still withdraw, and brings no values any more. */
  #isReplaced = false;

  constructor(call: WatchCall, owner: WatchOwner, silenceMs: number, events: StreamEvents) {
    this.openedAt = events.openedAt;
    this.#call = call;
    this.#owner = owner;
    this.#events = events;
    this.#silence = setTimeout(() => {
      this.#wasSilent = true;
      this.cancel();
    }, silenceMs).unref();
    call.once("data", () => {
      events.answered();
    });
    call.on("data", (message: WatchAuthorizationsResponse) => {
      this.#silence.refresh();
      this.#receive(message);
    });
    call.on("error", () => undefined); // told by its status, which comes in any case
    call.on("status", (status) => {
      clearTimeout(this.#silence);
      this.#isWritable = false;
      const error = this.#wasSilent
        ? new BrokerError("UNAVAILABLE", `the stream was silent for ${String(silenceMs / 1_000)} s`)
        : BrokerError.fromStatus(status);
      events.ended(error.code === "OK" ? undefined : error);
    });
  }

  /** Whether the broker has said that it ends the stream soon. */
  get isClosing(): boolean {
    return this.#isClosing;
  }

  /** Whether one is not subscribed because there is no room for it. */
  leavesOut({ id }: Subscription): boolean {
    return !this.#ids.has(id) && this.#ids.size >= MOST_SUBSCRIPTIONS;
  }

  /** Subscribes to one, unless it is subscribed already or there is no room. */
  subscribe({ id, key }: Subscription): void {
    if (!this.#isClosing && !this.#ids.has(id) && this.#ids.size < MOST_SUBSCRIPTIONS) {
      this.#ids.add(id);
      const { scope, thread: threadId, identity } = key;
      const knownRevision = this.#owner.knownRevision(id);
      this.#send({ $case: "subscribe", value: { subscriptionId: id, scope, threadId, identity, knownRevision } });
    } // else the next stream takes it along
  }

  unsubscribe({ id }: Subscription): void {
    if (this.#ids.delete(id)) {
      this.#send({ $case: "unsubscribe", value: { subscriptionId: id } });
    }
  }

  /** Says that nothing more is asked for: another stream does now what this one did. */
  finish(): void {
    this.#isReplaced = true;
    if (this.#isWritable) {
      this.#isWritable = false;
      this.#call.end();
    }
  }

  cancel(): void {
    this.#call.cancel();
  }

  #send(action: NonNullable<WatchAuthorizationsRequest["action"]>): void {
    if (this.#isWritable) {
      this.#call.write({ action });
    }
  }

  #receive({ subscriptionId, event }: WatchAuthorizationsResponse): void {
    switch (event?.$case) {
      case "authorization":
        if (!this.#isReplaced) {
          this.#owner.authorization(subscriptionId, event.value);
        }
        break;
      case "withdrawal":
        this.#owner.withdrawal(subscriptionId, event.value.reason === WithdrawalReason.CREDENTIAL_REJECTED);
        break;
      case "error":
        if (event.value.status !== undefined) {
          this.#owner.failed(subscriptionId, BrokerError.fromMessage(event.value.status));
        }
        break;
      case "closing":
        this.#isClosing = true;
        this.#events.closing(event.value.retryDelay ? durationMs(event.value.retryDelay) : 0);
        break;
      default: // a heartbeat, which has done its work by coming; or what a newer broker sends
    }
  }
}
