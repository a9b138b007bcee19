import { status, type ServiceError, type StatusObject } from "@grpc/grpc-js";

import type { ErrorStatus } from "./generated/credentialbroker/v1/credential_broker.js";
import { ErrorReason as Reasons } from "./generated/credentialbroker/v1/error_reason.js";
import { durationMs, readStatusDetails } from "./status-details.js";

/** A canonical gRPC status code, as a word. */
export type ErrorCode = keyof typeof status;

/**
 * Why a call failed, as a word to switch on. What each means and what to do stands at `ErrorReason` of the stubs
 * (`credentialbroker/v1`).
 */
export type ErrorReason = Exclude<keyof typeof Reasons, "UNRECOGNIZED">;

/** A failed call of the broker. */
export class BrokerError extends Error {
  override readonly name = "BrokerError";
  /**
   * Why. `"UNSPECIFIED"` where the gRPC runtime or this client made the error (nobody answered, a deadline passed), or
   * where the broker is newer than this client; see {@link reasonText}.
   */
  readonly reason: ErrorReason;
  /** The broker's own word for the reason, also one that this client does not know; empty where it did not answer. */
  readonly reasonText: string;
  /** The gRPC status code. */
  readonly code: ErrorCode;
  /** How long to wait before trying again, in milliseconds, where the broker says so. */
  readonly retryDelayMs: number | undefined;
  /** Names and numbers that belong to the reason, for example `{ scope: "inference" }`. Never a secret. */
  readonly metadata: Readonly<Record<string, string>>;

  constructor(
    code: ErrorCode,
    message: string,
    details: { reason?: string; retryDelayMs?: number | undefined; metadata?: Readonly<Record<string, string>> } = {},
  ) {
    super(message);
    this.code = code;
    this.reasonText = details.reason ?? "";
    this.reason = isReason(this.reasonText) ? this.reasonText : "UNSPECIFIED";
    this.retryDelayMs = details.retryDelayMs;
    this.metadata = details.metadata ?? {};
  }

  /** Makes one from what gRPC reports. */
  static fromStatus(failure: ServiceError | StatusObject): BrokerError {
    const trailer = failure.metadata.get("grpc-status-details-bin")[0];
    return new BrokerError(
      codeWord(failure.code),
      failure.details,
      readStatusDetails(Buffer.isBuffer(trailer) ? trailer : undefined),
    );
  }

  /** Makes one from an error inside a message. */
  static fromMessage(message: ErrorStatus): BrokerError {
    return new BrokerError(codeWord(message.code), message.message, {
      reason: message.reason.replace(/^ERROR_REASON_/, ""),
      retryDelayMs: message.retryDelay && durationMs(message.retryDelay),
    });
  }
}

/** The client was closed, before the call or while it waited. */
export class ClosedError extends Error {
  override readonly name = "ClosedError";

  constructor() {
    super("the credential broker's client is closed");
  }
}

/** An adapter was given a request to another origin than the one it was made for; nothing was sent. */
export class OriginError extends Error {
  override readonly name = "OriginError";
}

function isReason(word: string): word is ErrorReason {
  return Object.hasOwn(Reasons, word) && word !== "UNRECOGNIZED";
}

function codeWord(code: number): ErrorCode {
  return (status[code] as ErrorCode | undefined) ?? "UNKNOWN";
}
