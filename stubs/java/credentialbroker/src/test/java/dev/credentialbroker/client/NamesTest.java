package dev.credentialbroker.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.grpc.EquivalentAddressGroup;
import io.grpc.NameResolver;
import io.grpc.Status;
import io.grpc.StatusOr;
import io.grpc.SynchronizationContext;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.UnknownHostException;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.Executors;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

@Timeout(60)
class NamesTest {
  private static final long SOON = TimeUnit.MILLISECONDS.toNanos(10);
  private static final long LATER = TimeUnit.HOURS.toNanos(1);

  private final ScheduledExecutorService timer = Executors.newSingleThreadScheduledExecutor();
  private final SynchronizationContext context =
      new SynchronizationContext(
          (thread, failure) -> {
            throw new AssertionError(failure);
          });
  private final List<String> lookedUp = new CopyOnWriteArrayList<>();
  private final BlockingQueue<StatusOr<List<EquivalentAddressGroup>>> told =
      new LinkedBlockingQueue<>();

  @AfterEach
  void stop() {
    timer.shutdownNow();
  }

  private Names names(String address, long leastInterval, Names.Lookup lookup) {
    NameResolver.Args args =
        NameResolver.Args.newBuilder()
            .setDefaultPort(1)
            .setProxyDetector(target -> null)
            .setSynchronizationContext(context)
            .setScheduledExecutorService(timer)
            .setOffloadExecutor(Runnable::run)
            .setServiceConfigParser(
                new NameResolver.ServiceConfigParser() {
                  @Override
                  public NameResolver.ConfigOrError parseServiceConfig(
                      java.util.Map<String, ?> raw) {
                    throw new UnsupportedOperationException();
                  }
                })
            .build();
    Names.Lookup noted =
        name -> {
          lookedUp.add(name);
          return lookup.addresses(name);
        };
    Names names = new Names(Address.parse(address), args, noted, leastInterval);
    context.execute(
        () ->
            names.start(
                new NameResolver.Listener2() {
                  @Override
                  public Status onResult2(NameResolver.ResolutionResult result) {
                    told.add(result.getAddressesOrError());
                    return result.getAddressesOrError().getStatus();
                  }

                  @Override
                  public void onResult(NameResolver.ResolutionResult result) {
                    throw new UnsupportedOperationException();
                  }

                  @Override
                  public void onError(Status error) {
                    throw new UnsupportedOperationException();
                  }
                }));
    return names;
  }

  private static InetAddress[] oneAddress(String name) throws UnknownHostException {
    return new InetAddress[] {InetAddress.getByAddress(name, new byte[] {10, 0, 0, 1})};
  }

  @Test
  void tellsAddressesUnderTheNameAsItWasGiven() throws Exception {
    names("broker.example:50051", LATER, NamesTest::oneAddress);
    EquivalentAddressGroup group = told.take().getValue().get(0);
    InetSocketAddress found = (InetSocketAddress) group.getAddresses().get(0);
    assertEquals("broker.example", found.getHostString());
    assertEquals("10.0.0.1", found.getAddress().getHostAddress());
    assertEquals(50_051, found.getPort());
  }

  @Test
  void looksUpInASpellingThatNoneInTheProcessUsedBefore() {
    for (int i = 0; i < 8; i++) {
      names("BROKER.example:1", LATER, NamesTest::oneAddress);
    }
    assertEquals(8, new HashSet<>(lookedUp).size());
    assertTrue(lookedUp.stream().allMatch("broker.example"::equalsIgnoreCase));
  }

  @Test
  void looksUpNothingForAnAddress() {
    names("10.0.0.1:1", LATER, NamesTest::oneAddress);
    names("[::1]:1", LATER, NamesTest::oneAddress);
    assertEquals(List.of("10.0.0.1", "::1"), lookedUp);
  }

  @Test
  void triesTheNameAsItIsWrittenWhereSpellingsCount() throws Exception {
    for (int i = 0; i < 2; i++) {
      names(
          "broker.example:1",
          LATER,
          name -> {
            if (!name.equals("broker.example")) {
              throw new UnknownHostException(name);
            }
            return oneAddress(name);
          });
      assertTrue(told.take().hasValue());
    }
  }

  @Test
  void looksUpByItselfUntilThereIsSuchAName() throws Exception {
    names(
        "broker.example:1",
        SOON,
        name -> {
          if (told.size() < 2) {
            throw new UnknownHostException(name);
          }
          return oneAddress(name);
        });
    while (told.size() < 3) {
      TimeUnit.MILLISECONDS.sleep(1);
    }
    Status none = told.take().getStatus();
    assertEquals(Status.Code.UNAVAILABLE, none.getCode());
    assertEquals("no address for broker.example", none.getDescription());
    assertFalse(told.take().hasValue());
    assertTrue(told.take().hasValue());
    assertNull(told.poll(20 * SOON, TimeUnit.NANOSECONDS));
  }

  @Test
  void looksUpAgainWhenAConnectionWasLostAndNoSoonerThanItMay() throws Exception {
    Names seldom = names("broker.example:1", LATER, NamesTest::oneAddress);
    told.take();
    context.execute(seldom::refresh);
    assertNull(told.poll(20 * SOON, TimeUnit.NANOSECONDS));
    Names often = names("broker.example:1", SOON, NamesTest::oneAddress);
    told.take();
    context.execute(often::refresh);
    assertTrue(told.take().hasValue());
    context.execute(often::shutdown);
    context.execute(often::refresh);
    assertNull(told.poll(20 * SOON, TimeUnit.NANOSECONDS));
  }

  @Test
  void spellsANameInAsManyWaysAsItsLettersAllow() {
    Set<String> spellings = new HashSet<>();
    for (int n = 0; n < 8; n++) {
      spellings.add(Names.spelling("BROKER.example", n));
    }
    assertEquals(8, spellings.size());
    assertEquals("broker.example", Names.spelling("BROKER.example", 0));
    assertEquals("10-0", Names.spelling("10-0", 5));
  }
}
