package dev.credentialbroker.client;

import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ScheduledFuture;

/**
 * The headers for dialling a connection that lives on (a websocket, a pool), and whether it may.
 *
 * <p>Close it with the connection. While it is open its authorization is kept current.
 */
public final class BrokerConnection implements AutoCloseable {
  private final Upkeep upkeep;
  private final BrokerChannel channel;
  private final Authorization authorization;
  private final CompletableFuture<Void> told = new CompletableFuture<>();
  private volatile boolean changed;
  private ScheduledFuture<?> nextLook;

  BrokerConnection(Upkeep upkeep, BrokerChannel channel, Authorization authorization) {
    this.upkeep = upkeep;
    this.channel = channel;
    this.authorization = authorization;
  }

  /** The headers to dial with, now. */
  public List<Header> headers() {
    return authorization.headers();
  }

  /** What the headers belong to: another tag means another connection. */
  public String connectionTag() {
    return authorization.connectionTag();
  }

  /**
   * Whether the connection must not be used any longer: its tag changed, or what it was dialled
   * with was withdrawn.
   */
  public boolean changed() {
    return changed;
  }

  /** Takes when its entry is looked at next, in the place of the time before; null for never. */
  synchronized void next(ScheduledFuture<?> look) {
    if (nextLook != null) {
      nextLook.cancel(false);
    }
    nextLook = look;
  }

  /**
   * Completes once {@link #changed} is true, or exceptionally when the client is closed. Every call
   * returns a future of its own, which may be cancelled.
   */
  public CompletableFuture<Void> whenChanged() {
    return told.copy();
  }

  /** Tells the client that the connection is closed. */
  @Override
  public void close() {
    upkeep.end(this);
  }

  Authorization authorization() {
    return authorization;
  }

  void tagIs(String tag) {
    if (!tag.equals(authorization.connectionTag())) {
      change();
    }
  }

  void change() {
    changed = true;
    channel.execute(() -> told.complete(null));
  }

  void fail(RuntimeException failure) {
    channel.execute(() -> told.completeExceptionally(failure));
  }

  /** Without the headers' values. */
  @Override
  public String toString() {
    return "BrokerConnection[authorization=%s, changed=%s]".formatted(authorization, changed);
  }
}
