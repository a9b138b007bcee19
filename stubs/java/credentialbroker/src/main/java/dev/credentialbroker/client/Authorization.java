package dev.credentialbroker.client;

import dev.credentialbroker.v1.CredentialKind;
import dev.credentialbroker.v1.DecisionReason;
import java.time.Duration;
import java.util.List;

/**
 * The headers for calls of one scope, all to be attached, with their times. Immutable.
 *
 * <p>Attach it only to calls to the backend of its identity, and only while {@link #isExpired} is
 * false; ask the client again for each call, which costs next to nothing.
 */
public final class Authorization {
  private final Key key;
  private final List<Header> headers;
  private final CredentialKind kind;
  private final DecisionReason reason;
  private final String revision;
  private final String identity;
  private final String connectionTag;
  private final boolean stale;
  private final Lifetime lifetime;

  private Authorization(
      Key key, dev.credentialbroker.v1.Authorization answer, List<Header> headers, long received) {
    this.key = key;
    this.headers = headers;
    kind = answer.getKind();
    reason = answer.getReason();
    revision = answer.getRevision();
    identity = answer.getIdentity();
    connectionTag = answer.getConnectionTag();
    stale = answer.getStale();
    lifetime = Lifetime.of(answer, received);
  }

  /** Reads an answer that arrived at {@code received} on the monotonic clock. */
  static Authorization of(Key key, dev.credentialbroker.v1.Authorization answer, long received) {
    List<Header> headers =
        answer.getHeadersList().stream()
            .map(each -> new Header(each.getName(), each.getValue(), each.getSensitive()))
            .toList();
    return new Authorization(key, answer, headers, received);
  }

  /** The complete set of headers: attach all of them, each in the place of any of its name. */
  public List<Header> headers() {
    return headers;
  }

  /** What the headers authenticate with. */
  public CredentialKind kind() {
    return kind;
  }

  /** Why they are of this kind. */
  public DecisionReason reason() {
    return reason;
  }

  /** Names the credential, not the second it was signed in. Opaque. */
  public String revision() {
    return revision;
  }

  /** The name of the identity that the headers belong to. */
  public String identity() {
    return identity;
  }

  /** Equal as long as connections that were authenticated with the headers may be shared. */
  public String connectionTag() {
    return connectionTag;
  }

  /** Whether the broker could not confirm it with its store. It is usable all the same. */
  public boolean isStale() {
    return stale;
  }

  /** How long it may still be used, at this moment; negative once it has ended. */
  public Duration expiresIn() {
    return Duration.ofNanos(lifetime.left(System.nanoTime()));
  }

  /** In how long the next one is due, at this moment; negative once it is. */
  public Duration refreshIn() {
    return Duration.ofNanos(lifetime.due() - System.nanoTime());
  }

  /** Whether it must not be used any longer. */
  public boolean isExpired() {
    return lifetime.left(System.nanoTime()) <= 0;
  }

  Key key() {
    return key;
  }

  Lifetime lifetime() {
    return lifetime;
  }

  /** Without the headers' values. */
  @Override
  public String toString() {
    return "Authorization[identity=%s, kind=%s, reason=%s, revision=%s, headers=%s, expiresIn=%s]"
        .formatted(identity, kind, reason, revision, headers, expiresIn());
  }
}
