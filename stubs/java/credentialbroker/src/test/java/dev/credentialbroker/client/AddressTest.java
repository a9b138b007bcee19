package dev.credentialbroker.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.file.Path;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class AddressTest {
  @Test
  void readsEachForm() {
    assertEquals(new Address("", 0, Path.of("/run/b.sock")), Address.parse("unix:///run/b.sock"));
    assertEquals(new Address("broker", 50051, null), Address.parse("dns:///broker:50051"));
    assertEquals(new Address("broker_a", 50051, null), Address.parse("broker_a:50051"));
    assertEquals(new Address("b.1", 50051, null), Address.parse("b.1:50051"));
    assertEquals(new Address("10.0.0.1", 1, null), Address.parse("10.0.0.1:1"));
    assertEquals(new Address("::1", 65_535, null), Address.parse("[::1]:65535"));
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "",
        "broker",
        "broker:",
        "broker:0",
        "broker:65536",
        ":50051",
        "http://broker:50051",
        "unix:relative",
        "unix://",
        "unix:///",
        "dns://8.8.8.8/broker:1",
        "dns:broker:1",
        "broker:1/path",
        "user@broker:1",
        "a:1,b:2",
        "a..b:1",
        "-a:1",
        "::1:50051",
        "ipv4:127.0.0.1:1"
      })
  void refusesTheRestAndNamesTheForms(String text) {
    IllegalArgumentException refused =
        assertThrows(IllegalArgumentException.class, () -> Address.parse(text));
    assertTrue(refused.getMessage().contains("unix:///absolute/path, dns:///host:port"));
  }

  @ParameterizedTest
  @ValueSource(strings = {"unix:///s", "localhost:1", "LOCALHOST:1", "127.9.9.9:1", "[::1]:1"})
  void knowsWhatStaysOnThisMachine(String text) {
    assertTrue(Address.parse(text).isLocal());
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "broker:1",
        "127.0.0.1.example:1",
        "127.999.1.1:1",
        "10.0.0.1:1",
        "localhost.example:1",
        "[::2]:1"
      })
  void knowsWhatMayLeaveIt(String text) {
    assertFalse(Address.parse(text).isLocal());
  }

  @Test
  void looksNoLiteralUp() {
    assertTrue(Address.parse("127.0.0.1:1").isLiteral());
    assertTrue(Address.parse("[::1]:1").isLiteral());
    assertFalse(Address.parse("127.0.0.1.example:1").isLiteral());
    assertFalse(Address.parse("localhost:1").isLiteral());
  }
}
