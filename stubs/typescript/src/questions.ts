import { Authorization } from "./authorization.js";
import type { Broker } from "./broker.js";
import type { Cache, Question } from "./cache.js";
import type { Entry, Held, Key } from "./entry.js";
import { BrokerError } from "./errors.js";
import type {
  Authorization as Message,
  GetAuthorizationResponse,
  ReportRejectedResponse,
} from "./generated/credentialbroker/v1/credential_broker.js";
import { isRefusal, Lifetime, type Clock } from "./lifetimes.js";
import { SharedCalls, type Limits, type Run } from "./shared-calls.js";

/** What is asked for beyond the key. */
export interface Wish {
  /** Where the headers will be sent; empty: not said. */
  readonly targetUrl: string;
  /** How long they must last at least. */
  readonly minValidityMs: number | undefined;
}

const NO_WISH: Wish = { targetUrl: "", minValidityMs: undefined };
/** How often the broker is asked again because a withdrawal overtook its answer. */
const MOST_AGAIN = 3;

/** Asks the broker for authorizations, for all who ask the same at a time, and keeps the answers that are not overtaken. */
export class Questions {
  readonly #broker: Broker;
  readonly #cache: Cache;
  readonly #clock: Clock;
  readonly #calls: SharedCalls<Authorization>;
  /** What was asked to get an authorization, for reports about it. */
  readonly #keys = new WeakMap<Authorization, Key>();

  /** @param timeoutMs how long a call may take. */
  constructor(broker: Broker, cache: Cache, clock: Clock, timeoutMs: number) {
    this.#broker = broker;
    this.#cache = cache;
    this.#clock = clock;
    this.#calls = new SharedCalls(clock, timeoutMs);
  }

  /** Asks, and waits for the answer. */
  ask(key: Key, wish: Wish, limits: Limits): Promise<Authorization> {
    return this.#calls.share(wordOf(key, wish), limits, this.#asking(key, wish));
  }

  /** Asks in the background for the next value of an entry, unless that is asked already or it is too early to try again. */
  refresh(entry: Entry): void {
    const word = wordOf(entry.key, NO_WISH);
    if (this.#clock() < entry.notBefore || this.#calls.has(word)) {
      return;
    }
    this.#calls.follow(word, this.#asking(entry.key, NO_WISH)).catch((error: unknown) => {
      const atLeastMs = error instanceof BrokerError ? error.retryDelayMs : undefined;
      entry.notBefore = this.#clock() + entry.backoff.next(atLeastMs);
    });
  }

  /**
   * Reports that the backend rejected an authorization, unless another is held already, and keeps the better one.
   *
   * @throws BrokerError when there is nothing better. TypeError for an authorization that was not made here.
   */
  async report(authorization: Authorization, detail: string, limits: Limits): Promise<Authorization> {
    const key = this.keyOf(authorization);
    if (key === undefined) {
      throw new TypeError("the authorization was not made by this client");
    }
    const { revision } = authorization;
    const held = this.#cache.live(key);
    if (held && held.authorization.revision !== revision) {
      return held.authorization;
    }
    const { scope, thread: threadId } = key;
    const request = { scope, threadId, revision, httpStatus: 401, detail: cut(detail) };
    return this.#calls.share(`rejected ${revision} ${wordOf(key, NO_WISH)}`, limits, async (timeoutMs, signal) => {
      using question = this.#cache.asking(key);
      try {
        const { authorization: message } = await this.#broker.call<ReportRejectedResponse>(
          (stub, ...rest) => stub.reportRejected(request, ...rest),
          timeoutMs,
          signal,
        );
        return this.#keepBetter(question, revision, this.make(key, message));
      } catch (error) {
        const entry = this.#cache.find(key);
        // INVALID_ARGUMENT is about the report, not about what is held
        if (entry?.held?.authorization.revision === revision && refuses(error) && error.code !== "INVALID_ARGUMENT") {
          this.#cache.drop(entry);
        }
        throw error;
      }
    });
  }

  /** Returns what was asked to get an authorization; undefined if it was not made here. */
  keyOf(authorization: Authorization): Key | undefined {
    return this.#keys.get(authorization);
  }

  /** Makes what is held of a message that has just come. */
  make(key: Key, message: Message | undefined): Held {
    if (message === undefined) {
      throw new BrokerError("INTERNAL", "the broker's answer holds no authorization");
    }
    const lifetime = new Lifetime(message, this.#clock());
    const authorization = new Authorization(message, lifetime, this.#clock);
    this.#keys.set(authorization, key);
    return { authorization, lifetime, answer: Promise.resolve(authorization) };
  }

  /** Gives all questions up: whoever waits, or comes later, fails with `reason`. */
  close(reason: Error): void {
    this.#calls.close(reason);
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
        using question = this.#cache.asking(key);
        try {
          const { authorization: message } = await this.#broker.call<GetAuthorizationResponse>(
            (stub, ...rest) => stub.getAuthorization(request, ...rest),
            endsAt - this.#clock(),
            signal,
          );
          const answer = this.#keep(question, this.make(key, message), wish);
          if (answer !== undefined) {
            return answer;
          }
        } catch (error) {
          const entry = this.#cache.find(key);
          const isWish = targetUrl !== "" || minValidityMs !== undefined; // whose refusal says nothing of what is held
          if (entry !== undefined && refuses(error) && !isWish && !question.isOvertaken) {
            this.#cache.drop(entry);
          }
          throw error;
        }
      }
      throw new BrokerError("ABORTED", "each answer was withdrawn before it came");
    };
  }

  /**
   * Keeps an answer, unless something newer came meanwhile.
   *
   * @returns What to give: the answer, or what came meanwhile if it does as well. Undefined if the broker must be asked
   *   again: the answer may be what was withdrawn while it was on its way.
   */
  #keep({ key, isOvertaken }: Question, answer: Held, { targetUrl, minValidityMs }: Wish): Authorization | undefined {
    let given: Authorization | undefined = answer.authorization;
    if (isOvertaken) {
      given = this.#cache.live(key, minValidityMs)?.authorization;
      if (targetUrl !== "" && given?.connectionTag !== answer.authorization.connectionTag) {
        return undefined; // what the broker said of the target, it said of another identity
      }
    } else {
      this.#cache.keep(key, answer);
    }
    if (targetUrl !== "") {
      this.#cache.find(key)?.addOrigin(originOf(targetUrl));
    }
    return given;
  }

  /** Keeps the answer to a report, unless something better came meanwhile or it was withdrawn; returns what to give. */
  #keepBetter({ key, isRevoked }: Question, rejected: string, answer: Held): Authorization {
    const held = this.#cache.live(key)?.authorization;
    if (held !== undefined && held.revision !== rejected) {
      return held;
    }
    if (!isRevoked) {
      this.#cache.replace(key, answer); // what was asked for before may be what was rejected
    }
    return answer.authorization;
  }
}

/** Whether the broker says that it would not give any more what is held. */
export function refuses(error: unknown): error is BrokerError {
  return error instanceof BrokerError && isRefusal(error.code);
}

/** Returns the origin of a URL as every fetch sees it; what is no such URL as it is, for the broker to refuse. */
export function originOf(url: string): string {
  const origin = URL.canParse(url) ? new URL(url).origin : "null";
  return origin === "null" ? url : origin;
}

/** Names a call, so that those who ask the same share it. */
function wordOf({ identity, scope, thread }: Key, wish: Wish): string {
  return JSON.stringify([identity, scope, thread, wish.targetUrl && originOf(wish.targetUrl), wish.minValidityMs]);
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
