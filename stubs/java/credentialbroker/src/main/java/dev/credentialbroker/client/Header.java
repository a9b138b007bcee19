package dev.credentialbroker.client;

/**
 * One header to attach to a call, in the place of any of its name.
 *
 * @param name in lower case
 * @param value to be sent as it is; never to be logged or stored
 * @param sensitive whether the value authenticates by itself
 */
public record Header(String name, String value, boolean sensitive) {
  /** Without the value. */
  @Override
  public String toString() {
    return name + ": [" + value.length() + " characters]";
  }
}
