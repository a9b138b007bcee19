import { CallCredentials, Metadata, status, type ChannelCredentials } from "@grpc/grpc-js";

import type { AuthorizationOptions } from "./client.js";
import { setAll, type Authorization } from "./authorization.js";
import { BrokerError } from "./errors.js";
import { isRefusal } from "./lifetimes.js";

/** Which authorization goes with the calls. */
export type CallCredentialsOptions = Omit<AuthorizationOptions, "signal">;

/** What the adapter needs of a client. */
interface Broker {
  authorization(scope: string, options: AuthorizationOptions): Promise<Authorization>;
}

/**
 * Returns channel credentials that give the headers as metadata of each call over a TLS channel.
 *
 * @param tls how the channel is secured, `credentials.createSsl()` for example.
 * @throws Error when `tls` is not secure.
 */
export function brokerChannelCredentials(
  broker: Broker,
  tls: ChannelCredentials,
  scope: string,
  options: CallCredentialsOptions,
): ChannelCredentials {
  return tls.compose(new BrokerCallCredentials(broker, scope, options, true));
}

/**
 * Returns credentials for single calls on such a channel, in the place of the channel's own. On any other channel the
 * call fails.
 */
export function brokerCallCredentials(broker: Broker, scope: string, options: CallCredentialsOptions): CallCredentials {
  return new BrokerCallCredentials(broker, scope, options, false);
}

/** grpc-js sends credentials of a single call in the open when the channel is, and does not say what it is. */
class BrokerCallCredentials extends CallCredentials {
  readonly #broker: Broker;
  readonly #scope: string;
  readonly #options: CallCredentialsOptions;
  /** Whether it is known that they go over TLS. */
  readonly #isSecure: boolean;

  constructor(broker: Broker, scope: string, options: CallCredentialsOptions, isSecure: boolean) {
    super();
    this.#broker = broker;
    this.#scope = scope;
    this.#options = options;
    this.#isSecure = isSecure;
  }

  async generateMetadata(): Promise<Metadata> {
    if (!this.#isSecure) {
      throw failure("these credentials are for calls on a channel made with the client's channelCredentials()");
    }
    const metadata = new Metadata();
    try {
      const { headers } = await this.#broker.authorization(this.#scope, this.#options);
      setAll(headers, metadata);
    } catch (error) {
      const mayPass = error instanceof BrokerError && !isRefusal(error.code);
      throw failure(
        error instanceof Error ? error.message : String(error),
        mayPass ? status.UNAVAILABLE : status.UNAUTHENTICATED,
      );
    }
    return metadata;
  }

  /**
   * Called for the credentials of a single call with those of its channel. Only a TLS channel can have credentials of the
   * broker that are secure, which proves that these are too.
   */
  override compose(others: CallCredentials): CallCredentials {
    if (this.#isSecure) {
      return others instanceof BrokerCallCredentials ? others : others.compose(this);
    }
    const isSecure = others instanceof BrokerCallCredentials && others.#isSecure;
    return new BrokerCallCredentials(this.#broker, this.#scope, this.#options, isSecure);
  }

  override _equals(other: CallCredentials): boolean {
    return this === other;
  }
}

/** The form of an error that gRPC makes the status of the call of. */
function failure(message: string, code = status.UNAUTHENTICATED): Error {
  return Object.assign(new Error(message), { code });
}
