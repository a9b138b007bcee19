/**
 * The generated stubs of the operators' service.
 *
 * Every call must carry the metadata `x-credential-broker: 1`. Messages print their secrets: do not log them.
 *
 * @packageDocumentation
 */

export * from "./generated/credentialbroker/v1/broker_admin.js";
