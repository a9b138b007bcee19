package dev.credentialbroker.client.okhttp;

import dev.credentialbroker.client.Authorization;
import dev.credentialbroker.client.AuthorizationRequest;
import dev.credentialbroker.client.BrokerClient;
import dev.credentialbroker.client.BrokerException;
import dev.credentialbroker.client.Header;
import dev.credentialbroker.client.OriginException;
import java.io.IOException;
import okhttp3.HttpUrl;
import okhttp3.Interceptor;
import okhttp3.OkHttpClient;
import okhttp3.Request;
import okhttp3.RequestBody;
import okhttp3.Response;
import okhttp3.ResponseBody;

/**
 * Makes an {@link OkHttpClient} attach the broker's headers to requests to one origin.
 *
 * <p>After a 401 it reports the headers and sends the request once more with better ones, unless
 * its body is one-shot or duplex. The 401 is the answer when the broker has nothing better, or the
 * second attempt fails on its way (then with 64 KiB of its body at most). A request to another
 * origin fails with {@link OriginException}, before anything is sent. A redirect that OkHttp
 * follows is followed without any of the headers, also to the same origin.
 *
 * <p>OkHttp takes nothing but an {@link IOException} from an interceptor: a {@link BrokerException}
 * is the cause of one. Websockets of OkHttp do not get the headers; dial them with those of {@link
 * BrokerClient#connection}.
 */
public final class BrokerOkHttp {
  /** So many bytes of a 401 are kept while the request is sent again. */
  private static final long MOST_READ = 64 * 1024;

  private BrokerOkHttp() {}

  /**
   * Adds it to a client.
   *
   * @param origin the backend's, as {@code https://api.example.com}; only scheme, host and port
   *     count
   * @param wanted what to ask the broker for, except for requests that are tagged with an {@link
   *     AuthorizationRequest} of their own
   */
  public static OkHttpClient.Builder addTo(
      OkHttpClient.Builder builder,
      BrokerClient broker,
      HttpUrl origin,
      AuthorizationRequest wanted) {
    return builder
        .addInterceptor(new Authorize(broker, origin, wanted))
        .addNetworkInterceptor(new Attach(origin));
  }

  /** What one attempt to send a request carries: until a redirect, which ends it. */
  private static final class Attempt {
    final Authorization authorization;
    volatile boolean redirected;

    Attempt(Authorization authorization) {
      this.authorization = authorization;
    }
  }

  /** Gets the headers for a request, and better ones after a 401. It sees requests, not hops. */
  private static final class Authorize implements Interceptor {
    private final BrokerClient broker;
    private final HttpUrl origin;
    private final AuthorizationRequest wanted;

    Authorize(BrokerClient broker, HttpUrl origin, AuthorizationRequest wanted) {
      this.broker = broker;
      this.origin = origin;
      this.wanted = wanted;
    }

    @Override
    public Response intercept(Chain chain) throws IOException {
      Request request = chain.request();
      if (!isOf(origin, request.url())) {
        throw new OriginException(origin.uri(), request.url().uri());
      }
      Attempt first = new Attempt(authorization(request));
      Response answer = chain.proceed(carrying(first, request));
      if (answer.code() != 401 || first.redirected) {
        return answer;
      }
      Authorization better;
      try {
        better = broker.reportRejected(first.authorization, "401 to OkHttp");
      } catch (BrokerException | IllegalStateException nothingBetter) {
        return answer;
      }
      if (!canSendAgain(request)) {
        return answer;
      }
      ResponseBody said;
      try {
        said = answer.peekBody(MOST_READ);
      } catch (IOException onItsWay) {
        return answer;
      }
      // OkHttp sends nothing while an answer is open.
      answer.close();
      try {
        return chain.proceed(carrying(new Attempt(better), request));
      } catch (IOException onItsWay) {
        if (chain.call().isCanceled()) {
          throw onItsWay;
        }
        return answer.newBuilder().body(said).build();
      }
    }

    private Authorization authorization(Request request) throws IOException {
      AuthorizationRequest own = request.tag(AuthorizationRequest.class);
      try {
        return broker.authorization((own == null ? wanted : own).withTargetUrl(origin.uri()));
      } catch (BrokerException | IllegalStateException e) {
        throw new IOException(e.getMessage(), e);
      }
    }

    private static Request carrying(Attempt attempt, Request request) {
      return request.newBuilder().tag(Attempt.class, attempt).build();
    }

    private static boolean canSendAgain(Request request) {
      RequestBody body = request.body();
      return body == null || !(body.isOneShot() || body.isDuplex());
    }
  }

  /** Puts the headers on what goes over the network, hop by hop, until the first redirect. */
  private static final class Attach implements Interceptor {
    private final HttpUrl origin;

    Attach(HttpUrl origin) {
      this.origin = origin;
    }

    @Override
    public Response intercept(Chain chain) throws IOException {
      Request request = chain.request();
      Attempt attempt = request.tag(Attempt.class);
      if (attempt == null || attempt.redirected || !isOf(origin, request.url())) {
        return chain.proceed(request);
      }
      Request.Builder with = request.newBuilder();
      for (Header header : attempt.authorization.headers()) {
        with.header(header.name(), header.value());
      }
      Response answer = chain.proceed(with.build());
      attempt.redirected = answer.isRedirect();
      return answer;
    }
  }

  private static boolean isOf(HttpUrl origin, HttpUrl url) {
    return origin.scheme().equals(url.scheme())
        && origin.host().equals(url.host())
        && origin.port() == url.port();
  }
}
