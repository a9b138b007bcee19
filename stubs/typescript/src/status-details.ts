import { BinaryReader, WireType } from "@bufbuild/protobuf/wire";

import { Duration } from "./generated/google/protobuf/duration.js";

/** What the broker says about a failure beside its status. */
export interface StatusDetails {
  /** `ErrorInfo.reason`, the bare word; empty where the broker did not make the status. */
  readonly reason: string;
  /** `ErrorInfo.metadata`. */
  readonly metadata: Readonly<Record<string, string>>;
  /** `RetryInfo.retry_delay` in milliseconds. */
  readonly retryDelayMs: number | undefined;
}

const NONE: StatusDetails = { reason: "", metadata: {}, retryDelayMs: undefined };
const DOMAIN = "credentialbroker.v1";

/**
 * Reads `grpc-status-details-bin`, a `google.rpc.Status`.
 *
 * Of its messages (google/rpc/status.proto, google/rpc/error_details.proto) three fields each are needed, which are read
 * here from the wire: a package of all of them would be the larger part of this one.
 *
 * @returns What stands in it; nothing where it is missing, malformed or not of the broker.
 */
export function readStatusDetails(trailer: Uint8Array | undefined): StatusDetails {
  try {
    return trailer === undefined ? NONE : readStatus(trailer);
  } catch {
    return NONE; // a proxy's trailer must not hide the status itself
  }
}

function readStatus(bytes: Uint8Array): StatusDetails {
  let details = NONE;
  for (const any of read(bytes).messages(3)) {
    const { text, messages } = read(any);
    const value = messages(2)[0] ?? new Uint8Array();
    if (text(1).endsWith("/google.rpc.ErrorInfo") && read(value).text(2) === DOMAIN) {
      const pairs = read(value).messages(3).map(read);
      const metadata = Object.fromEntries(pairs.map((pair) => [pair.text(1), pair.text(2)]));
      details = { ...details, reason: read(value).text(1), metadata };
    } else if (text(1).endsWith("/google.rpc.RetryInfo")) {
      const delay = read(value).messages(1)[0];
      details = { ...details, retryDelayMs: delay && durationMs(Duration.decode(delay)) };
    }
  }
  return details;
}

/** Returns a duration in milliseconds. */
export function durationMs(duration: Duration): number {
  return Number(duration.seconds) * 1_000 + duration.nanos / 1e6;
}

/** Splits a message into its length-delimited fields, by number. */
function read(bytes: Uint8Array) {
  const fields = new Map<number, Uint8Array[]>();
  const reader = new BinaryReader(bytes);
  while (reader.pos < reader.len) {
    const [number, wireType] = reader.tag();
    if (wireType === WireType.LengthDelimited) {
      fields.set(number, [...(fields.get(number) ?? []), reader.bytes()]);
    } else {
      reader.skip(wireType, number);
    }
  }
  return {
    messages: (number: number): Uint8Array[] => fields.get(number) ?? [],
    text: (number: number): string => new TextDecoder().decode(fields.get(number)?.[0]),
  };
}
