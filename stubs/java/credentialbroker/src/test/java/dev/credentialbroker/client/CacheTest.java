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
  private Runnable whenAdded = () -> {};
  private final Cache cache =
      new Cache(
          2,
          300 * SECOND,
          new Cache.Listener() {
            @Override
            public void added(Entry entry) {
              heard.add("+" + entry.key.thread());
              whenAdded.run();
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
    cache.keep(ask(thread), answer, now);
    return answer;
  }

  private Asked ask(Asked asked) {
    cache.asking(asked);
    return asked;
  }

  private Asked ask(String thread) {
    return ask(Asked.question(key(thread), 0, null));
  }

  private Asked report(String secret) {
    return ask(Asked.report(key("a"), FakeBroker.revision(secret)));
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
    List<Asked> before = List.of(ask("a"), ask("a"));
    Asked ofAnother = ask("b");
    cache.withdraw(entry, false);
    Asked after = ask("a");
    assertNull(entry.value());
    assertNull(cache.keep(before.get(0), answer("a", "s", 0), 0));
    assertNull(cache.keep(before.get(1), answer("a", "other", 0), 0));
    assertNotNull(cache.keep(ofAnother, answer("b", "s", 0), 0));
    assertNull(entry.value());
    assertNotNull(cache.keep(after, answer("a", "s", 0), 0));
    assertNotNull(entry.value());
  }

  @Test
  void notesAWithdrawalAlsoWhereNothingIsHeld() {
    keep("a", 0);
    cache.sweep(60 * SECOND);
    Asked asked = ask("a");
    cache.withdraw(cache.get(key("a")), false);
    assertNull(cache.keep(asked, answer("a", "s", 66 * SECOND), 66 * SECOND));
  }

  @Test
  void keepsNoAnswerThatWasWithdrawnWithAnEntryThatIsGone() {
    keep("a", 0);
    Entry entry = cache.get(key("a"));
    Asked before = ask("a");
    cache.withdraw(entry, false);
    cache.drop(entry);
    keep("a", 0);
    assertNull(cache.keep(before, answer("a", "s", 0), 0));
    assertNotNull(cache.get(key("a")).value());
  }

  @Test
  void keepsTheAnswerToAReportThoughTheRejectionWithdrewAndNothingElse() {
    keep("a", 0);
    Entry entry = cache.get(key("a"));
    Asked question = ask("a");
    Asked first = report("s");
    cache.withdraw(entry, true);
    assertNull(cache.keep(question, answer("a", "b", 0), 0));
    assertNotNull(cache.keep(first, answer("a", "b", 0), 0));
    Asked second = report("b");
    cache.withdraw(entry, false);
    assertNull(cache.keep(second, answer("a", "c", 0), 0));
  }

  @Test
  void letsNothingThatWasAskedBeforeBringBackWhatWasReported() {
    keep("a", 0);
    Asked question = ask("a");
    Asked longer = ask(Asked.question(key("a"), 60 * SECOND, null));
    Authorization better = answer("a", "better", 0);
    assertSame(better, cache.keep(report("s"), better, 0));
    assertSame(better, cache.keep(question, answer("a", "s", 0), 0));
    assertNull(cache.keep(longer, answer("a", "s", 0), 0));
    assertSame(better, cache.get(key("a")).value());
  }

  @Test
  void letsNothingThatWasAskedBeforeBringBackWhatWasRefused() {
    keep("a", 0);
    Asked question = ask("a");
    Asked ofAnother = ask("b");
    cache.refuse(report("s"));
    assertNull(cache.keep(question, answer("a", "s", 0), 0));
    assertNotNull(cache.keep(ofAnother, answer("b", "s", 0), 0));
    assertNull(cache.get(key("a")));
  }

  @Test
  void endsAThreadOfOneIdentityInEveryScope() {
    keep("a", 0);
    keep("b", 0);
    Entry ended = cache.get(key("a"));
    Key otherScope = new Key("", "control_plane", "a");
    Asked inOtherScope = ask(Asked.question(otherScope, 0, null));
    Asked ofAnother = ask(Asked.question(new Key("another", "inference", "a"), 0, null));
    Asked report = report("s");
    cache.endThread("", "a");
    assertTrue(ended.isDropped());
    assertNotNull(cache.get(key("b")));
    assertEquals(List.of("+a", "+b", "-a"), heard);
    assertNull(cache.keep(inOtherScope, answer("a", "s", 0), 0));
    assertNull(cache.keep(report, answer("a", "better", 0), 0));
    assertNull(cache.get(otherScope));
    assertNotNull(cache.keep(ofAnother, answer("a", "s", 0), 0));
  }

  @Test
  void givesNoAnswerWhoseThreadEndedWhileTheStreamWasOpenedForIt() {
    whenAdded = () -> cache.endThread("", "a");
    assertNull(cache.keep(ask("a"), answer("a", "s", 0), 0));
    assertNull(cache.get(key("a")));
  }

  @Test
  void givesWhatTheBrokerSentMeanwhileIfThatSuffices() {
    keep("a", 0);
    Entry entry = cache.get(key("a"));
    Asked any = ask("a");
    Asked longer = ask(Asked.question(entry.key, 59 * SECOND, null));
    Asked report = report("sent");
    Authorization sent = answer("a", "sent", 5 * SECOND);
    cache.renew(entry, sent, 5 * SECOND);
    Authorization late = answer("a", "late", 6 * SECOND);
    assertSame(sent, cache.keep(any, late, 6 * SECOND));
    assertNull(cache.keep(longer, late, 6 * SECOND));
    assertSame(sent, entry.value());
    assertSame(late, cache.keep(report, late, 6 * SECOND));
  }

  @Test
  void dropsWhatIsRefusedUnlessItWasReplaced() {
    keep("a", 0);
    Entry entry = cache.get(key("a"));
    cache.refuse(report("other"));
    assertFalse(entry.isDropped());
    Asked question = ask("a");
    Asked report = report("sent");
    cache.renew(entry, answer("a", "sent", 5 * SECOND), 5 * SECOND);
    cache.refuse(question);
    assertFalse(entry.isDropped());
    cache.refuse(report);
    assertTrue(entry.isDropped());
  }

  @Test
  void forgetsOriginsWithAWithdrawalAndWithTheBackend() {
    keep("a", 0);
    Entry entry = cache.get(key("a"));
    entry.allow(ORIGIN);
    cache.renew(entry, answer("a", "next", 0), 0);
    assertNotNull(entry.use(0, 0, ORIGIN));
    cache.withdraw(entry, false);
    cache.renew(entry, answer("a", "next", 0), 0);
    assertNull(entry.use(0, 0, ORIGIN));
    entry.allow(ORIGIN);
    entry.expire(60 * SECOND);
    cache.renew(entry, ofAnotherBackend("a"), 0);
    assertNull(entry.use(0, 0, ORIGIN));
  }

  private static Authorization ofAnotherBackend(String thread) {
    return Authorization.of(
        key(thread), FakeBroker.answer("s").toBuilder().setConnectionTag("another").build(), 0);
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
