package dev.credentialbroker.client;

import java.util.concurrent.TimeUnit;
import java.util.function.DoubleSupplier;

/** Growing waits: each longer than the one before up to a limit, times a random part of it. */
final class Backoff {
  private final double first;
  private final double factor;
  private final double longest;
  private final DoubleSupplier random;
  private double next;

  /**
   * @param first seconds of the first wait, before its random part
   * @param factor how much longer each is than the one before
   * @param longest seconds that none is longer than
   * @param random gives numbers from 0 to 1
   */
  Backoff(double first, double factor, double longest, DoubleSupplier random) {
    this.first = first;
    this.factor = factor;
    this.longest = longest;
    this.random = random;
    this.next = first;
  }

  /** Returns the next wait in nanoseconds: half of it at least, the rest by chance. */
  long next() {
    double wait = next * (0.5 + 0.5 * random.getAsDouble());
    next = Math.min(next * factor, longest);
    return (long) (wait * TimeUnit.SECONDS.toNanos(1));
  }

  /** Begins again with the first wait. */
  void reset() {
    next = first;
  }
}
