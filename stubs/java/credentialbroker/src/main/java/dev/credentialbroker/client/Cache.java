package dev.credentialbroker.client;

import java.net.URI;
import java.util.ArrayList;
import java.util.Collection;
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
  private boolean closed;

  /** Hears of entries that come and go, without the lock of the cache. */
  interface Listener {
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

  Collection<Entry> all() {
    return entries.values();
  }

  /**
   * Keeps an answer to a question.
   *
   * @param begun when it was asked: what was withdrawn since is not kept
   * @param origin an origin that it was given for, or null
   * @return what to give: the answer, or what the broker sent by itself meanwhile
   */
  Authorization keep(Authorization answer, long begun, URI origin, long now) {
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
        evicted.addAll(makeRoom());
        entry = new Entry(answer.key(), Long.toString(++ids), now);
      } else if (entry.wasRenewed(begun)) {
        return entry.value();
      } else if (entry.wasWithdrawn(answer, begun)) {
        return answer;
      }
      entry.touch(now);
      entry.replace(answer);
      entry.allow(origin);
      entries.put(entry.key, entry);
    }
    evicted.forEach(listener::dropped);
    if (added) {
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

  void withdraw(Entry entry, long now) {
    synchronized (this) {
      entry.withdraw(now);
    }
  }

  void drop(Entry entry) {
    synchronized (this) {
      if (!entries.remove(entry.key, entry)) {
        return;
      }
      entry.drop();
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

  /** Drops the least recently used entries, until one more fits. */
  private List<Entry> makeRoom() {
    List<Entry> evicted = new ArrayList<>();
    while (entries.size() >= size) {
      Entry oldest =
          entries.values().stream()
              .filter(entry -> entry.connections.isEmpty())
              .min(Comparator.comparingLong(Entry::used))
              .orElse(null);
      if (oldest == null) {
        break;
      }
      entries.remove(oldest.key);
      oldest.drop();
      evicted.add(oldest);
    }
    return evicted;
  }
}
