import { CallCredentials, Metadata, status } from "@grpc/grpc-js";

import type { AuthorizationOptions } from "./client.js";
import type { Authorization } from "./authorization.js";

/** Which authorization goes with the calls. */
export type CallCredentialsOptions = Omit<AuthorizationOptions, "signal">;

/** What the adapter needs of a client. */
interface Broker {
  authorization(scope: string, options: AuthorizationOptions): Promise<Authorization>;
}

/**
 * Returns call credentials that give the headers as metadata of each call.
 *
 * They travel over TLS only, which is decided where they are made part of a channel:
 *
 * ```ts
 * const tls = credentials.createSsl();
 * const stub = new Backend(target, credentials.combineChannelCredentials(tls, client.callCredentials("inference")));
 * ```
 *
 * On such a channel a single call may be given others (`{ credentials: client.callCredentials("inference", { thread }) }`),
 * which then take the place of the channel's. On any other channel they fail: grpc-js itself would send them in the open.
 */
export function brokerCallCredentials(broker: Broker, scope: string, options: CallCredentialsOptions): CallCredentials {
  return new BrokerCallCredentials(broker, scope, options, true);
}

class BrokerCallCredentials extends CallCredentials {
  readonly #broker: Broker;
  readonly #scope: string;
  readonly #options: CallCredentialsOptions;
  readonly #isAllowed: boolean;

  constructor(broker: Broker, scope: string, options: CallCredentialsOptions, isAllowed: boolean) {
    super();
    this.#broker = broker;
    this.#scope = scope;
    this.#options = options;
    this.#isAllowed = isAllowed;
  }

  async generateMetadata(): Promise<Metadata> {
    if (!this.#isAllowed) {
      throw failure("these credentials need a channel that is made with credentials.combineChannelCredentials");
    }
    const metadata = new Metadata();
    try {
      const { headers } = await this.#broker.authorization(this.#scope, this.#options);
      for (const { name, value } of headers) {
        metadata.set(name, value);
      }
    } catch (error) {
      throw failure(error instanceof Error ? error.message : String(error));
    }
    return metadata;
  }

  /**
   * Called for the credentials of a single call, with those of its channel. Only a TLS channel can have some of the
   * broker, so that is the proof of TLS; grpc-js gives no other.
   */
  override compose(others: CallCredentials): CallCredentials {
    const isSecure = others instanceof BrokerCallCredentials && others.#isAllowed;
    return new BrokerCallCredentials(this.#broker, this.#scope, this.#options, this.#isAllowed && isSecure);
  }

  override _equals(other: CallCredentials): boolean {
    return this === other;
  }
}

/** The form of an error that gRPC makes the status of the call of. */
function failure(message: string): Error {
  return Object.assign(new Error(message), { code: status.UNAUTHENTICATED });
}
