package dev.credentialbroker.client;

import static org.junit.jupiter.api.Assertions.assertEquals;

import dev.credentialbroker.v1.Closing;
import dev.credentialbroker.v1.WatchAuthorizationsResponse;
import io.grpc.Status;
import java.util.Optional;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

@Timeout(60)
class WatchTest {
  @Test
  void takesNoFailureOfAStreamThatHasASuccessorForOneOfTheBroker() throws Exception {
    try (FakeBroker broker = new FakeBroker()) {
      broker.streams = new CopyOnWriteArrayList<>();
      try (BrokerClient client = BrokerClient.builder().address(broker.address).build()) {
        client.authorization("inference", "t");
        untilOpened(broker, 1);
        broker
            .streams
            .get(0)
            .onNext(
                WatchAuthorizationsResponse.newBuilder()
                    .setClosing(Closing.getDefaultInstance())
                    .build());
        untilOpened(broker, 2);
        broker.streams.get(0).onError(Status.UNAVAILABLE.asRuntimeException());
        TimeUnit.MILLISECONDS.sleep(500);
        assertEquals(Optional.empty(), client.state().lastError());
        broker.streams.get(1).onError(Status.UNAVAILABLE.asRuntimeException());
        while (client.state().lastError().isEmpty()) {
          TimeUnit.MILLISECONDS.sleep(1);
        }
      }
    }
  }

  private static void untilOpened(FakeBroker broker, int streams) throws InterruptedException {
    while (broker.streams.size() < streams) {
      TimeUnit.MILLISECONDS.sleep(1);
    }
  }
}
