package dev.credentialbroker.client;

import java.io.IOException;
import java.net.Authenticator;
import java.net.CookieHandler;
import java.net.ProxySelector;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandler;
import java.net.http.HttpResponse.PushPromiseHandler;
import java.time.Duration;
import java.util.HashSet;
import java.util.Locale;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.Executor;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLParameters;

/**
 * An {@link HttpClient} whose requests to one origin carry the broker's headers.
 *
 * <p>After a 401 it reports the headers and sends the request once more with better ones, if its
 * body can be sent again: if its length is known beforehand. The 401 is the answer when the broker
 * has nothing better, or the second attempt fails on its way. The second attempt goes by the same
 * connection where the handler reads a 401 whole, as those for texts and bytes do. A request to
 * another origin fails with {@link OriginException}, before anything is sent. Redirects are never
 * followed, whatever the builder says: they are the answer.
 */
public final class BrokerHttpClient extends HttpClient {
  private static final String DETAIL = "401 to java.net.http";

  private final HttpClient client;
  private final BrokerClient broker;
  private final URI origin;
  private final AuthorizationRequest wanted;

  private BrokerHttpClient(
      HttpClient client, BrokerClient broker, URI origin, AuthorizationRequest wanted) {
    this.client = client;
    this.broker = broker;
    this.origin = origin;
    this.wanted = wanted.withTargetUrl(origin);
  }

  /**
   * Makes a client for one origin.
   *
   * @param origin the backend's, as {@code https://api.example.com}; only scheme, host and port
   *     count
   * @param wanted what to ask the broker for
   */
  public static BrokerHttpClient of(BrokerClient broker, URI origin, AuthorizationRequest wanted) {
    return of(newBuilder(), broker, origin, wanted);
  }

  /**
   * Makes a client for one origin, with options of HTTP.
   *
   * @param builder makes the client that sends; its redirect policy is set to never
   * @param origin the backend's, as {@code https://api.example.com}; only scheme, host and port
   *     count
   * @param wanted what to ask the broker for
   */
  public static BrokerHttpClient of(
      HttpClient.Builder builder, BrokerClient broker, URI origin, AuthorizationRequest wanted) {
    HttpClient client = builder.followRedirects(Redirect.NEVER).build();
    return new BrokerHttpClient(client, broker, Origin.of(origin), wanted);
  }

  /** The same, on the same connections, for the requests of another thread. */
  public BrokerHttpClient withThread(String thread) {
    return new BrokerHttpClient(client, broker, origin, wanted.withThread(thread));
  }

  @Override
  public <T> HttpResponse<T> send(HttpRequest request, BodyHandler<T> handler)
      throws IOException, InterruptedException {
    checkOrigin(request);
    try {
      Authorization first = broker.authorization(wanted);
      HttpResponse<T> answer = client.send(with(first, request), handler);
      if (answer.statusCode() != 401) {
        return answer;
      }
      HttpResponse<T> second;
      try {
        Authorization better = better(first);
        if (better == null || !canSendAgain(request)) {
          return answer;
        }
        second = client.send(with(better, request), handler);
      } catch (IOException onItsWay) {
        // The backend has answered: that this answer was not bettered makes no error of it.
        return answer;
      } catch (InterruptedException | RuntimeException abandoned) {
        discard(answer);
        throw abandoned;
      }
      discard(answer);
      return second;
    } catch (CancellationException e) {
      // Sending is interrupted as the JDK does it: with the flag cleared.
      if (Thread.interrupted()) {
        throw new InterruptedException(e.getMessage());
      }
      throw e;
    }
  }

  @Override
  public <T> CompletableFuture<HttpResponse<T>> sendAsync(
      HttpRequest request, BodyHandler<T> handler) {
    return sendAsync(request, handler, null);
  }

  @Override
  public <T> CompletableFuture<HttpResponse<T>> sendAsync(
      HttpRequest request, BodyHandler<T> handler, PushPromiseHandler<T> pushes) {
    try {
      checkOrigin(request);
    } catch (OriginException e) {
      return CompletableFuture.failedFuture(e);
    }
    Sending<HttpResponse<T>> sending = new Sending<>();
    sending
        .step(broker.authorizationAsync(wanted))
        .thenCompose(
            first ->
                sending
                    .step(client.sendAsync(with(first, request), handler, pushes))
                    .thenCompose(
                        answer -> answered(sending, first, request, answer, handler, pushes)))
        .whenComplete(
            (answer, failure) -> {
              if (failure != null) {
                sending.completeExceptionally(failure);
              } else if (!sending.complete(answer)) {
                discard(answer);
              }
            });
    return sending;
  }

  private <T> CompletableFuture<HttpResponse<T>> answered(
      Sending<HttpResponse<T>> sending,
      Authorization first,
      HttpRequest request,
      HttpResponse<T> answer,
      BodyHandler<T> handler,
      PushPromiseHandler<T> pushes) {
    if (answer.statusCode() != 401) {
      return CompletableFuture.completedFuture(answer);
    }
    CompletableFuture<Authorization> better =
        // The answer of the backend stands: a failure of the report is none of the request.
        sending
            .step(broker.reportRejectedAsync(first, DETAIL))
            .exceptionally(refusedOrClosed -> null);
    return better.thenCompose(
        found -> {
          if (found == null || !canSendAgain(request)) {
            return CompletableFuture.completedFuture(answer);
          }
          return sending
              .step(client.sendAsync(with(found, request), handler, pushes))
              .handle(
                  (second, failure) -> {
                    Throwable cause =
                        failure instanceof CompletionException ? failure.getCause() : failure;
                    if (cause instanceof IOException) {
                      return CompletableFuture.completedFuture(answer);
                    }
                    discard(answer);
                    return cause == null
                        ? CompletableFuture.completedFuture(second)
                        : CompletableFuture.<HttpResponse<T>>failedFuture(cause);
                  })
              .thenCompose(answered -> answered);
        });
  }

  private Authorization better(Authorization rejected) {
    try {
      return broker.reportRejected(rejected, DETAIL);
    } catch (CancellationException interrupted) {
      throw interrupted;
    } catch (BrokerException | IllegalStateException refusedOrClosed) {
      return null;
    }
  }

  private void checkOrigin(HttpRequest request) throws OriginException {
    if (!Origin.matches(origin, request.uri())) {
      throw new OriginException(origin, request.uri());
    }
  }

  private static HttpRequest with(Authorization authorization, HttpRequest request) {
    Set<String> replaced = new HashSet<>();
    authorization.headers().forEach(header -> replaced.add(header.name()));
    HttpRequest.Builder builder =
        HttpRequest.newBuilder(
            request, (name, value) -> !replaced.contains(name.toLowerCase(Locale.ROOT)));
    authorization.headers().forEach(header -> builder.setHeader(header.name(), header.value()));
    return builder.build();
  }

  /** Bodies of an unknown length are streams of the user's, which most often give out once. */
  private static boolean canSendAgain(HttpRequest request) {
    return request.bodyPublisher().map(body -> body.contentLength() >= 0).orElse(true);
  }

  /** Closes a body that nobody will read, which would hold its connection. */
  private static void discard(HttpResponse<?> answer) {
    if (answer.body() instanceof AutoCloseable body) {
      try {
        body.close();
      } catch (Exception e) {
        // Nobody waits for it.
      }
    }
  }

  /**
   * Closes the client that sends, as the JDK does it from 21 on: for all that share it. Before that
   * there is nothing to close.
   */
  public void close() {
    if (client instanceof AutoCloseable closeable) {
      try {
        closeable.close();
      } catch (RuntimeException e) {
        throw e;
      } catch (Exception e) {
        throw new IllegalStateException(e);
      }
    }
  }

  @Override
  public Optional<CookieHandler> cookieHandler() {
    return client.cookieHandler();
  }

  @Override
  public Optional<Duration> connectTimeout() {
    return client.connectTimeout();
  }

  @Override
  public Redirect followRedirects() {
    return client.followRedirects();
  }

  @Override
  public Optional<ProxySelector> proxy() {
    return client.proxy();
  }

  @Override
  public SSLContext sslContext() {
    return client.sslContext();
  }

  @Override
  public SSLParameters sslParameters() {
    return client.sslParameters();
  }

  @Override
  public Optional<Authenticator> authenticator() {
    return client.authenticator();
  }

  @Override
  public Version version() {
    return client.version();
  }

  @Override
  public Optional<Executor> executor() {
    return client.executor();
  }
}
