package dev.credentialbroker.client;

/**
 * What is kept apart in the cache.
 *
 * @param identity as it was asked for: empty where the broker chooses
 */
record Key(String identity, String scope, String thread) {}
