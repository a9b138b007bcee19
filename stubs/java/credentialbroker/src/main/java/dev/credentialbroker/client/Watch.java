package dev.credentialbroker.client;

import dev.credentialbroker.v1.Subscribe;
import dev.credentialbroker.v1.Unsubscribe;
import dev.credentialbroker.v1.WatchAuthorizationsRequest;
import dev.credentialbroker.v1.WatchAuthorizationsResponse;
import dev.credentialbroker.v1.Withdrawal;
import dev.credentialbroker.v1.WithdrawalReason;
import io.grpc.Context;
import io.grpc.Status;
import io.grpc.stub.ClientCallStreamObserver;
import io.grpc.stub.ClientResponseObserver;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.concurrent.ScheduledFuture;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;

/**
 * The stream on which the broker sends the next value of every entry.
 *
 * <p>There is one at a time, and one more while a stream that the broker is closing has its
 * successor already. All is done under the lock of this object, which nobody holds during I/O.
 */
final class Watch {
  /** A stream holds no more; the rest is asked for. */
  private static final int MOST = 1000;

  private static final long LIVED = TimeUnit.SECONDS.toNanos(5);

  private final BrokerChannel channel;
  private final Cache cache;
  private final Presence presence;
  private final long silence;
  private final Backoff backoff =
      new Backoff(0.2, 2, 10, () -> ThreadLocalRandom.current().nextDouble());
  private final Map<String, Entry> entries = new LinkedHashMap<>();
  private Stream current;
  private boolean waiting;
  private boolean changing;
  private boolean closed;
  private volatile boolean up;

  /**
   * @param silence nanoseconds without any message after which a stream is dead
   */
  Watch(BrokerChannel channel, Cache cache, Presence presence, long silence) {
    this.channel = channel;
    this.cache = cache;
    this.presence = presence;
    this.silence = silence;
  }

  /**
   * Whether the broker sends values by itself: it has a stream for that, or is changing from one to
   * the next as it said it would.
   */
  boolean isUp() {
    return up;
  }

  synchronized void subscribe(Entry entry) {
    if (closed || entry.isDropped() || entry.watched) {
      return;
    }
    if (entries.size() >= MOST) {
      return;
    }
    entries.put(entry.id, entry);
    entry.watched = true;
    if (current != null) {
      current.subscribe(entry);
    } else if (!waiting) {
      open();
    }
  }

  synchronized void unsubscribe(Entry entry) {
    if (entries.remove(entry.id) != null && current != null) {
      current.unsubscribe(entry.id);
    }
  }

  synchronized void close() {
    closed = true;
    up = false;
    for (Stream stream = current; stream != null; stream = stream.before) {
      stream.cancel();
    }
    current = null;
  }

  /** Opens the next stream. The one before goes on until this one is up. */
  private void open() {
    waiting = false;
    if (closed || (entries.isEmpty() && current == null)) {
      return;
    }
    current = new Stream(current);
    current.begin();
    entries.values().forEach(current::subscribe);
  }

  private void openWaited() {
    // Here, since files must not be read under the lock.
    channel.lookAtFiles();
    synchronized (this) {
      open();
    }
  }

  /**
   * Opens the next stream after a wait, which grows from stream to stream until one has lived.
   *
   * @param before what it comes after
   * @param told nanoseconds that the broker wants to be left alone
   */
  private void openAfter(Stream before, long told) {
    if (waiting) {
      return;
    }
    if (System.nanoTime() - before.opened >= LIVED) {
      backoff.reset();
    }
    waiting = true;
    channel.later(Math.max(backoff.next(), told), this::openWaited);
  }

  private void tellUp() {
    up = changing || (current != null && current.ready);
  }

  private final class Stream
      implements ClientResponseObserver<WatchAuthorizationsRequest, WatchAuthorizationsResponse> {
    private Stream before;
    private ClientCallStreamObserver<WatchAuthorizationsRequest> requests;
    private final long opened = System.nanoTime();
    private long heard = opened;
    private boolean ready;
    private boolean finished;
    private boolean ended;
    private ScheduledFuture<?> alarm;

    Stream(Stream before) {
      this.before = before;
    }

    void begin() {
      // Not in the context of whoever happened to need the first entry: the stream outlives that.
      Context.ROOT.run(() -> channel.streams().watchAuthorizations(this));
      alarm = channel.later(silence, this::listen);
    }

    @Override
    public void beforeStart(ClientCallStreamObserver<WatchAuthorizationsRequest> requests) {
      this.requests = requests;
      requests.setOnReadyHandler(this::onReady);
    }

    void subscribe(Entry entry) {
      Subscribe.Builder wanted =
          Subscribe.newBuilder()
              .setSubscriptionId(entry.id)
              .setScope(entry.key.scope())
              .setThreadId(entry.key.thread())
              .setIdentity(entry.key.identity());
      Authorization held = entry.value();
      if (held != null && !held.lifetime().isDue(System.nanoTime())) {
        wanted.setKnownRevision(held.revision());
      }
      send(WatchAuthorizationsRequest.newBuilder().setSubscribe(wanted).build());
    }

    void unsubscribe(String id) {
      send(
          WatchAuthorizationsRequest.newBuilder()
              .setUnsubscribe(Unsubscribe.newBuilder().setSubscriptionId(id))
              .build());
    }

    private void send(WatchAuthorizationsRequest request) {
      if (!ended && !finished) {
        requests.onNext(request);
      }
    }

    /** Lets the broker end it. */
    private void finish() {
      if (!ended && !finished) {
        finished = true;
        requests.onCompleted();
      }
    }

    /** It has a connection. */
    private void onReady() {
      synchronized (Watch.this) {
        if (ended || ready) {
          return;
        }
        ready = true;
        changing = false;
        if (before != null) {
          before.finish();
        }
        tellUp();
      }
    }

    @Override
    public void onNext(WatchAuthorizationsResponse message) {
      long now = System.nanoTime();
      presence.back();
      synchronized (Watch.this) {
        heard = now;
        if (ended) {
          return;
        }
        if (message.getEventCase() == WatchAuthorizationsResponse.EventCase.CLOSING) {
          if (this == current) {
            changing = true;
            openAfter(this, Durations.nanos(Durations.of(message.getClosing().getRetryDelay())));
          }
          return;
        }
        Entry entry = entries.get(message.getSubscriptionId());
        if (entry != null) {
          // Under the lock, so that what two streams say is done in the order in which it came.
          tell(entry, message, now);
        }
      }
    }

    private void tell(Entry entry, WatchAuthorizationsResponse message, long now) {
      boolean succeeded = current != null && current != this;
      switch (message.getEventCase()) {
        case AUTHORIZATION -> {
          if (!succeeded) {
            cache.renew(entry, Authorization.of(entry.key, message.getAuthorization(), now), now);
          }
        }
        case WITHDRAWAL -> cache.withdraw(entry, isOfARejection(message.getWithdrawal()));
        case ERROR -> {
          BrokerException error = BrokerException.of(message.getError().getStatus());
          presence.failed(error);
          if (error.refusesWhatIsHeld()) {
            cache.withdraw(entry, false);
          }
        }
        default -> {
          // A heartbeat, or what a newer broker says: that it says something is all there is to it.
        }
      }
    }

    private static boolean isOfARejection(Withdrawal withdrawal) {
      return withdrawal.getReason() == WithdrawalReason.WITHDRAWAL_REASON_CREDENTIAL_REJECTED;
    }

    @Override
    public void onError(Throwable failure) {
      end(BrokerException.of(failure));
    }

    @Override
    public void onCompleted() {
      end(null);
    }

    /** Ends the stream if nothing was heard for too long; else listens on. */
    private void listen() {
      synchronized (Watch.this) {
        if (ended) {
          return;
        }
        long left = heard + silence - System.nanoTime();
        if (left > 0) {
          alarm = channel.later(left, this::listen);
          return;
        }
      }
      end(BrokerException.of(Status.Code.UNAVAILABLE, "the stream was silent for too long"));
      cancel();
    }

    private void end(BrokerException failure) {
      if (!ending(failure)) {
        return;
      }
      if (failure != null && failure.reasonText().isEmpty()) {
        presence.away();
      }
    }

    /** Takes note of the end; false when that was done, or is none of anybody's interest. */
    private boolean ending(BrokerException failure) {
      synchronized (Watch.this) {
        if (ended) {
          return false;
        }
        ended = true;
        ready = false;
        if (alarm != null) {
          alarm.cancel(false);
        }
        if (current != null && current.before == this) {
          current.before = null;
        }
        if (closed) {
          return false;
        }
        // What becomes of a stream that has a successor says nothing about the broker.
        boolean newest = this == current;
        if (newest) {
          if (failure != null) {
            presence.failed(failure);
          }
          current = before != null && !before.finished ? before : null;
          changing = changing && waiting;
          long told = failure == null ? 0 : failure.retryDelay().map(Durations::nanos).orElse(0L);
          openAfter(this, told);
        }
        before = null;
        tellUp();
        return newest;
      }
    }

    void cancel() {
      requests.cancel("not needed any longer", null);
    }
  }
}
