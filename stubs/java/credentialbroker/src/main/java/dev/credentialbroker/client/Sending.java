package dev.credentialbroker.client;

import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Future;

/**
 * What comes of a request that is sent in several steps. As with the futures of the JDK's client,
 * {@code cancel(true)} of it, or of what was made of it, ends the step that is under way.
 */
final class Sending<T> extends CompletableFuture<T> {
  private final Steps steps;

  /** Shared with what was made of it; guarded by itself. */
  private static final class Steps {
    Future<?> underWay;
    boolean cancelled;
  }

  Sending() {
    this(new Steps());
  }

  private Sending(Steps steps) {
    this.steps = steps;
  }

  /** Takes note of the step that is under way from now on, and returns it. */
  <F extends Future<?>> F step(F next) {
    boolean late;
    synchronized (steps) {
      steps.underWay = next;
      late = steps.cancelled;
    }
    if (late) {
      next.cancel(true);
    }
    return next;
  }

  @Override
  public <U> CompletableFuture<U> newIncompleteFuture() {
    return new Sending<>(steps);
  }

  @Override
  public boolean cancel(boolean endStep) {
    boolean cancelled = super.cancel(endStep);
    if (cancelled && endStep) {
      Future<?> underWay;
      synchronized (steps) {
        steps.cancelled = true;
        underWay = steps.underWay;
      }
      underWay.cancel(true);
    }
    return cancelled;
  }
}
