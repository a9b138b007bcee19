import { inspect } from "node:util";

import type {
  Authorization as Message,
  CredentialKind,
  DecisionReason,
} from "./generated/credentialbroker/v1/credential_broker.js";
import { Lifetime, type Clock } from "./lifetimes.js";

type Word<Value, Prefix extends string> = Value extends `${Prefix}${infer W}` ? W : never;

/** What an authorization authenticates with, as a word: `"AGENT_ASSERTION"` or `"BEARER"`. */
export type Kind = Word<CredentialKind, "CREDENTIAL_KIND_">;

/** Why an authorization is of its kind, as a word; see `DecisionReason` of the stubs (`credentialbroker/v1`). */
export type Reason = Word<DecisionReason, "DECISION_REASON_">;

/** One header to attach. Its value is in no printed, inspected or serialised form of it. */
export class Header {
  /** Lower case. The header takes the place of any of this name that the request has. */
  readonly name: string;
  /** Whether the value authenticates by itself: never log or store it. */
  readonly sensitive: boolean;
  readonly #value: string;

  constructor(name: string, value: string, sensitive: boolean) {
    this.name = name;
    this.sensitive = sensitive;
    this.#value = value;
  }

  /** What to send, as it is. */
  get value(): string {
    return this.#value;
  }

  /** Printed by `node:util` without its value, also where getters are shown. */
  [inspect.custom](): string {
    return `Header { ${this.name} }`;
  }
}

/**
 * The complete set of headers for calls of one scope, and why they are of their kind.
 *
 * Attach all headers or none, and only to calls to the identity's backend. Header values are in no printed, inspected or
 * serialised form of it. It never changes: ask the client again for each call, which costs next to nothing.
 */
export class Authorization {
  /** The headers, at least one. */
  readonly headers: readonly Header[];
  /** What they authenticate with. */
  readonly kind: Kind;
  /** Why it is of this kind. */
  readonly reason: Reason;
  /** The kind that the scope asks for and that could not be given; undefined when nothing was downgraded. */
  readonly fallbackFrom: Kind | undefined;
  /** Names the credential; changes when it is replaced. Opaque. */
  readonly revision: string;
  /** Name of the identity that the headers belong to. */
  readonly identity: string;
  /** Opaque. Connections that were authenticated under another tag must be closed. */
  readonly connectionTag: string;
  /** Whether the answer may lag behind; the headers are usable all the same. */
  readonly stale: boolean;
  readonly #lifetime: Lifetime;
  readonly #clock: Clock;

  /** Made by the client from the broker's answer. */
  constructor(message: Message, lifetime: Lifetime, clock: Clock) {
    this.headers = Object.freeze(
      message.headers.map(({ name, value, sensitive }) => new Header(name, value, sensitive)),
    );
    this.kind = message.kind.replace(/^CREDENTIAL_KIND_/, "") as Kind;
    this.reason = message.reason.replace(/^DECISION_REASON_/, "") as Reason;
    const fallbackFrom = message.fallbackFrom.replace(/^CREDENTIAL_KIND_/, "") as Kind;
    this.fallbackFrom = fallbackFrom === "UNSPECIFIED" ? undefined : fallbackFrom;
    this.revision = message.revision;
    this.identity = message.identity;
    this.connectionTag = message.connectionTag;
    this.stale = message.stale;
    this.#lifetime = lifetime;
    this.#clock = clock;
  }

  /** For how many milliseconds the headers may still be used; 0 or less: no longer. */
  expiresInMs(): number {
    return this.#lifetime.expireAt - this.#clock();
  }

  /** In how many milliseconds the client begins to look for the next value; 0 or less: it does. */
  refreshInMs(): number {
    return this.#lifetime.refreshAt - this.#clock();
  }

  /** Puts all headers into `headers`, each in the place of any of its name. */
  applyTo(headers: Headers): void {
    setAll(this.headers, headers);
  }

  /**
   * Returns the headers as a plain object, for libraries that take one (`ws`, `node:http`). It holds the secrets in the
   * open: hand it over, keep and print it nowhere.
   */
  toRecord(): Record<string, string> {
    return Object.fromEntries(this.headers.map(({ name, value }) => [name, value]));
  }
}

/** Puts headers in the place of any of their names. What refuses a value would name it in its error: a secret. */
export function setAll(headers: readonly Header[], into: { set(name: string, value: string): unknown }): void {
  for (const { name, value } of headers) {
    try {
      into.set(name, value);
    } catch {
      throw new TypeError(`the header ${name} that the broker gave holds what no header may hold`);
    }
  }
}
