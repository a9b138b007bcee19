package dev.credentialbroker.client;

import com.google.common.util.concurrent.FutureCallback;
import com.google.common.util.concurrent.Futures;
import com.google.common.util.concurrent.ListenableFuture;
import com.google.common.util.concurrent.MoreExecutors;
import io.grpc.Status;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ScheduledFuture;
import java.util.concurrent.TimeUnit;
import java.util.function.LongFunction;

/**
 * One call for each key, however many wait for its answer.
 *
 * <p>Everyone waits until a deadline of their own, and can give up: the call goes on for the
 * others, and is cancelled once nobody is left. Who may wait longer than the call could goes on
 * with another.
 */
final class Flights {
  /** Less time than this is not worth another call; the broker refuses what leaves under 50 ms. */
  private static final long LEAST_LEFT = TimeUnit.MILLISECONDS.toNanos(100);

  private final BrokerChannel channel;
  private final long timeout;
  private final Map<Object, Flight> flights = new HashMap<>();
  private boolean closed;

  /**
   * @param timeout how many nanoseconds a call has, unless who begins it waits longer
   */
  Flights(BrokerChannel channel, long timeout) {
    this.channel = channel;
    this.timeout = timeout;
  }

  /**
   * Waits for the call of a key, which is begun unless one is under way.
   *
   * @param deadline until when, on the monotonic clock
   * @param start begins the call, which has until then, on the monotonic clock
   * @return the caller's alone, and complete at its deadline; cancelling it gives up. What hangs on
   *     it holds others up, so that users get {@link #own} one
   */
  CompletableFuture<Authorization> join(
      Object key, long deadline, LongFunction<ListenableFuture<Authorization>> start) {
    Waiter waiter = new Waiter(deadline);
    join(key, waiter, start);
    return waiter.answer;
  }

  /**
   * Returns a future for the user, who may hang on it what takes its time: a thread of its own
   * completes it, unless it is complete. Cancelling it gives up.
   */
  CompletableFuture<Authorization> own(CompletableFuture<Authorization> joined) {
    if (joined.isDone()) {
      return joined;
    }
    CompletableFuture<Authorization> own = new CompletableFuture<>();
    joined.whenComplete(
        (answer, failure) ->
            channel.execute(
                () -> {
                  if (failure == null) {
                    own.complete(answer);
                  } else {
                    own.completeExceptionally(failure);
                  }
                }));
    own.whenComplete((answer, failure) -> joined.cancel(false));
    return own;
  }

  private void join(
      Object key, Waiter waiter, LongFunction<ListenableFuture<Authorization>> start) {
    Flight flight;
    boolean first;
    synchronized (this) {
      if (closed) {
        waiter.answer.completeExceptionally(Calls.closed());
        return;
      }
      flight = flights.get(key);
      first = flight == null;
      if (first) {
        long latest = System.nanoTime() + timeout;
        flight = new Flight(key, Math.max(latest, waiter.deadline), start);
        flights.put(key, flight);
      }
      flight.waiters.add(waiter);
    }
    waiter.board(flight);
    if (first) {
      flight.begin();
    }
  }

  /** Fails whoever waits, and everyone who comes later. */
  void close() {
    List<Flight> all;
    synchronized (this) {
      closed = true;
      all = List.copyOf(flights.values());
    }
    all.forEach(flight -> flight.land(null, Calls.closed()));
  }

  private final class Flight implements FutureCallback<Authorization> {
    final Object key;
    final long deadline;
    final LongFunction<ListenableFuture<Authorization>> start;
    final List<Waiter> waiters = new ArrayList<>();
    private ListenableFuture<Authorization> call;
    private boolean landed;

    Flight(Object key, long deadline, LongFunction<ListenableFuture<Authorization>> start) {
      this.key = key;
      this.deadline = deadline;
      this.start = start;
    }

    void begin() {
      ListenableFuture<Authorization> begun;
      try {
        begun = start.apply(deadline);
      } catch (RuntimeException | Error e) {
        land(null, e);
        return;
      }
      boolean abandoned;
      synchronized (Flights.this) {
        call = begun;
        abandoned = landed;
      }
      if (abandoned) {
        begun.cancel(true);
      }
      Futures.addCallback(begun, this, MoreExecutors.directExecutor());
    }

    @Override
    public void onSuccess(Authorization answer) {
      land(answer, null);
    }

    @Override
    public void onFailure(Throwable failure) {
      land(null, failure);
    }

    /** Ends the flight: those who wait get what came of it. */
    void land(Authorization answer, Throwable failure) {
      List<Waiter> left;
      synchronized (Flights.this) {
        if (landed) {
          return;
        }
        landed = true;
        flights.remove(key, this);
        left = List.copyOf(waiters);
        waiters.clear();
        if (call != null) {
          call.cancel(true);
        }
      }
      boolean over = System.nanoTime() - deadline >= 0;
      for (Waiter waiter : left) {
        if (answer != null) {
          waiter.answer.complete(answer);
        } else if (over && waiter.deadline - System.nanoTime() > LEAST_LEFT) {
          join(key, waiter, start);
        } else {
          waiter.fail(failure);
        }
      }
    }

    void leave(Waiter waiter) {
      boolean last;
      synchronized (Flights.this) {
        waiters.remove(waiter);
        last = waiters.isEmpty();
      }
      if (last) {
        land(null, Status.CANCELLED.asRuntimeException());
      }
    }
  }

  private final class Waiter {
    final CompletableFuture<Authorization> answer = new CompletableFuture<>();
    final long deadline;

    Waiter(long deadline) {
      this.deadline = deadline;
    }

    void board(Flight flight) {
      // At its own deadline gRPC ends the call, with a message that says what it waited for.
      ScheduledFuture<?> alarm =
          deadline - flight.deadline < -LEAST_LEFT
              ? channel.later(deadline - System.nanoTime(), this::timeOut)
              : null;
      answer.whenComplete(
          (value, failure) -> {
            if (alarm != null) {
              alarm.cancel(false);
            }
            flight.leave(this);
          });
    }

    private void timeOut() {
      String why = channel.isAway() ? "no connection to the broker" : "no answer of the broker";
      BrokerException late =
          BrokerException.of(Status.Code.DEADLINE_EXCEEDED, why + " in the time of this call");
      answer.completeExceptionally(late);
    }

    void fail(Throwable failure) {
      answer.completeExceptionally(
          failure instanceof IllegalStateException ? failure : BrokerException.of(failure));
    }
  }
}
