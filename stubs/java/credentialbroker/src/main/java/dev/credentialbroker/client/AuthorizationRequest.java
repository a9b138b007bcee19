package dev.credentialbroker.client;

import java.net.URI;
import java.time.Duration;
import java.util.Objects;

/**
 * What an authorization is asked for. Immutable; begin with {@link #of(String)}.
 *
 * @param scope what the call is for, as {@code inference}
 * @param thread the conversation or run that it belongs to; empty for none
 * @param identity whose credential; empty for the client's own choice
 * @param targetUrl where the call goes, which the broker then checks once for each origin; null for
 *     no check
 * @param minValidity how long the headers must at least be usable
 * @param timeout how long to wait for the answer; null for the client's own
 */
public record AuthorizationRequest(
    String scope,
    String thread,
    String identity,
    URI targetUrl,
    Duration minValidity,
    Duration timeout) {

  /**
   * Checks what can be checked without the broker.
   *
   * @throws IllegalArgumentException when {@code minValidity} is negative, or {@code timeout} not
   *     positive
   */
  public AuthorizationRequest {
    Objects.requireNonNull(scope, "scope");
    Objects.requireNonNull(thread, "thread");
    Objects.requireNonNull(identity, "identity");
    Objects.requireNonNull(minValidity, "minValidity");
    if (minValidity.isNegative()) {
      throw new IllegalArgumentException("minValidity is negative");
    }
    if (timeout != null && (timeout.isNegative() || timeout.isZero())) {
      throw new IllegalArgumentException("timeout is not positive");
    }
  }

  /** Asks for a scope, for work that belongs to no thread. */
  public static AuthorizationRequest of(String scope) {
    return of(scope, "");
  }

  /** Asks for a scope and a thread. */
  public static AuthorizationRequest of(String scope, String thread) {
    return new AuthorizationRequest(scope, thread, "", null, Duration.ZERO, null);
  }

  /** The same for another thread. */
  public AuthorizationRequest withThread(String thread) {
    return new AuthorizationRequest(scope, thread, identity, targetUrl, minValidity, timeout);
  }

  /** The same for another identity than the client's own. */
  public AuthorizationRequest withIdentity(String identity) {
    return new AuthorizationRequest(scope, thread, identity, targetUrl, minValidity, timeout);
  }

  /** The same for a call to this address. */
  public AuthorizationRequest withTargetUrl(URI targetUrl) {
    return new AuthorizationRequest(scope, thread, identity, targetUrl, minValidity, timeout);
  }

  /** The same for headers that are usable at least so long. */
  public AuthorizationRequest withMinValidity(Duration minValidity) {
    return new AuthorizationRequest(scope, thread, identity, targetUrl, minValidity, timeout);
  }

  /** The same with a shorter time to wait than the client's own. */
  public AuthorizationRequest withTimeout(Duration timeout) {
    return new AuthorizationRequest(scope, thread, identity, targetUrl, minValidity, timeout);
  }
}
