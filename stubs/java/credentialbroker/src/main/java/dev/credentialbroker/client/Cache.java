package dev.credentialbroker.client;

import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashSet;
import java.util.List;
import java.util.LongSummaryStatistics;
import java.util.Objects;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.function.Predicate;
import java.util.stream.Stream;

/** What a client holds, bounded. Uses take no lock; changes take one that nobody holds for long. */
final class Cache {
  private final ConcurrentHashMap<Key, Entry> entries = new ConcurrentHashMap<>();

  /** The questions that are on their way: what happens to a key meanwhile is noted on them. */
  private final Set<Asked> asking = new HashSet<>();

  private final int size;
  private final long idle;
  private final Listener listener;
  private long ids;
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

  /** Takes note that a question is about to be asked, until it is {@link #settle settled}. */
  synchronized void asking(Asked asked) {
    asking.add(asked);
  }

  /** Forgets a question, which was answered or will not be. */
  synchronized void settle(Asked asked) {
    asking.remove(asked);
  }

  /** Returns how many questions are on their way. */
  synchronized int asked() {
    return asking.size();
  }

  /**
   * Keeps the answer to a question.
   *
   * @return what to give: the answer, or what the broker sent by itself meanwhile; null when
   *     something was withdrawn since it was asked, so that the broker must be asked again
   */
  Authorization keep(Asked asked, Authorization answer, long now) {
    Entry entry;
    List<Entry> evicted = List.of();
    synchronized (this) {
      if (closed) {
        return answer;
      }
      entry = entries.get(asked.key);
      Authorization held = entry == null ? null : entry.value();
      if (held != null && asked.renewed && !asked.rejects(held)) {
        // An origin is the backend's, to which the tag belongs.
        if (held.connectionTag().equals(answer.connectionTag())) {
          entry.allow(asked.origin);
        }
        return entry.use(now, asked.minValidity, asked.origin);
      }
      if (asked.overtaken) {
        return null;
      }
      if (asked.isReport()) {
        // Who asked before may yet be answered with what was rejected.
        others(asked).forEach(other -> other.renewed = true);
      }
      if (entry == null) {
        evicted = makeRoom();
        entry = new Entry(asked.key, Long.toString(++ids), now);
        entries.put(entry.key, entry);
      }
      entry.touch(now);
      entry.replace(answer);
      entry.allow(asked.origin);
    }
    evicted.forEach(this::tellDropped);
    if (!entry.watched) {
      listener.added(entry);
    }
    synchronized (this) {
      // Opening the stream takes its time, in which a task may have ended.
      return asked.overtaken ? null : answer;
    }
  }

  /**
   * Drops what a question was refused, and answers that may have been given before, unless the
   * broker sent another value since.
   */
  void refuse(Asked asked) {
    Entry entry;
    synchronized (this) {
      entry = entries.get(asked.key);
      if (entry == null) {
        return;
      }
      Authorization held = entry.value();
      if (held != null && (asked.isReport() ? !asked.rejects(held) : asked.renewed)) {
        return;
      }
      others(asked).forEach(other -> other.overtaken = true);
    }
    drop(entry);
  }

  /** Takes a value that the broker sent by itself, unless nobody uses the entry any more. */
  void renew(Entry entry, Authorization next, long now) {
    if (entry.isIdle(now, idle)) {
      drop(entry);
      return;
    }
    synchronized (this) {
      if (!entry.isDropped()) {
        asking.stream()
            .filter(asked -> asked.key.equals(entry.key))
            .forEach(asked -> asked.renewed = true);
        entry.replace(next);
      }
    }
  }

  /**
   * Lets go of a value at once, and of answers that may have been given before.
   *
   * @param rejected whether that is because it was reported to be rejected: to that report, which
   *     is answered with something better, it does nothing
   */
  void withdraw(Entry entry, boolean rejected) {
    synchronized (this) {
      overtake(asked -> asked.key.equals(entry.key) && !(rejected && asked.isReport()));
      entry.withdraw();
    }
  }

  /** Drops all of a thread, as a withdrawal does: also answers that are on their way. */
  void endThread(String identity, String thread) {
    Predicate<Key> ended = key -> key.identity().equals(identity) && key.thread().equals(thread);
    synchronized (this) {
      overtake(asked -> ended.test(asked.key));
    }
    dropAll(entry -> ended.test(entry.key));
  }

  private Stream<Asked> others(Asked asked) {
    return asking.stream().filter(other -> other != asked && other.key.equals(asked.key));
  }

  private void overtake(Predicate<Asked> which) {
    asking.stream().filter(which).forEach(asked -> asked.overtaken = true);
  }

  void drop(Entry entry) {
    synchronized (this) {
      if (!entries.remove(entry.key, entry)) {
        return;
      }
      entry.drop();
    }
    tellDropped(entry);
  }

  private void dropAll(Predicate<Entry> which) {
    entries.values().stream().filter(which).toList().forEach(this::drop);
  }

  private void tellDropped(Entry entry) {
    entry.connections.forEach(BrokerConnection::change);
    listener.dropped(entry);
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
      entry.connections.forEach(each -> each.fail(Calls.closed()));
    }
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
      oldest.drop();
      evicted.add(oldest);
    }
    return evicted;
  }
}
