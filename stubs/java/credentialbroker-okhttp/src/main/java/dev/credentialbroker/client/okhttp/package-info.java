/** Attaches the credential broker's headers to calls that are made with OkHttp. */
package dev.credentialbroker.client.okhttp;
