package dev.credentialbroker.client;

import java.net.URI;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.LongSummaryStatistics;
import java.util.Objects;
import java.util.concurrent.ConcurrentHashMap;
import java.util.function.Predicate;

/** What a client holds, bounded. Uses take no lock; changes take one that nobody holds for long. */
final class Cache {
  private final ConcurrentHashMap<Key, Entry> entries = new ConcurrentHashMap<>();
  private final int size;
  private final long idle;
  private final Listener listener;
  private long ids;
  private Long withdrawnBefore;
  private boolean closed;

  /** Hears of entries that come and go, without the lock of the cache. */
  interface Listener {
    /** An entry has a value, and is not watched. */
    void added(Entry entry);

    void dropped(Entry entry);
  }

  /**
   * @param size how many entries there are at most
   * @param idle nanoseconds after which an entry that nobody uses is let go
   */
  Cache(int size, long idle, Listener listener) {
    this.size = size;
    this.idle = idle;
    this.listener = listener;
  }

  /** Returns the entry of a key, or null. */
  Entry get(Key key) {
    return entries.get(key);
  }

  /**
   * A question to the broker.
   *
   * @param begun when it was asked
   * @param minValidity nanoseconds that the answer has to last
   * @param origin an origin that it is asked for, or null
   * @param rejected the revision of which it is the report; null when it is none
   */
  record Asked(long begun, long minValidity, URI origin, String rejected) {}

  /**
   * Keeps an answer to a question.
   *
   * @return what to give: the answer, or what the broker sent by itself meanwhile; null when
   *     something was withdrawn since it was asked, so that the broker must be asked again
   */
  Authorization keep(Authorization answer, Asked asked, long now) {
    Entry entry;
    boolean added;
    List<Entry> evicted = new ArrayList<>();
    synchronized (this) {
      if (closed) {
        return answer;
      }
      entry = entries.get(answer.key());
      added = entry == null;
      if (added) {
        if (withdrawnBefore != null && withdrawnBefore - asked.begun() > 0) {
          return null;
        }
        evicted.addAll(makeRoom());
        entry = new Entry(answer.key(), Long.toString(++ids), now);
      } else if (entry.wasRenewed(asked.begun())
          && !entry.value().revision().equals(asked.rejected())) {
        // An origin is the backend's, to which the tag belongs.
        if (entry.value().connectionTag().equals(answer.connectionTag())) {
          entry.allow(asked.origin());
        }
        return entry.use(now, asked.minValidity(), asked.origin());
      } else if (entry.wasWithdrawn(asked.begun(), asked.rejected() != null)) {
        return null;
      }
      entry.touch(now);
      entry.replace(answer);
      entry.allow(asked.origin());
      entries.put(entry.key, entry);
    }
    for (Entry each : evicted) {
      each.connections.forEach(BrokerConnection::change);
      listener.dropped(each);
    }
    if (added || !entry.watched) {
      listener.added(entry);
    }
    return answer;
  }

  /** Takes a value that the broker sent by itself, unless nobody uses the entry any more. */
  void renew(Entry entry, Authorization next, long now) {
    if (entry.isIdle(now, idle)) {
      drop(entry);
      return;
    }
    synchronized (this) {
      if (!entry.isDropped()) {
        entry.renew(next, now);
      }
    }
  }

  void withdraw(Entry entry, long now, boolean rejected) {
    synchronized (this) {
      entry.withdraw(now, rejected);
    }
  }

  /** Drops what a question or a report was refused, unless the broker sent another value since. */
  void refuse(Key key, Asked asked) {
    Entry entry;
    synchronized (this) {
      entry = entries.get(key);
      if (entry == null) {
        return;
      }
      Authorization held = entry.value();
      boolean other = held != null && !held.revision().equals(asked.rejected());
      if (asked.rejected() == null ? entry.wasRenewed(asked.begun()) : other) {
        return;
      }
    }
    drop(entry);
  }

  void drop(Entry entry) {
    synchronized (this) {
      if (!entries.remove(entry.key, entry)) {
        return;
      }
      forget(entry);
    }
    entry.connections.forEach(BrokerConnection::change);
    listener.dropped(entry);
  }

  void dropAll(Predicate<Entry> which) {
    entries.values().stream().filter(which).toList().forEach(this::drop);
  }

  /** Lets go of what has ended, and of entries that nobody uses and whose next value is due. */
  void sweep(long now) {
    synchronized (this) {
      entries.values().forEach(entry -> entry.expire(now));
    }
    dropAll(
        entry -> {
          Authorization held = entry.value();
          return entry.isIdle(now, idle) && (held == null || held.lifetime().isDue(now));
        });
  }

  /** Returns for how many nanoseconds each value that has not ended still lasts. */
  LongSummaryStatistics left(long now) {
    return entries.values().stream()
        .map(Entry::value)
        .filter(Objects::nonNull)
        .mapToLong(held -> held.lifetime().left(now))
        .filter(left -> left > 0)
        .summaryStatistics();
  }

  /** Lets go of everything, and keeps nothing more. Who waits for a connection to change fails. */
  void close() {
    List<Entry> all;
    synchronized (this) {
      closed = true;
      all = List.copyOf(entries.values());
      entries.clear();
      all.forEach(Entry::drop);
    }
    for (Entry entry : all) {
      entry.connections.forEach(each -> each.fail(BrokerClient.closed()));
    }
  }

  /** Ends an entry; what was withdrawn of it counts on for answers that are on their way. */
  private void forget(Entry entry) {
    Long withdrawn = entry.withdrawn();
    if (withdrawn != null && (withdrawnBefore == null || withdrawn - withdrawnBefore > 0)) {
      withdrawnBefore = withdrawn;
    }
    entry.drop();
  }

  /** Drops the least recently used entries, until one more fits. */
  private List<Entry> makeRoom() {
    List<Entry> evicted = new ArrayList<>();
    while (entries.size() >= size) {
      Entry oldest =
          entries.values().stream()
              .min(
                  // What a connection stands on goes last.
                  Comparator.comparing((Entry entry) -> !entry.connections.isEmpty())
                      .thenComparingLong(Entry::used))
              .orElseThrow();
      entries.remove(oldest.key);
      forget(oldest);
      evicted.add(oldest);
    }
    return evicted;
  }
}
