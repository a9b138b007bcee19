package dev.credentialbroker.client;

import java.net.URI;
import java.util.Locale;
import java.util.Objects;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** Scheme, host and port of an HTTP address: what decides where a header may go. */
final class Origin {
  private static final String LABEL = "[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?";

  /** A pattern of names, more than {@link URI} knows: Compose and Kubernetes have them with _. */
  static final String NAME = LABEL + "(?:\\." + LABEL + ")*\\.?";

  private static final Pattern OTHER_NAMES = Pattern.compile("(" + NAME + ")(?::([0-9]{1,5}))?");
  private static final String NONE = "not an absolute http or https address";

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
    if (standard < 0) {
      throw new IllegalArgumentException(NONE);
    }
    String host = address.getHost();
    int port = address.getPort();
    if (host == null) {
      String authority = address.getRawAuthority();
      Matcher other = OTHER_NAMES.matcher(authority == null ? "" : authority);
      if (!other.matches()) {
        throw new IllegalArgumentException(NONE);
      }
      host = other.group(1);
      port = other.group(2) == null ? -1 : Integer.parseInt(other.group(2));
    }
    return URI.create(
        scheme + "://" + host.toLowerCase(Locale.ROOT) + ":" + (port < 0 ? standard : port));
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
