package dev.credentialbroker.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.grpc.Status;
import java.net.URI;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;

class CacheTest {
  private static final long SECOND = 1_000_000_000L;
  private static final URI ORIGIN = URI.create("https://api.example:443");

  private final List<String> heard = new ArrayList<>();
  private final Cache cache =
      new Cache(
          2,
          300 * SECOND,
          new Cache.Listener() {
            @Override
            public void added(Entry entry) {
              heard.add("+" + entry.key.thread());
            }

            @Override
            public void dropped(Entry entry) {
              heard.add("-" + entry.key.thread());
            }
          });

  private static Key key(String thread) {
    return new Key("", "inference", thread);
  }

  /** An answer that is due after 30 s and ends after 60 s. */
  private static Authorization answer(String thread, String secret, long now) {
    return Authorization.of(key(thread), FakeBroker.answer(secret), now);
  }

  private Authorization keep(String thread, long now) {
    Authorization answer = answer(thread, "s", now);
    cache.keep(answer, question(now), now);
    return answer;
  }

  private static Cache.Asked question(long begun) {
    return new Cache.Asked(begun, 0, null, null);
  }

  private static Cache.Asked report(long begun, String secret) {
    return new Cache.Asked(begun, 0, null, FakeBroker.revision(secret));
  }

  @Test
  void holdsAnAnswerToItsEndAndNoLonger() {
    Authorization answer = keep("a", 0);
    assertEquals(answer, cache.get(key("a")).use(60 * SECOND - 1, 0, null));
    assertNull(cache.get(key("a")).use(60 * SECOND, 0, null));
    assertNull(cache.get(key("b")));
  }

  @Test
  void givesNothingThatLastsShorterThanWasAsked() {
    keep("a", 0);
    assertNotNull(cache.get(key("a")).use(10 * SECOND, 49 * SECOND, null));
    assertNull(cache.get(key("a")).use(10 * SECOND, 50 * SECOND, null));
  }

  @Test
  void remembersEightOrigins() {
    Entry entry = new Entry(key("a"), "1", 0);
    entry.replace(answer("a", "s", 0));
    assertNull(entry.use(0, 0, ORIGIN));
    entry.allow(ORIGIN);
    assertNotNull(entry.use(0, 0, ORIGIN));
    for (int port = 1; port <= 7; port++) {
      entry.allow(URI.create("https://api.example:" + port));
    }
    assertNotNull(entry.use(0, 0, ORIGIN));
    entry.allow(URI.create("https://api.example:8"));
    assertNull(entry.use(0, 0, ORIGIN));
  }

  @Test
  void dropsTheLeastRecentlyUsed() {
    keep("a", 0);
    keep("b", SECOND);
    cache.get(key("a")).use(2 * SECOND, 0, null);
    keep("c", 3 * SECOND);
    assertNotNull(cache.get(key("a")));
    assertNull(cache.get(key("b")));
    assertEquals(List.of("+a", "+b", "-b", "+c"), heard);
  }

  @Test
  void keepsAnIdleEntryUntilItsNextValueIsDue() {
    keep("a", 0);
    Entry entry = cache.get(key("a"));
    cache.renew(entry, answer("a", "t", 290 * SECOND), 290 * SECOND);
    cache.sweep(310 * SECOND);
    assertNotNull(cache.get(key("a")));
    cache.sweep(320 * SECOND);
    assertNull(cache.get(key("a")));
    assertTrue(entry.isDropped());
    assertNull(entry.value());
  }

  @Test
  void takesNoNewValueForAnIdleEntry() {
    keep("a", 0);
    cache.renew(cache.get(key("a")), answer("a", "t", 0), 300 * SECOND);
    assertNull(cache.get(key("a")));
    assertEquals(List.of("+a", "-a"), heard);
  }

  @Test
  void letsGoOfWhatHasEnded() {
    keep("a", 0);
    cache.sweep(60 * SECOND);
    assertNull(cache.get(key("a")).value());
    assertEquals(0, cache.left(60 * SECOND).getCount());
  }

  @Test
  void keepsNoAnswerThatWasWithdrawnWhileItWasOnItsWay() {
    keep("a", 0);
    Entry entry = cache.get(key("a"));
    cache.withdraw(entry, 5 * SECOND, false);
    assertNull(entry.value());
    for (String secret : List.of("s", "other")) {
      assertNull(cache.keep(answer("a", secret, 6 * SECOND), question(4 * SECOND), 6 * SECOND));
      assertNull(entry.value());
    }
    assertNotNull(cache.keep(answer("a", "s", 7 * SECOND), question(6 * SECOND), 7 * SECOND));
    assertNotNull(entry.value());
  }

  @Test
  void notesAWithdrawalAlsoWhereNothingIsHeld() {
    keep("a", 0);
    cache.sweep(60 * SECOND);
    cache.withdraw(cache.get(key("a")), 65 * SECOND, false);
    assertNull(cache.keep(answer("a", "s", 66 * SECOND), question(64 * SECOND), 66 * SECOND));
  }

  @Test
  void keepsNoAnswerThatWasWithdrawnWithAnEntryThatIsGone() {
    keep("a", 0);
    Entry entry = cache.get(key("a"));
    cache.withdraw(entry, 5 * SECOND, false);
    cache.drop(entry);
    assertNull(cache.keep(answer("a", "s", 6 * SECOND), question(4 * SECOND), 6 * SECOND));
    assertNull(cache.get(key("a")));
    assertNotNull(cache.keep(answer("a", "s", 6 * SECOND), question(5 * SECOND), 6 * SECOND));
  }

  @Test
  void keepsTheAnswerToAReportThoughTheRejectionWithdrewAndNothingElse() {
    keep("a", 0);
    Entry entry = cache.get(key("a"));
    cache.withdraw(entry, 5 * SECOND, true);
    assertNull(cache.keep(answer("a", "b", 6 * SECOND), question(4 * SECOND), 6 * SECOND));
    assertNotNull(cache.keep(answer("a", "b", 6 * SECOND), report(4 * SECOND, "s"), 6 * SECOND));
    cache.withdraw(entry, 8 * SECOND, false);
    assertNull(cache.keep(answer("a", "c", 9 * SECOND), report(7 * SECOND, "b"), 9 * SECOND));
  }

  @Test
  void givesWhatTheBrokerSentMeanwhileIfThatSuffices() {
    keep("a", 0);
    Entry entry = cache.get(key("a"));
    Authorization sent = answer("a", "sent", 5 * SECOND);
    cache.renew(entry, sent, 5 * SECOND);
    Authorization late = answer("a", "late", 6 * SECOND);
    assertSame(sent, cache.keep(late, question(4 * SECOND), 6 * SECOND));
    assertNull(cache.keep(late, new Cache.Asked(4 * SECOND, 59 * SECOND, null, null), 6 * SECOND));
    assertSame(sent, entry.value());
    assertSame(late, cache.keep(late, report(4 * SECOND, "sent"), 6 * SECOND));
  }

  @Test
  void dropsWhatIsRefusedUnlessItWasReplaced() {
    keep("a", 0);
    Entry entry = cache.get(key("a"));
    cache.refuse(entry.key, report(0, "other"));
    assertFalse(entry.isDropped());
    cache.renew(entry, answer("a", "sent", 5 * SECOND), 5 * SECOND);
    cache.refuse(entry.key, question(4 * SECOND));
    assertFalse(entry.isDropped());
    cache.refuse(entry.key, report(4 * SECOND, "sent"));
    assertTrue(entry.isDropped());
  }

  @Test
  void refreshesOnceAndAWhileAfterAFailure() {
    keep("a", 0);
    Entry entry = cache.get(key("a"));
    Authorization held = entry.value();
    assertFalse(entry.beginRefresh(held, 29 * SECOND, false));
    assertFalse(entry.beginRefresh(held, 31 * SECOND, true));
    assertTrue(entry.beginRefresh(held, 31 * SECOND, false));
    assertFalse(entry.beginRefresh(held, 46 * SECOND, true));
    long failed = System.nanoTime();
    entry.endRefresh(BrokerException.of(Status.Code.UNAVAILABLE, "away"));
    assertFalse(entry.beginRefresh(held, failed, false));
    assertTrue(entry.beginRefresh(held, failed + SECOND, false));
  }

  @Test
  void keepsNothingAfterItsEnd() {
    keep("a", 0);
    cache.close();
    keep("b", 0);
    assertNull(cache.get(key("a")));
    assertNull(cache.get(key("b")));
  }
}
