package dev.credentialbroker.client;

import com.google.common.util.concurrent.FutureCallback;
import com.google.common.util.concurrent.Futures;
import com.google.common.util.concurrent.ListenableFuture;
import com.google.common.util.concurrent.MoreExecutors;
import dev.credentialbroker.v1.CredentialBrokerGrpc.CredentialBrokerFutureStub;
import io.grpc.Context;
import io.grpc.Deadline;
import io.grpc.Status;
import java.time.Duration;
import java.util.concurrent.CancellationException;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.function.Function;

/** Unary calls: until when each may last, how one waits for it, and what it says of the broker. */
final class Calls {
  static final long LONGEST = TimeUnit.SECONDS.toNanos(10);

  private final BrokerChannel channel;
  private final Presence presence;
  private final long timeout;
  private final AtomicBoolean closed = new AtomicBoolean();

  /**
   * @param timeout how many nanoseconds a call has whose user names no time
   */
  Calls(BrokerChannel channel, Presence presence, long timeout) {
    this.channel = channel;
    this.presence = presence;
    this.timeout = timeout;
  }

  /**
   * Returns until when a call may last, on the monotonic clock: gRPC's own deadline of the caller
   * counts.
   *
   * @param asked for how long at most; null for the client's own time
   */
  long deadline(Duration asked) {
    long nanos = asked == null ? timeout : Math.min(Durations.nanos(asked), LONGEST);
    Deadline ofContext = Context.current().getDeadline();
    if (ofContext != null) {
      nanos = Math.min(nanos, ofContext.timeRemaining(TimeUnit.NANOSECONDS));
    }
    return System.nanoTime() + nanos;
  }

  /**
   * Begins a call, and takes note of what it says about the broker.
   *
   * @param deadline until when it may last, on the monotonic clock
   */
  <R> ListenableFuture<R> start(
      Function<CredentialBrokerFutureStub, ListenableFuture<R>> method, long deadline) {
    if (closed.get()) {
      return Futures.immediateFailedFuture(closed());
    }
    CredentialBrokerFutureStub stub =
        channel.calls().withDeadlineAfter(deadline - System.nanoTime(), TimeUnit.NANOSECONDS);
    // Not in the context of who asked first: others wait for the same answer.
    Context before = Context.ROOT.attach();
    ListenableFuture<R> call;
    try {
      call = method.apply(stub);
    } finally {
      Context.ROOT.detach(before);
    }
    Futures.addCallback(call, new Listener<>(call), MoreExecutors.directExecutor());
    return call;
  }

  private final class Listener<R> implements FutureCallback<R> {
    private final ListenableFuture<R> call;

    Listener(ListenableFuture<R> call) {
      this.call = call;
    }

    @Override
    public void onSuccess(R answer) {
      presence.back();
    }

    @Override
    public void onFailure(Throwable thrown) {
      if (call.isCancelled()) {
        return;
      }
      BrokerException error = BrokerException.of(thrown);
      presence.failed(error);
      if (!error.reasonText().isEmpty()) {
        presence.back();
      } else if (error.code() == Status.Code.UNAVAILABLE) {
        presence.away();
      }
    }
  }

  /** Makes a call that one user alone waits for. */
  <R> R call(Function<CredentialBrokerFutureStub, ListenableFuture<R>> method) {
    return await(start(method, deadline(null)));
  }

  /** Waits for an answer, as the public methods do: with their exceptions. */
  <T> T await(Future<T> answer) {
    try {
      return answer.get();
    } catch (InterruptedException e) {
      answer.cancel(true);
      Thread.currentThread().interrupt();
      throw new CancellationException("interrupted while waiting for the broker");
    } catch (ExecutionException e) {
      if (closed.get() || e.getCause() instanceof IllegalStateException) {
        throw closed();
      }
      throw BrokerException.of(e.getCause());
    }
  }

  /** Begins no call any more; false when that was so already. */
  boolean close() {
    return closed.compareAndSet(false, true);
  }

  static IllegalStateException closed() {
    return new IllegalStateException("the client is closed");
  }
}
