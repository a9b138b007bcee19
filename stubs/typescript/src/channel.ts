import {
  connectivityState,
  credentials,
  experimental,
  Metadata,
  type ChannelCredentials,
  type ChannelOptions,
  type ClientUnaryCall,
  type ClientDuplexStream,
  type ServiceError,
} from "@grpc/grpc-js";

import { BrokerError } from "./errors.js";
import {
  CredentialBrokerClient,
  type WatchAuthorizationsRequest,
  type WatchAuthorizationsResponse,
} from "./generated/credentialbroker/v1/credential_broker.js";
import type { Clock } from "./lifetimes.js";
import { SERVICE_CONFIG } from "./service-config.js";
import type { Settings } from "./settings.js";
import { Sockets } from "./sockets.js";
import { TlsFiles } from "./tls.js";
import { VERSION } from "./version.js";

/** Sends one message by a method of the stub that answers with one. */
export type Send<Response> = (
  stub: CredentialBrokerClient,
  metadata: Metadata,
  options: { deadline: number },
  callback: (error: ServiceError | null, response: Response) => void,
) => ClientUnaryCall;

/** An open stream of authorizations. */
export type WatchCall = ClientDuplexStream<WatchAuthorizationsRequest, WatchAuthorizationsResponse>;

/** The connection to the brokers of one address. Made without I/O but reading the TLS files; connects with the first call. */
export class Channel {
  readonly #tls: TlsFiles | undefined;
  readonly #sockets = new Sockets();
  readonly #stub: CredentialBrokerClient;

  /**
   * @param failing is told each time that no broker can be reached any more.
   * @throws Error that names the TLS file, when one cannot be used.
   */
  constructor(settings: Settings, clock: Clock, failing: () => void) {
    this.#tls = settings.tls && new TlsFiles(settings.tls, clock);
    this.#stub = new CredentialBrokerClient(
      settings.address.target,
      this.#sockets.attach(channelCredentials(this.#tls)),
      channelOptions(settings),
    );
    doNotHoldTheProcess(this.#stub.getChannel());
    this.#follow(connectivityState.IDLE, failing);
  }

  /** Whether a broker is connected. */
  get isReady(): boolean {
    return this.#stub.getChannel().getConnectivityState(false) === connectivityState.READY;
  }

  /**
   * Makes one call.
   *
   * @throws BrokerError when it fails, is over its deadline or is cancelled by `signal`; the signal's reason if it was before.
   */
  call<Response>(send: Send<Response>, timeoutMs: number, signal: AbortSignal): Promise<Response> {
    this.#tls?.refresh();
    return new Promise((resolve, reject) => {
      signal.throwIfAborted();
      const cancel = (): void => {
        call.cancel();
      };
      const deadline = Date.now() + timeoutMs;
      const call = send(this.#stub, metadata(true), { deadline }, (error, response) => {
        signal.removeEventListener("abort", cancel);
        if (error === null) {
          resolve(response);
        } else {
          reject(BrokerError.fromStatus(error));
        }
      });
      signal.addEventListener("abort", cancel);
    });
  }

  /** Opens a stream of authorizations. It fails at once while no broker can be reached. */
  watch(): WatchCall {
    this.#tls?.refresh();
    return this.#stub.watchAuthorizations(metadata(false));
  }

  /** Closes the connections. */
  close(): void {
    this.#stub.close();
    this.#sockets.close();
  }

  #follow(state: connectivityState, failing: () => void): void {
    const channel = this.#stub.getChannel();
    channel.watchConnectivityState(state, Infinity, () => {
      const next = channel.getConnectivityState(false);
      if (next === connectivityState.TRANSIENT_FAILURE) {
        failing();
      }
      if (next !== connectivityState.SHUTDOWN) {
        this.#follow(next, failing);
      }
    });
  }
}

/** grpc-js does not take `waitForReady` from the service config, so it stands with each call. */
function metadata(waitForReady: boolean): Metadata {
  const made = new Metadata({ waitForReady });
  made.set("x-credential-broker", "1");
  return made;
}

function channelOptions({ serverName }: Settings): ChannelOptions {
  return {
    "grpc.primary_user_agent": `credentialbroker-typescript/${VERSION}`,
    "grpc.service_config": JSON.stringify(SERVICE_CONFIG),
    "grpc.service_config_disable_resolution": 1, // none from DNS
    "grpc.enable_http_proxy": 0, // whatever the environment says
    "grpc.use_local_subchannel_pool": 1, // a closed client leaves no connection to another one
    "grpc.keepalive_time_ms": 60_000,
    "grpc.keepalive_timeout_ms": 20_000,
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.initial_reconnect_backoff_ms": 200,
    "grpc.max_reconnect_backoff_ms": 5_000,
    "grpc.dns_min_time_between_resolutions_ms": 1_000, // 30 s by default: too long for a broker that has moved
    ...(serverName !== undefined && { "grpc.ssl_target_name_override": serverName }),
  };
}

function channelCredentials(tls: TlsFiles | undefined): ChannelCredentials {
  return tls === undefined
    ? credentials.createInsecure()
    : experimental.createCertificateProviderChannelCredentials(tls, tls.hasIdentity ? tls : null);
}

/**
 * Keeps calls that wait for a connection from keeping the process alive: who waits for their answers does that (see
 * shared-calls.ts). grpc-js does it by a timer, which it has no setting for, and which it forgets when the deadline of a
 * call passes before the channel is ready for any.
 */
function doNotHoldTheProcess(channel: object): void {
  const { internalChannel } = channel as { internalChannel?: { callRefTimerRef?: () => void } };
  if (internalChannel !== undefined) {
    internalChannel.callRefTimerRef = () => undefined;
  }
}
