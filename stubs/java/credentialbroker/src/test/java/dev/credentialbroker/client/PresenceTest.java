package dev.credentialbroker.client;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.util.ArrayList;
import java.util.List;
import java.util.logging.Handler;
import java.util.logging.Level;
import java.util.logging.LogRecord;
import java.util.logging.Logger;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

class PresenceTest {
  // Held, since the JDK keeps a logger that nobody holds no longer than it likes.
  private static final Logger LOG = Logger.getLogger("dev.credentialbroker.client");

  private final List<String> told = new ArrayList<>();
  private final Handler handler =
      new Handler() {
        @Override
        public void publish(LogRecord record) {
          told.add(record.getLevel() + " " + record.getMessage());
        }

        @Override
        public void flush() {}

        @Override
        public void close() {}
      };
  private final Presence presence =
      new Presence(
          new Cache(
              1,
              1,
              new Cache.Listener() {
                @Override
                public void added(Entry entry) {}

                @Override
                public void dropped(Entry entry) {}
              }));

  @BeforeEach
  void listen() {
    LOG.addHandler(handler);
  }

  @AfterEach
  void stop() {
    LOG.removeHandler(handler);
  }

  @Test
  void tellsOnceThatTheBrokerIsAwayAndOnceThatItIsBack() {
    presence.back();
    presence.away();
    presence.away();
    presence.back();
    presence.back();
    assertEquals(
        List.of(
            Level.WARNING + " the broker is away; 0 authorizations are held",
            Level.INFO + " the broker is back"),
        told);
  }

  @Test
  void tellsNothingOnceTheClientIsClosed() {
    presence.close();
    presence.away();
    assertEquals(List.of(), told);
  }
}
