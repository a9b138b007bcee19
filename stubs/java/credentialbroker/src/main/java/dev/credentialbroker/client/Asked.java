package dev.credentialbroker.client;

import java.net.URI;

/**
 * A question to the broker that is on its way, and what the broker did by itself meanwhile. The
 * cache, under whose lock it is changed, judges by that whether the answer still holds.
 */
final class Asked {
  final Key key;
  final long minValidity;
  final URI origin;
  final String rejected;

  /** Whether something was withdrawn that the answer may have been given before. */
  boolean overtaken;

  /** Whether the broker sent a value by itself, or to a report, which is newer than the answer. */
  boolean renewed;

  private Asked(Key key, long minValidity, URI origin, String rejected) {
    this.key = key;
    this.minValidity = minValidity;
    this.origin = origin;
    this.rejected = rejected;
  }

  /**
   * A question for an authorization.
   *
   * @param minValidity nanoseconds that the answer has to last
   * @param origin an origin that it is asked for, or null
   */
  static Asked question(Key key, long minValidity, URI origin) {
    return new Asked(key, minValidity, origin, null);
  }

  /** The report that a revision was rejected, which asks for a better one. */
  static Asked report(Key key, String rejected) {
    return new Asked(key, 0, null, rejected);
  }

  boolean isReport() {
    return rejected != null;
  }

  /** Whether it is the report that rejects this value. */
  boolean rejects(Authorization value) {
    return value.revision().equals(rejected);
  }
}
