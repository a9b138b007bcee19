/**
 * The generated stubs of the callers' service, for what the client does not do.
 *
 * Every call must carry the metadata `x-credential-broker: 1`. Messages print their secrets: do not log them.
 *
 * @packageDocumentation
 */

export * from "./generated/credentialbroker/v1/credential_broker.js";
export * from "./generated/credentialbroker/v1/error_reason.js";
