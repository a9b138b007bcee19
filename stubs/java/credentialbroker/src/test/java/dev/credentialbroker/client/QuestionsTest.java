package dev.credentialbroker.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import io.grpc.Status;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

@Timeout(60)
class QuestionsTest {
  private static final long TIMEOUT = TimeUnit.SECONDS.toNanos(10);
  private static final Key KEY = new Key("", "inference", "t");

  private final Cache cache =
      new Cache(
          9,
          TIMEOUT,
          new Cache.Listener() {
            @Override
            public void added(Entry entry) {}

            @Override
            public void dropped(Entry entry) {}
          });
  private FakeBroker broker;
  private BrokerChannel channel;
  private Calls calls;
  private Questions questions;

  @BeforeEach
  void start() throws Exception {
    broker = new FakeBroker();
    Presence presence = new Presence(cache);
    channel = new BrokerChannel(Address.parse(broker.address), null, null, presence);
    calls = new Calls(channel, presence, TIMEOUT);
    questions = new Questions(calls, new Flights(channel, TIMEOUT), cache);
  }

  @AfterEach
  void stop() {
    channel.close();
    broker.close();
  }

  /** What is noted of a question goes after its answer, on the thread that brought that. */
  private void untilNothingIsAsked() throws InterruptedException {
    while (cache.asked() > 0) {
      TimeUnit.MILLISECONDS.sleep(1);
    }
  }

  @Test
  void forgetsAQuestionOnceItIsAnswered() throws Exception {
    broker.gate = new CountDownLatch(1);
    CompletableFuture<Authorization> answer = questions.askAgain(KEY);
    assertEquals(1, cache.asked());
    broker.gate.countDown();
    Authorization held = answer.join();
    untilNothingIsAsked();
    questions.report(held, "why").join();
    untilNothingIsAsked();
  }

  @Test
  void forgetsAQuestionThatFails() throws Exception {
    broker.failure = Status.INTERNAL;
    assertThrows(CompletionException.class, questions.askAgain(KEY)::join);
    untilNothingIsAsked();
    calls.close();
    assertThrows(CompletionException.class, questions.askAgain(KEY)::join);
    untilNothingIsAsked();
  }

  @Test
  void forgetsAQuestionThatNobodyWaitsForAnyMore() throws Exception {
    broker.gate = new CountDownLatch(1);
    questions.askAgain(KEY).cancel(false);
    untilNothingIsAsked();
  }
}
