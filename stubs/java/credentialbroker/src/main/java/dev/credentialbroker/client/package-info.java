/**
 * The client of the credential broker: asks for authorization headers, keeps them current, and
 * attaches them. Begin at {@link dev.credentialbroker.client.BrokerClient}.
 *
 * <p>What it does is the same in every language and written in {@code docs/clients.md}.
 */
package dev.credentialbroker.client;
