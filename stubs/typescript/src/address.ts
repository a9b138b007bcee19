import { isIPv4 } from "node:net";

/** Where a broker listens, as it was asked for and as gRPC names it. */
export interface Address {
  /** What gRPC is given. */
  readonly target: string;
  /** Host without port and brackets; empty for a Unix socket. */
  readonly host: string;
  /** Whether it cannot leave this machine, so that no TLS is needed: a Unix socket, `localhost`, 127.0.0.0/8, `::1`. */
  readonly local: boolean;
}

const HOST_AND_PORT = /^(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):(\d{1,5})$/;

/**
 * Reads an address: `unix:///absolute/path`, `dns:///host:port` or `host:port`.
 *
 * @throws TypeError when it is anything else.
 */
export function parseAddress(text: string): Address {
  if (/^unix:\/\/\/[^/]/.test(text)) {
    return { target: text, host: "", local: true };
  }
  const match = HOST_AND_PORT.exec(text.startsWith("dns:///") ? text.slice("dns:///".length) : text);
  const host = match?.[1] ?? match?.[2];
  const port = Number(match?.[3]);
  if (match === null || host === undefined || port < 1 || port > 65535) {
    throw new TypeError(
      `the broker's address must be unix:///absolute/path, dns:///host:port or host:port, not ${JSON.stringify(text)}`,
    );
  }
  return { target: `dns:///${match[0]}`, host, local: isLoopback(host) };
}

/** What only looks like an address is a name, which may be found anywhere: 127.999.1.1, 127.0.0.010, 127.1. */
function isLoopback(host: string): boolean {
  return host.toLowerCase() === "localhost" || host === "::1" || (isIPv4(host) && host.startsWith("127."));
}
