package dev.credentialbroker.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.gson.Gson;
import com.google.gson.JsonElement;
import com.google.gson.JsonParser;
import com.google.protobuf.Timestamp;
import dev.credentialbroker.v1.Authorization;
import java.io.IOException;
import java.net.URI;
import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Times, waits, origins and the service config: what needs neither network nor clock. */
class PureTest {
  private static final long SECOND = 1_000_000_000L;

  @Test
  void countsTimesFromReceiptWhateverTheBrokersClockSays() {
    for (long clock : new long[] {0, 1_700_000_000, 4_000_000_000L}) {
      Authorization answer =
          Authorization.newBuilder()
              .setServerTime(Timestamp.newBuilder().setSeconds(clock).setNanos(900_000_000))
              .setRefreshTime(Timestamp.newBuilder().setSeconds(clock + 11).setNanos(100_000_000))
              .setExpireTime(Timestamp.newBuilder().setSeconds(clock + 20).setNanos(900_000_000))
              .build();
      // The monotonic clock may be negative, and may wrap around.
      for (long received : new long[] {0, -5 * SECOND, Long.MAX_VALUE - SECOND}) {
        Lifetime lifetime = Lifetime.of(answer, received);
        assertFalse(lifetime.isDue(received + 10 * SECOND));
        assertTrue(lifetime.isDue(received + 102 * SECOND / 10));
        assertFalse(lifetime.isLate(received + 15 * SECOND));
        assertTrue(lifetime.isLate(received + 151 * SECOND / 10));
        assertEquals(SECOND, lifetime.left(received + 19 * SECOND));
        assertEquals(0, lifetime.left(received + 20 * SECOND));
      }
    }
  }

  @Test
  void waitsLongerEachTimeAndNeverTooLong() {
    Backoff longest = new Backoff(0.2, 2, 10, () -> 1);
    double[] wanted = {0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10};
    for (double seconds : wanted) {
      assertEquals(seconds, longest.next() / 1e9, 1e-6);
    }
    longest.reset();
    assertEquals(0.2, longest.next() / 1e9, 1e-6);
  }

  @Test
  void waitsHalfOfItAtLeast() {
    Backoff shortest = new Backoff(0.2, 2, 10, () -> 0);
    assertEquals(0.1, shortest.next() / 1e9, 1e-6);
    assertEquals(0.2, shortest.next() / 1e9, 1e-6);
  }

  @ParameterizedTest
  @CsvSource({
    "https://Api.Example,            https://api.example:443/x?y, true",
    "http://a:80,                    HTTP://A/,                   true",
    "https://a,                      http://a,                    false",
    "https://a,                      https://a:8443,              false",
    "https://a,                      https://a.b,                 false",
    "https://a,                      https://a@b,                 false",
    "http://my_backend:80,           http://My_Backend/path,      true",
    "http://my_backend:80,           http://my_backend:81/path,   false",
    "https://a,                      /relative,                   false",
    "http://[::1]:80,                http://[::1],                true"
  })
  void comparesOrigins(String origin, String address, boolean same) {
    assertEquals(same, Origin.matches(Origin.of(URI.create(origin)), URI.create(address)));
  }

  @ParameterizedTest
  @ValueSource(strings = {"/relative", "ftp://a", "mailto:a@b", "https:///path"})
  void takesNoOriginWithoutOne(String address) {
    assertThrows(IllegalArgumentException.class, () -> Origin.of(URI.create(address)));
  }

  @Test
  void shipsTheServiceConfigOfTheRepository() throws IOException {
    Path folder = Path.of("").toAbsolutePath();
    while (!Files.exists(folder.resolve("protos/service_config.json"))) {
      folder = folder.getParent();
    }
    JsonElement wanted =
        JsonParser.parseString(Files.readString(folder.resolve("protos/service_config.json")));
    assertEquals(wanted, JsonParser.parseString(new Gson().toJson(ServiceConfig.VALUE)));
  }
}
