import { parseAddress, type Address } from "./address.js";

/** What a {@link BrokerClient} may be told. Whatever is left out comes from the environment, or has a default. */
export interface BrokerClientOptions {
  /**
   * Where the broker listens: `unix:///absolute/path`, `dns:///host:port` or `host:port`. Else
   * `CREDENTIAL_BROKER_ADDRESS`, else `dns:///127.0.0.1:50051`.
   */
  readonly address?: string | undefined;
  /** PEM file of the authorities that sign the broker's certificate. Else `CREDENTIAL_BROKER_CA_FILE`; none: no TLS. */
  readonly caFile?: string | undefined;
  /** PEM file of the client's own certificate (mTLS). Else `CREDENTIAL_BROKER_CERTIFICATE_FILE`. */
  readonly certificateFile?: string | undefined;
  /** PEM file of its private key. Else `CREDENTIAL_BROKER_PRIVATE_KEY_FILE`. */
  readonly privateKeyFile?: string | undefined;
  /** The name in the broker's certificate. Else `CREDENTIAL_BROKER_SERVER_NAME`, else the host of the address. */
  readonly serverName?: string | undefined;
  /**
   * Whether headers, which are secrets, may travel without TLS to another host. Else `CREDENTIAL_BROKER_PLAINTEXT=1`.
   */
  readonly plaintext?: boolean | undefined;
  /** The identity of calls that name none. By default the broker decides, and refuses when there are several. */
  readonly identity?: string | undefined;
  /** Whether the broker keeps authorizations current over a stream (default), or the client asks when they are due. */
  readonly watch?: boolean | undefined;
  /** Deadline of a call, in milliseconds; 10,000 by default, which is also the broker's longest. */
  readonly timeoutMs?: number | undefined;
  /** How many authorizations are kept; 1,000 by default. The least recently used goes first. */
  readonly cacheSize?: number | undefined;
  /** After how many milliseconds without use an authorization is no longer kept current; 5 minutes by default. */
  readonly idleMs?: number | undefined;
  /** After how many milliseconds without any message the stream counts as dead; 60,000 by default. */
  readonly silenceMs?: number | undefined;
  /**
   * Gets one warning when the broker goes away, and one information when it is back. By default both go to standard
   * error, by `console`. No secret is logged.
   */
  readonly logger?: Logger | undefined;
}

/** What of a logger is used; `console`, pino and winston have it. */
export interface Logger {
  info(message: string): void;
  warn(message: string): void;
}

/** The files of TLS, by what they hold. */
export interface TlsPaths {
  readonly caFile: string;
  readonly certificateFile: string | undefined;
  readonly privateKeyFile: string | undefined;
}

/** The options, complete and checked. */
export interface Settings {
  readonly address: Address;
  readonly tls: TlsPaths | undefined;
  readonly serverName: string | undefined;
  readonly identity: string;
  readonly watch: boolean;
  readonly timeoutMs: number;
  readonly cacheSize: number;
  readonly idleMs: number;
  readonly silenceMs: number;
  readonly logger: Logger;
}

/**
 * Completes options from the environment and the defaults.
 *
 * @throws TypeError when they make no sense, or would send headers in plaintext to another host.
 */
export function readSettings(options: BrokerClientOptions, environment: NodeJS.ProcessEnv): Settings {
  const text = (argument: string | undefined, word: string): string | undefined => {
    return given(argument) ?? given(environment[`CREDENTIAL_BROKER_${word}`]);
  };

  const address = parseAddress(text(options.address, "ADDRESS") ?? "dns:///127.0.0.1:50051");
  const caFile = text(options.caFile, "CA_FILE");
  const certificateFile = text(options.certificateFile, "CERTIFICATE_FILE");
  const privateKeyFile = text(options.privateKeyFile, "PRIVATE_KEY_FILE");
  if ((certificateFile === undefined) !== (privateKeyFile === undefined)) {
    throw new TypeError("certificateFile and privateKeyFile belong together: give both or neither");
  }
  if (certificateFile !== undefined && caFile === undefined) {
    throw new TypeError("certificateFile and privateKeyFile need caFile: without it there is no TLS");
  }
  if (caFile === undefined && !address.local) {
    if (!(options.plaintext ?? environment["CREDENTIAL_BROKER_PLAINTEXT"] === "1")) {
      throw new TypeError(
        `${address.target} is another host and headers are secrets: give caFile (CREDENTIAL_BROKER_CA_FILE) for TLS, ` +
          "or allow plaintext (CREDENTIAL_BROKER_PLAINTEXT=1)",
      );
    }
  }
  return {
    address,
    tls: caFile === undefined ? undefined : { caFile, certificateFile, privateKeyFile },
    serverName: text(options.serverName, "SERVER_NAME"),
    identity: options.identity ?? "",
    watch: options.watch ?? true,
    timeoutMs: positive("timeoutMs", options.timeoutMs ?? 10_000),
    cacheSize: positive("cacheSize", options.cacheSize ?? 1_000),
    idleMs: positive("idleMs", options.idleMs ?? 300_000),
    silenceMs: positive("silenceMs", options.silenceMs ?? 60_000),
    logger: options.logger ?? STANDARD_ERROR,
  };
}

/** Not `console.info`, which writes to standard output: that is the program's own. */
const STANDARD_ERROR: Logger = {
  info: (message) => {
    console.error(message);
  },
  warn: (message) => {
    console.warn(message);
  },
};

/** Returns a text; an empty one is as if it were not given. */
export function given(text: string | undefined): string | undefined {
  return text === "" ? undefined : text;
}

/** Timers of JavaScript take no longer time, and fire at once instead. */
const LIMIT = 2 ** 31;

/** Returns a number that a timer takes. @throws TypeError when it is not one. */
export function positive(name: string, value: number): number {
  if (!(value > 0 && value < LIMIT)) {
    throw new TypeError(`${name} must be a positive number below ${String(LIMIT)}, not ${String(value)}`);
  }
  return value;
}
