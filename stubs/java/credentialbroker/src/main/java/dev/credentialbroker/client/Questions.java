package dev.credentialbroker.client;

import com.google.common.util.concurrent.Futures;
import com.google.common.util.concurrent.ListenableFuture;
import com.google.common.util.concurrent.MoreExecutors;
import dev.credentialbroker.v1.CredentialBrokerGrpc.CredentialBrokerFutureStub;
import dev.credentialbroker.v1.GetAuthorizationRequest;
import dev.credentialbroker.v1.GetAuthorizationResponse;
import dev.credentialbroker.v1.ReportRejectedRequest;
import dev.credentialbroker.v1.ReportRejectedResponse;
import io.grpc.Status;
import java.net.URI;
import java.time.Duration;
import java.util.concurrent.CompletableFuture;
import java.util.function.Function;
import java.util.function.Supplier;

/**
 * Asks the broker for authorizations and reports rejections to it: one call for each question,
 * however many ask it at a time. What comes of it is kept or dropped before anybody hears of it.
 */
final class Questions {
  /** How often a question is asked anew whose answer was withdrawn on its way. */
  private static final int ASKED_AGAIN = 3;

  private static final int HTTP_UNAUTHORIZED = 401;
  private static final int LONGEST_DETAIL = 256;

  private final Calls calls;
  private final Flights flights;
  private final Cache cache;

  /** What is asked in one call: also what a call is for that others may wait for. */
  private record Question(Key key, Duration minValidity, URI origin) {}

  private record Report(Key key, String revision) {}

  Questions(Calls calls, Flights flights, Cache cache) {
    this.calls = calls;
    this.flights = flights;
    this.cache = cache;
  }

  /**
   * Asks for an authorization.
   *
   * @param origin of the target of the request, or null
   * @return as {@link Flights#join} does
   */
  CompletableFuture<Authorization> ask(Key key, AuthorizationRequest request, URI origin) {
    GetAuthorizationRequest.Builder question = question(key);
    if (origin != null) {
      question.setTargetUrl(request.targetUrl().toString());
    }
    if (!request.minValidity().isZero()) {
      question.setMinValidity(Durations.toProto(request.minValidity()));
    }
    long minValidity = Durations.nanos(request.minValidity());
    return flights.join(
        new Question(key, request.minValidity(), origin),
        calls.deadline(request.timeout()),
        deadline -> ask(key, question.build(), minValidity, origin, deadline, ASKED_AGAIN));
  }

  /** Asks for the next value of what is held. */
  CompletableFuture<Authorization> askAgain(Key key) {
    return ask(key, AuthorizationRequest.of(key.scope(), key.thread()), null);
  }

  private static GetAuthorizationRequest.Builder question(Key key) {
    return GetAuthorizationRequest.newBuilder()
        .setScope(key.scope())
        .setThreadId(key.thread())
        .setIdentity(key.identity());
  }

  /**
   * Reports that a backend answered 401; answered at once where something else is held by now.
   *
   * @return as {@link Flights#join} does
   */
  CompletableFuture<Authorization> report(Authorization rejected, String detail) {
    Key key = rejected.key();
    Entry entry = cache.get(key);
    Authorization held = entry == null ? null : entry.use(System.nanoTime(), 0, null);
    if (held != null && !held.revision().equals(rejected.revision())) {
      return CompletableFuture.completedFuture(held);
    }
    ReportRejectedRequest report =
        ReportRejectedRequest.newBuilder()
            .setScope(key.scope())
            .setThreadId(key.thread())
            .setRevision(rejected.revision())
            .setHttpStatus(HTTP_UNAUTHORIZED)
            .setDetail(cut(detail))
            .build();
    GetAuthorizationRequest question = question(key).build();
    return flights.join(
        new Report(key, rejected.revision()),
        calls.deadline(null),
        deadline ->
            keeping(
                Asked.report(key, rejected.revision()),
                stub -> stub.reportRejected(report),
                deadline,
                ReportRejectedResponse::getAuthorization,
                () -> ask(key, question, 0, null, deadline, ASKED_AGAIN)));
  }

  /** Cuts a text to what the broker takes, between characters. */
  static String cut(String detail) {
    int bytes = 0;
    for (int i = 0; i < detail.length(); ) {
      int character = detail.codePointAt(i);
      bytes += character < 0x80 ? 1 : character < 0x800 ? 2 : character < 0x10000 ? 3 : 4;
      if (bytes > LONGEST_DETAIL) {
        return detail.substring(0, i);
      }
      i += Character.charCount(character);
    }
    return detail;
  }

  /**
   * Asks, and again when something was withdrawn before the answer came.
   *
   * @param deadline when the last answer has to be there, on the monotonic clock
   * @param again how often at most
   */
  private ListenableFuture<Authorization> ask(
      Key key,
      GetAuthorizationRequest question,
      long minValidity,
      URI origin,
      long deadline,
      int again) {
    return keeping(
        Asked.question(key, minValidity, origin),
        stub -> stub.getAuthorization(question),
        deadline,
        GetAuthorizationResponse::getAuthorization,
        () ->
            again > 0
                ? ask(key, question, minValidity, origin, deadline, again - 1)
                : Futures.immediateFailedFuture(
                    BrokerException.of(
                        Status.Code.ABORTED, "each answer was withdrawn while it was on its way")));
  }

  /**
   * Makes a call and keeps the authorization that it answers with; drops the entry when it is
   * refused.
   *
   * @param again asks anew, for an answer that was withdrawn on its way
   */
  private <R> ListenableFuture<Authorization> keeping(
      Asked asked,
      Function<CredentialBrokerFutureStub, ListenableFuture<R>> method,
      long deadline,
      Function<R, dev.credentialbroker.v1.Authorization> answer,
      Supplier<ListenableFuture<Authorization>> again) {
    cache.asking(asked);
    ListenableFuture<R> heard =
        Futures.catchingAsync(
            calls.start(method, deadline),
            Throwable.class,
            thrown -> {
              if (refusesWhatIsHeld(BrokerException.of(thrown), asked)) {
                cache.refuse(asked);
              }
              return Futures.immediateFailedFuture(thrown);
            },
            MoreExecutors.directExecutor());
    ListenableFuture<Authorization> kept =
        Futures.transformAsync(
            heard,
            response -> {
              long now = System.nanoTime();
              Authorization value = Authorization.of(asked.key, answer.apply(response), now);
              Authorization given = cache.keep(asked, value, now);
              return given != null ? Futures.immediateFuture(given) : again.get();
            },
            MoreExecutors.directExecutor());
    kept.addListener(() -> cache.settle(asked), MoreExecutors.directExecutor());
    return kept;
  }

  /** A report that is faulty says nothing about what is held. */
  private static boolean refusesWhatIsHeld(BrokerException refusal, Asked asked) {
    boolean ofTheReport = asked.isReport() && refusal.code() == Status.Code.INVALID_ARGUMENT;
    return refusal.refusesWhatIsHeld() && !ofTheReport;
  }
}
