package dev.credentialbroker.client.okhttp;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertThrows;

import dev.credentialbroker.client.AuthorizationRequest;
import dev.credentialbroker.client.BrokerClient;
import dev.credentialbroker.client.FakeBackend;
import dev.credentialbroker.client.FakeBroker;
import dev.credentialbroker.client.OriginException;
import io.grpc.Status;
import java.io.IOException;
import java.net.URI;
import java.util.Collections;
import java.util.List;
import okhttp3.HttpUrl;
import okhttp3.MediaType;
import okhttp3.OkHttpClient;
import okhttp3.Request;
import okhttp3.RequestBody;
import okhttp3.Response;
import okio.BufferedSink;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

@Timeout(60)
class BrokerOkHttpTest {
  private FakeBroker broker;
  private FakeBackend backend;
  private FakeBackend elsewhere;
  private BrokerClient client;
  private OkHttpClient http;

  @BeforeEach
  void start() throws IOException {
    broker = new FakeBroker();
    backend = new FakeBackend();
    elsewhere = new FakeBackend();
    client = broker.client();
    http =
        BrokerOkHttp.addTo(
                new OkHttpClient.Builder(),
                client,
                HttpUrl.get(backend.origin()),
                AuthorizationRequest.of("inference", "t"))
            .build();
  }

  @AfterEach
  void stop() {
    client.close();
    broker.close();
    backend.close();
    elsewhere.close();
    http.dispatcher().executorService().shutdown();
    http.connectionPool().evictAll();
  }

  private static Request.Builder to(URI address) {
    return new Request.Builder().url(HttpUrl.get(address));
  }

  private int send(Request.Builder request) throws IOException {
    try (Response answer = http.newCall(request.build()).execute()) {
      return answer.code();
    }
  }

  @Test
  void isTestedWithTheVersionThatTheBuildNames() throws Exception {
    // Not by name, which javac would replace by the version that it compiles with.
    Object version = Class.forName("okhttp3.OkHttp").getField("VERSION").get(null);
    assertEquals(System.getProperty("okhttp.version"), version);
  }

  @Test
  void attachesAllHeadersInThePlaceOfTheUsers() throws IOException {
    int status =
        send(
            to(backend.origin())
                .header("Authorization", "mine")
                .header("X-Account", "mine")
                .header("x-kept", "yes"));
    assertEquals(200, status);
    FakeBackend.Received received = backend.received.get(0);
    assertEquals(List.of("secret-1"), received.values("Authorization"));
    assertEquals(List.of("account"), received.values("X-account"));
    assertEquals(List.of("yes"), received.values("X-kept"));
    assertEquals(HttpUrl.get(backend.origin()).toString(), broker.asked.get(0).getTargetUrl());
  }

  @Test
  void returnsThe401WhenTheSecondAttemptFailsOnItsWay() throws IOException {
    backend.statuses.add(401);
    // More often than OkHttp tries by itself.
    backend.statuses.addAll(Collections.nCopies(10, FakeBackend.CUT_OFF));
    try (Response answer = http.newCall(to(backend.origin()).build()).execute()) {
      assertEquals(401, answer.code());
      assertEquals("401", answer.body().string());
    }
    assertEquals(1, broker.reported.size());
  }

  @Test
  void sendsNothingToAnotherOrigin() {
    assertThrows(OriginException.class, () -> send(to(elsewhere.origin())));
    assertEquals(0, elsewhere.received.size());
    assertEquals(0, broker.asked.size());
  }

  @ParameterizedTest
  @ValueSource(ints = {301, 302, 303, 307, 308})
  void followsARedirectWithoutAnyHeader(int status) throws IOException {
    for (FakeBackend target : List.of(elsewhere, backend)) {
      backend.received.clear();
      backend.location = target.origin();
      backend.statuses.add(status);
      assertEquals(200, send(to(backend.origin())));
      FakeBackend.Received second = target.received.get(target == backend ? 1 : 0);
      assertEquals(List.of(), second.values("Authorization"));
      assertEquals(List.of(), second.values("X-account"));
    }
  }

  @Test
  void asksForWhatARequestIsTaggedWith() throws IOException {
    AuthorizationRequest own = AuthorizationRequest.of("inference", "other");
    send(to(backend.origin()).tag(AuthorizationRequest.class, own));
    assertEquals("other", broker.asked.get(0).getThreadId());
  }

  @Test
  void reportsNo401OfWhereARedirectLed() throws IOException {
    backend.location = elsewhere.origin();
    backend.statuses.add(302);
    elsewhere.statuses.add(401);
    assertEquals(401, send(to(backend.origin())));
    assertEquals(0, broker.reported.size());
  }

  @Test
  void sendsOnceMoreAfterA401() throws IOException {
    backend.statuses.add(401);
    assertEquals(200, send(to(backend.origin()).post(RequestBody.create("body", null))));
    assertEquals(List.of("better-1"), backend.received.get(1).values("Authorization"));
    assertEquals("body", backend.received.get(1).body());
    assertEquals(FakeBroker.revision("secret-1"), broker.reported.get(0).getRevision());
  }

  @Test
  void sendsNoMoreThanTwice() throws IOException {
    backend.statuses.addAll(List.of(401, 401, 200));
    assertEquals(401, send(to(backend.origin())));
    assertEquals(2, backend.received.size());
    assertEquals(1, broker.reported.size());
  }

  @Test
  void reportsButSendsNoOneShotBodyAgain() throws IOException {
    backend.statuses.add(401);
    RequestBody oneShot =
        new RequestBody() {
          @Override
          public MediaType contentType() {
            return null;
          }

          @Override
          public boolean isOneShot() {
            return true;
          }

          @Override
          public void writeTo(BufferedSink sink) throws IOException {
            sink.writeUtf8("body");
          }
        };
    assertEquals(401, send(to(backend.origin()).post(oneShot)));
    assertEquals(1, backend.received.size());
    assertEquals(1, broker.reported.size());
  }

  @Test
  void returnsThe401WhenNothingIsBetter() throws IOException {
    broker.refusal = Status.FAILED_PRECONDITION;
    backend.statuses.add(401);
    assertEquals(401, send(to(backend.origin())));
    assertEquals(1, backend.received.size());
  }

  @Test
  void failsAsOkHttpExpectsWhenTheClientCannot() {
    broker.close();
    client.close();
    IOException failed = assertThrows(IOException.class, () -> send(to(backend.origin())));
    assertInstanceOf(IllegalStateException.class, failed.getCause());
    assertEquals(0, backend.received.size());
  }
}
