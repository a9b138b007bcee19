package dev.credentialbroker.client;

import java.time.Duration;
import java.util.Optional;

/**
 * How a client is doing.
 *
 * @param watching whether the stream is up that brings the next values
 * @param held how many authorizations it holds that have not ended
 * @param firstEndsIn in how long the first of them ends; empty when none is held
 * @param lastError what last went wrong with the broker, in a call or on the stream
 */
public record ClientState(
    boolean watching,
    int held,
    Optional<Duration> firstEndsIn,
    Optional<BrokerException> lastError) {}
