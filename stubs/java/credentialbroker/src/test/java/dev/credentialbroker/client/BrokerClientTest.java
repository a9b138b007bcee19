package dev.credentialbroker.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.credentialbroker.v1.TaskKind;
import io.grpc.Context;
import java.net.URI;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Map;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

@Timeout(60)
class BrokerClientTest {
  private static final AuthorizationRequest REQUEST = AuthorizationRequest.of("inference", "t");

  private FakeBroker broker;
  private BrokerClient client;

  @BeforeEach
  void start() throws Exception {
    broker = new FakeBroker();
    client = broker.client();
  }

  @AfterEach
  void stop() throws Exception {
    client.close();
    broker.close();
  }

  private void untilAsked() throws InterruptedException {
    while (broker.asked.isEmpty()) {
      TimeUnit.MILLISECONDS.sleep(1);
    }
  }

  @Test
  void answersFromMemory() {
    Authorization first = client.authorization("inference", "t");
    assertSame(first, client.authorization("inference", "t"));
    assertSame(first, client.authorizationAsync(REQUEST).join());
    assertEquals(1, broker.asked.size());
  }

  @Test
  void showsNoSecret() {
    Authorization authorization = client.authorization("inference", "t");
    BrokerConnection connection = client.connection("inference", "t");
    String all = client + " " + authorization + authorization.headers() + connection;
    assertTrue(all.contains("authorization"));
    assertFalse(all.contains("secret-1"));
  }

  @Test
  void interruptsOneAndNotTheOthers() throws Exception {
    broker.gate = new CountDownLatch(1);
    CompletableFuture<Authorization> other = new CompletableFuture<>();
    CompletableFuture<Boolean> interrupted = new CompletableFuture<>();
    Thread waiting =
        new Thread(
            () -> {
              try {
                client.authorization("inference", "t");
              } catch (CancellationException e) {
                interrupted.complete(Thread.currentThread().isInterrupted());
              }
            });
    waiting.start();
    untilAsked();
    client.authorizationAsync(REQUEST).thenAccept(other::complete);
    waiting.interrupt();
    assertTrue(interrupted.get(5, TimeUnit.SECONDS));
    assertFalse(other.isDone());
    broker.gate.countDown();
    other.get(5, TimeUnit.SECONDS);
    assertEquals(1, broker.asked.size());
  }

  @Test
  void outlivesTheGrpcContextOfWhoAskedFirst() throws Exception {
    broker.gate = new CountDownLatch(1);
    Context.CancellableContext serving = Context.current().withCancellation();
    CompletableFuture<Authorization> answer =
        serving.call(() -> client.authorizationAsync(REQUEST));
    untilAsked();
    serving.cancel(null);
    broker.gate.countDown();
    answer.get(5, TimeUnit.SECONDS);
  }

  @Test
  void lastsNoLongerThanTheGrpcDeadlineOfWhoAsks() throws Exception {
    broker.gate = new CountDownLatch(1);
    ScheduledExecutorService timer = Executors.newSingleThreadScheduledExecutor();
    Context.CancellableContext serving =
        Context.current().withDeadlineAfter(200, TimeUnit.MILLISECONDS, timer);
    BrokerException late =
        assertThrows(
            BrokerException.class, () -> serving.call(() -> client.authorization(REQUEST)));
    assertEquals(io.grpc.Status.Code.DEADLINE_EXCEEDED, late.code());
    serving.cancel(null);
    timer.shutdownNow();
  }

  @Test
  void hasNoMoreTimeForATaskThanTheGrpcDeadlineOfWhoAsks() throws Exception {
    ScheduledExecutorService timer = Executors.newSingleThreadScheduledExecutor();
    Context.CancellableContext late =
        Context.current().withDeadlineAfter(-1, TimeUnit.MILLISECONDS, timer);
    BrokerException failed =
        assertThrows(BrokerException.class, () -> late.call(() -> client.registerTask("t")));
    assertEquals(io.grpc.Status.Code.DEADLINE_EXCEEDED, failed.code());
    late.cancel(null);
    timer.shutdownNow();
  }

  @Test
  void failsWhoWaitsWhenItIsClosed() throws Exception {
    broker.gate = new CountDownLatch(1);
    CompletableFuture<Authorization> waiting = client.authorizationAsync(REQUEST);
    untilAsked();
    client.close();
    client.close();
    ExecutionException failed =
        assertThrows(ExecutionException.class, () -> waiting.get(5, TimeUnit.SECONDS));
    assertInstanceOf(IllegalStateException.class, failed.getCause());
    assertThrows(IllegalStateException.class, () -> client.authorization("inference", "t"));
    assertThrows(IllegalStateException.class, () -> client.registerTask("t"));
  }

  @Test
  void letsNobodyBeHeldUpByWhatAnotherHangsOnAnAnswer() throws Exception {
    broker.gate = new CountDownLatch(1);
    CountDownLatch never = new CountDownLatch(1);
    CompletableFuture<Void> slow =
        client
            .authorizationAsync(REQUEST)
            .thenAccept(
                answer -> {
                  try {
                    never.await();
                  } catch (InterruptedException e) {
                    Thread.currentThread().interrupt();
                  }
                });
    CompletableFuture<Authorization> other = client.authorizationAsync(REQUEST);
    CompletableFuture<Authorization> waiting =
        CompletableFuture.supplyAsync(
            () -> client.authorization(REQUEST), task -> new Thread(task).start());
    untilAsked();
    broker.gate.countDown();
    other.get(5, TimeUnit.SECONDS);
    waiting.get(5, TimeUnit.SECONDS);
    assertFalse(slow.isDone());
    never.countDown();
    slow.get(5, TimeUnit.SECONDS);
    assertEquals(1, broker.asked.size());
  }

  @Test
  void keepsWhatIsHeldWhenAReportIsNotOne() {
    Authorization held = client.authorization("inference", "t");
    broker.refusal = io.grpc.Status.INVALID_ARGUMENT;
    assertThrows(BrokerException.class, () -> client.reportRejected(held, "x"));
    assertSame(held, client.authorization("inference", "t"));
    broker.refusal = io.grpc.Status.PERMISSION_DENIED;
    assertThrows(BrokerException.class, () -> client.reportRejected(held, "x"));
    client.authorization("inference", "t");
    assertEquals(2, broker.asked.size());
  }

  @Test
  void asksByItselfForWhatAConnectionStandsOn() throws Exception {
    broker.lasts = Duration.ofMillis(600);
    try (BrokerConnection connection = client.connection("inference", "t")) {
      broker.lasts = Duration.ofSeconds(60);
      broker.tag = "another";
      connection.whenChanged().get(10, TimeUnit.SECONDS);
      assertTrue(connection.changed());
    }
    assertEquals(2, broker.asked.size());
  }

  @Test
  void asksForAConnectionToWhatHasEnded() throws Exception {
    broker.lasts = Duration.ofMillis(400);
    try (BrokerConnection connection = client.connection("inference", "t")) {
      broker.failure = io.grpc.Status.INTERNAL;
      while (client.state().held() > 0) {
        TimeUnit.MILLISECONDS.sleep(10);
      }
      broker.tag = "another";
      broker.failure = null;
      connection.whenChanged().get(10, TimeUnit.SECONDS);
    }
  }

  @Test
  void asksForAConnectionWithAllThatIsSaid() {
    URI target = URI.create("https://api.example/path");
    AuthorizationRequest request =
        REQUEST.withIdentity("agents").withTargetUrl(target).withMinValidity(Duration.ofSeconds(9));
    try (BrokerConnection connection = client.connection(request)) {
      assertFalse(connection.changed());
    }
    assertEquals("agents", broker.asked.get(0).getIdentity());
    assertEquals(target.toString(), broker.asked.get(0).getTargetUrl());
    assertEquals(9, broker.asked.get(0).getMinValidity().getSeconds());
  }

  @Test
  void holdsNothingOfATaskThatEnded() {
    client.authorization("inference", "t");
    client.endTask("t");
    assertEquals(0, client.state().held());
    client.authorization("inference", "t");
    assertEquals(2, broker.asked.size());
  }

  @Test
  void holdsOnToATaskThatCouldNotBeEnded() {
    Authorization held = client.authorization("inference", "t");
    broker.refusal = io.grpc.Status.INTERNAL;
    assertThrows(BrokerException.class, () -> client.endTask("t"));
    assertSame(held, client.authorization("inference", "t"));
  }

  @Test
  void takesTheClientsOwnIdentityForTasksOfNone() {
    try (BrokerClient agents =
        BrokerClient.builder().address(broker.address).watch(false).identity("agents").build()) {
      agents.registerTask("t", "");
      agents.endTask("t", "");
    }
    assertEquals("agents", broker.registered.get(0).getIdentity());
    assertEquals("agents", broker.ended.get(0).getIdentity());
  }

  @Test
  void registersWorkInTheBackgroundWithoutAThread() {
    client.registerTask("");
    client.registerTask("t");
    assertEquals(TaskKind.TASK_KIND_BACKGROUND, broker.registered.get(0).getKind());
    assertEquals("t", broker.registered.get(1).getThreadId());
  }

  @Test
  void takesAnEmptyTextAsNotGiven() {
    new BrokerClient.Builder(Map.of("CREDENTIAL_BROKER_ADDRESS", broker.address))
        .address("")
        .caFile(Path.of(""))
        .certificateFile(Path.of(""))
        .privateKeyFile(Path.of(""))
        .serverName("")
        .caFile(null)
        .certificateFile(null)
        .privateKeyFile(null)
        .serverName(null)
        .build()
        .close();
  }

  @Test
  void cutsWhatTheBackendSaidBetweenCharacters() {
    String smile = new String(Character.toChars(0x1F600));
    assertEquals("x".repeat(256), Questions.cut("x".repeat(300)));
    assertEquals("x".repeat(254), Questions.cut("x".repeat(254) + smile + "y"));
    assertEquals("x".repeat(252) + smile, Questions.cut("x".repeat(252) + smile + "y"));
    assertEquals("\u20ac".repeat(85), Questions.cut("\u20ac".repeat(86)));
    client.reportRejected(client.authorization("inference", "t"), "\u00e9".repeat(200));
    assertEquals("\u00e9".repeat(128), broker.reported.get(0).getDetail());
  }

  @Test
  void canBeClosedByWhatWaitsForIt() throws Exception {
    CompletableFuture<Void> closed =
        client.authorizationAsync(REQUEST).thenAccept(answer -> client.close());
    closed.get(10, TimeUnit.SECONDS);
  }

  @Test
  void leavesNoThreadBehind() throws Exception {
    for (int i = 0; i < 100; i++) {
      try (BrokerClient one = BrokerClient.builder().address(broker.address).build()) {
        one.authorization("inference", "t");
      }
    }
    client.close();
    long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(10);
    while (threads() > 0 && System.nanoTime() < deadline) {
      TimeUnit.MILLISECONDS.sleep(10);
    }
    assertEquals(0, threads());
  }

  private static long threads() {
    return Thread.getAllStackTraces().keySet().stream()
        .filter(thread -> thread.getName().startsWith("credential-broker"))
        .count();
  }

  @Test
  void startsNoThreadOfItsOwnThatKeepsTheJvm() {
    client.authorization("inference", "t");
    assertTrue(
        Thread.getAllStackTraces().keySet().stream()
            .filter(thread -> thread.getName().startsWith("credential-broker"))
            .allMatch(Thread::isDaemon));
  }

  @Test
  void findsTheBrokerByTheEnvironment() {
    Map<String, String> environment = Map.of("CREDENTIAL_BROKER_ADDRESS", broker.address);
    try (BrokerClient found = new BrokerClient.Builder(environment).watch(false).build()) {
      found.authorization("inference", "t");
    }
    assertEquals(1, broker.asked.size());
  }

  @Test
  void refusesPlaintextToAnotherHost() {
    BrokerClient.Builder other = new BrokerClient.Builder(Map.of()).address("192.0.2.1:1");
    assertThrows(IllegalArgumentException.class, other::build);
    other.plaintext(true).build().close();
    new BrokerClient.Builder(Map.of("CREDENTIAL_BROKER_PLAINTEXT", "1"))
        .address("192.0.2.1:1")
        .build()
        .close();
  }

  @Test
  void refusesHalfOfWhatTlsNeeds() {
    Path file = Path.of("/nonexistent");
    BrokerClient.Builder builder = new BrokerClient.Builder(Map.of());
    assertThrows(IllegalArgumentException.class, builder.certificateFile(file)::build);
    assertThrows(IllegalArgumentException.class, builder.privateKeyFile(file)::build);
    IllegalArgumentException missing =
        assertThrows(IllegalArgumentException.class, builder.caFile(file)::build);
    assertTrue(missing.getMessage().contains("/nonexistent"));
  }

  @Test
  void takesTimesThatMakeSenseOnly() {
    BrokerClient.Builder builder = BrokerClient.builder();
    assertThrows(IllegalArgumentException.class, () -> builder.timeout(Duration.ZERO));
    assertThrows(IllegalArgumentException.class, () -> builder.cacheSize(0));
    assertThrows(IllegalArgumentException.class, () -> REQUEST.withTimeout(Duration.ofSeconds(-1)));
    assertThrows(
        IllegalArgumentException.class, () -> REQUEST.withMinValidity(Duration.ofSeconds(-1)));
  }
}
