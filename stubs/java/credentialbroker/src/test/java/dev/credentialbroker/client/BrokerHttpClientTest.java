package dev.credentialbroker.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import io.grpc.Status;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.net.http.HttpResponse.BodySubscribers;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

@Timeout(60)
class BrokerHttpClientTest {
  private FakeBroker broker;
  private FakeBackend backend;
  private FakeBackend elsewhere;
  private BrokerClient client;
  private BrokerHttpClient http;

  @BeforeEach
  void start() throws IOException {
    broker = new FakeBroker();
    backend = new FakeBackend();
    elsewhere = new FakeBackend();
    client = broker.client();
    http =
        BrokerHttpClient.of(
            HttpClient.newBuilder().followRedirects(HttpClient.Redirect.ALWAYS),
            client,
            backend.origin(),
            AuthorizationRequest.of("inference", "t"));
  }

  @AfterEach
  void stop() {
    client.close();
    broker.close();
    backend.close();
    elsewhere.close();
  }

  /** Sends a request, by one of the two ways to. */
  private HttpResponse<String> send(HttpRequest.Builder request, boolean async) throws Exception {
    return async
        ? http.sendAsync(request.build(), BodyHandlers.ofString()).join()
        : http.send(request.build(), BodyHandlers.ofString());
  }

  private HttpRequest.Builder post(BodyPublisher body) {
    return HttpRequest.newBuilder(backend.origin().resolve("/path")).POST(body);
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void attachesAllHeadersInThePlaceOfTheUsers(boolean async) throws Exception {
    HttpRequest.Builder request =
        HttpRequest.newBuilder(backend.origin())
            .header("Authorization", "mine")
            .header("X-Account", "mine")
            .header("x-kept", "yes");
    assertEquals(200, send(request, async).statusCode());
    FakeBackend.Received received = backend.received.get(0);
    assertEquals(List.of("secret-1"), received.values("Authorization"));
    assertEquals(List.of("account"), received.values("X-account"));
    assertEquals(List.of("yes"), received.values("X-kept"));
    assertEquals(backend.origin().toString(), broker.asked.get(0).getTargetUrl());
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void sendsNothingToAnotherOrigin(boolean async) {
    HttpRequest.Builder request = HttpRequest.newBuilder(elsewhere.origin());
    if (async) {
      CompletionException failed =
          assertThrows(CompletionException.class, () -> send(request, true));
      assertInstanceOf(OriginException.class, failed.getCause());
    } else {
      assertThrows(OriginException.class, () -> send(request, false));
    }
    assertEquals(0, elsewhere.received.size());
    assertEquals(0, broker.asked.size());
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void followsNoRedirect(boolean async) throws Exception {
    for (URI target : List.of(elsewhere.origin(), backend.origin())) {
      backend.location = target;
      backend.statuses.add(307);
      assertEquals(307, send(HttpRequest.newBuilder(backend.origin()), async).statusCode());
    }
    assertEquals(0, elsewhere.received.size());
    assertEquals(2, backend.received.size());
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void sendsOnceMoreAfterA401(boolean async) throws Exception {
    backend.statuses.add(401);
    assertEquals("200", send(post(BodyPublishers.ofString("body")), async).body());
    assertEquals("better-1", backend.received.get(1).values("Authorization").get(0));
    assertEquals("body", backend.received.get(1).body());
    assertEquals(FakeBroker.revision("secret-1"), broker.reported.get(0).getRevision());
    assertEquals(1, broker.asked.size());
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void sendsNoMoreThanTwice(boolean async) throws Exception {
    backend.statuses.addAll(List.of(401, 401, 200));
    assertEquals(401, send(post(BodyPublishers.ofString("body")), async).statusCode());
    assertEquals(2, backend.received.size());
    assertEquals(1, broker.reported.size());
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void reportsButSendsNoBodyAgainThatMayBeGone(boolean async) throws Exception {
    backend.statuses.add(401);
    BodyPublisher stream =
        BodyPublishers.fromPublisher(BodyPublishers.ofString("body", StandardCharsets.UTF_8));
    assertEquals(401, send(post(stream), async).statusCode());
    assertEquals(1, backend.received.size());
    assertEquals(1, broker.reported.size());
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void returnsThe401WhenNothingIsBetter(boolean async) throws Exception {
    broker.refusal = Status.FAILED_PRECONDITION;
    backend.statuses.add(401);
    assertEquals(401, send(post(BodyPublishers.ofString("body")), async).statusCode());
    assertEquals(1, backend.received.size());
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void returnsThe401WhenTheSecondAttemptFailsOnItsWay(boolean async) throws Exception {
    backend.statuses.addAll(List.of(401, FakeBackend.CUT_OFF, FakeBackend.CUT_OFF));
    HttpResponse<String> answer = send(post(BodyPublishers.ofString("body")), async);
    assertEquals(401, answer.statusCode());
    assertEquals("401", answer.body());
    assertEquals(1, broker.reported.size());
  }

  @Test
  void sendsNothingAgainThatWasCancelledMeanwhile() throws Exception {
    send(HttpRequest.newBuilder(backend.origin()), false);
    backend.statuses.add(401);
    broker.gate = new CountDownLatch(1);
    CompletableFuture<HttpResponse<String>> cancelled =
        http.sendAsync(post(BodyPublishers.ofString("body")).build(), BodyHandlers.ofString());
    while (broker.reported.isEmpty()) {
      TimeUnit.MILLISECONDS.sleep(1);
    }
    cancelled.cancel(true);
    broker.gate.countDown();
    TimeUnit.MILLISECONDS.sleep(300);
    assertEquals(2, backend.received.size());
  }

  @Test
  void closesThe401OfWhoIsInterruptedBeforeTheSecondAttempt() throws Exception {
    send(HttpRequest.newBuilder(backend.origin()), false);
    backend.statuses.add(401);
    broker.gate = new CountDownLatch(1);
    CountDownLatch closed = new CountDownLatch(1);
    AutoCloseable body = closed::countDown;
    Thread sending =
        new Thread(
            () -> {
              try {
                http.send(
                    HttpRequest.newBuilder(backend.origin()).build(),
                    answer -> BodySubscribers.replacing(body));
              } catch (IOException | InterruptedException expected) {
                // What becomes of the answer's body is what counts.
              }
            });
    sending.start();
    while (broker.reported.isEmpty()) {
      TimeUnit.MILLISECONDS.sleep(1);
    }
    sending.interrupt();
    assertTrue(closed.await(5, TimeUnit.SECONDS));
    sending.join();
  }

  @Test
  void endsARequestThatIsCancelledAsTheJdkDoes() throws Exception {
    try (ServerSocket silent = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
      URI origin = URI.create("http://127.0.0.1:" + silent.getLocalPort());
      CompletableFuture<String> body =
          BrokerHttpClient.of(client, origin, AuthorizationRequest.of("inference", "t"))
              .sendAsync(HttpRequest.newBuilder(origin).build(), BodyHandlers.ofString())
              .thenApply(HttpResponse::body);
      try (Socket connection = silent.accept()) {
        connection.setSoTimeout(10_000);
        InputStream arrives = connection.getInputStream();
        assertEquals('G', arrives.read());
        body.cancel(true);
        arrives.transferTo(OutputStream.nullOutputStream());
      }
    }
  }

  @Test
  void asksForTheThreadOfARequest() throws Exception {
    HttpRequest request = HttpRequest.newBuilder(backend.origin()).build();
    http.withThread("other").send(request, BodyHandlers.ofString());
    assertEquals("other", broker.asked.get(0).getThreadId());
  }

  @Test
  void leavesOtherAnswersAlone() throws Exception {
    backend.statuses.add(403);
    assertEquals(403, send(HttpRequest.newBuilder(backend.origin()), false).statusCode());
    assertEquals(0, broker.reported.size());
  }

  @Test
  void closesTheClientThatSends() {
    assumeTrue(AutoCloseable.class.isAssignableFrom(HttpClient.class), "from Java 21 on");
    http.close();
    assertThrows(IOException.class, () -> send(HttpRequest.newBuilder(backend.origin()), false));
  }

  @Test
  void leavesTheThreadAsTheJdkDoesWhenItIsInterrupted() {
    Thread.currentThread().interrupt();
    assertThrows(
        InterruptedException.class, () -> send(HttpRequest.newBuilder(backend.origin()), false));
    assertEquals(false, Thread.interrupted());
  }
}
