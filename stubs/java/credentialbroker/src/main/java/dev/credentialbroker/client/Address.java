package dev.credentialbroker.client;

import java.net.URI;
import java.net.URISyntaxException;
import java.nio.file.Path;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * Where the broker is.
 *
 * @param host name or literal, without brackets; empty for a Unix socket
 * @param port of {@code host}; 0 for a Unix socket
 * @param socket path of the Unix socket; null for a host
 */
record Address(String host, int port, Path socket) {
  private static final String FORMS =
      "an address is unix:///absolute/path, dns:///host:port or host:port, not ";

  /** A name or an IPv4 literal; also names that URIs do not have, as {@code broker_a}. */
  private static final Pattern NAME = Pattern.compile("(" + Origin.NAME + "):([0-9]{1,5})");

  /**
   * Reads an address.
   *
   * @throws IllegalArgumentException when it is of none of the forms, which the message names
   */
  static Address parse(String text) {
    if (text.startsWith("unix:")) {
      String path = text.startsWith("unix:///") ? text.substring("unix://".length()) : "";
      if (path.length() < 2 || path.indexOf('\0') >= 0) {
        throw new IllegalArgumentException(FORMS + "'" + text + "'");
      }
      return new Address("", 0, Path.of(path));
    }
    String authority = text.startsWith("dns:///") ? text.substring("dns:///".length()) : text;
    Matcher name = NAME.matcher(authority);
    if (name.matches()) {
      int port = Integer.parseInt(name.group(2));
      if (port > 0 && port <= 65_535) {
        return new Address(name.group(1), port, null);
      }
    }
    try {
      URI uri = new URI("dns://" + authority).parseServerAuthority();
      if (uri.getHost() != null
          && uri.getHost().startsWith("[")
          && uri.getPort() > 0
          && uri.getPort() <= 65_535
          && authority.equals(uri.getHost() + ":" + uri.getPort())) {
        String host = uri.getHost();
        return new Address(host.substring(1, host.length() - 1), uri.getPort(), null);
      }
    } catch (URISyntaxException notAnAuthority) {
      // Told below, in the same words as everything else that is no address.
    }
    throw new IllegalArgumentException(FORMS + "'" + text + "'");
  }

  boolean isUnix() {
    return socket != null;
  }

  /** Whether {@link #host} is written as an IP address, which never has to be looked up. */
  boolean isLiteral() {
    return host.indexOf(':') >= 0 || isIpv4Literal();
  }

  /** Whether what is sent there cannot leave this machine, so that it needs no TLS. */
  boolean isLocal() {
    return isUnix()
        || host.equalsIgnoreCase("localhost")
        || host.equals("::1")
        || (isIpv4Literal() && host.startsWith("127."));
  }

  /** The name that the broker is called by: the {@code :authority} of calls. */
  String authority() {
    if (isUnix()) {
      return "localhost";
    }
    return (host.indexOf(':') >= 0 ? "[" + host + "]" : host) + ":" + port;
  }

  private boolean isIpv4Literal() {
    String[] parts = host.split("\\.", -1);
    if (parts.length != 4) {
      return false;
    }
    for (String part : parts) {
      if (!part.matches("[0-9]{1,3}") || Integer.parseInt(part) > 255) {
        return false;
      }
    }
    return true;
  }
}
