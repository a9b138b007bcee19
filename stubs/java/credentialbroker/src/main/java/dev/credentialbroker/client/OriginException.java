package dev.credentialbroker.client;

import java.io.IOException;
import java.net.URI;

/** A request to another origin than the one that an adapter is made for. Nothing was sent. */
public final class OriginException extends IOException {
  private static final long serialVersionUID = 1L;

  /**
   * Names the origin that is allowed, and where the request was to go.
   *
   * @param allowed the origin that the adapter is made for
   * @param asked where the request was to go
   */
  public OriginException(URI allowed, URI asked) {
    super("made for " + allowed + " and not for " + asked.getScheme() + "://" + asked.getHost());
  }
}
