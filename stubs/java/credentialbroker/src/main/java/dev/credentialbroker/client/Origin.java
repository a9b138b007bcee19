package dev.credentialbroker.client;

import java.net.URI;
import java.util.Locale;
import java.util.Objects;

/** Scheme, host and port of an HTTP address: what decides where a header may go. */
final class Origin {
  private Origin() {}

  /**
   * Returns the origin of an address, in lower case and with its port, for adapters that are made
   * for one.
   *
   * @throws IllegalArgumentException when it is not an absolute address of http or https
   */
  static URI of(URI address) {
    String scheme = address.getScheme() == null ? "" : address.getScheme().toLowerCase(Locale.ROOT);
    int standard = scheme.equals("https") ? 443 : scheme.equals("http") ? 80 : -1;
    if (standard < 0 || address.getHost() == null) {
      throw new IllegalArgumentException("not an absolute http or https address");
    }
    int port = address.getPort() < 0 ? standard : address.getPort();
    return URI.create(scheme + "://" + address.getHost().toLowerCase(Locale.ROOT) + ":" + port);
  }

  /** Whether an address is of an origin; false for one that has none. */
  static boolean matches(URI origin, URI address) {
    try {
      return Objects.equals(origin, of(address));
    } catch (IllegalArgumentException none) {
      return false;
    }
  }
}
