/**
 * Client of the credential broker: ready-made authorization headers from memory, kept current.
 *
 * @packageDocumentation
 */

export { Authorization, Header, type Kind, type Reason } from "./authorization.js";
export {
  BrokerClient,
  type AuthorizationOptions,
  type CallOptions,
  type ClientState,
  type Task,
  type Whose,
} from "./client.js";
export { Connection } from "./connection.js";
export { BrokerError, ClosedError, OriginError, type ErrorCode, type ErrorReason } from "./errors.js";
export type { Fetch, FetchOptions } from "./fetch.js";
export type { CallCredentialsOptions } from "./grpc.js";
export type { BrokerClientOptions, Logger } from "./settings.js";
