package dev.credentialbroker.client;

import io.grpc.EquivalentAddressGroup;
import io.grpc.NameResolver;
import io.grpc.Status;
import io.grpc.StatusOr;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.SocketAddress;
import java.net.URI;
import java.net.UnixDomainSocketAddress;
import java.net.UnknownHostException;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * Finds the addresses behind a broker's name, anew whenever a connection was lost.
 *
 * <p>The resolver that comes with gRPC keeps an answer for 30 s, on top of the 30 s of the JVM
 * ({@code networkaddress.cache.ttl}). A broker that moved has to be found within a call's deadline.
 */
final class Names extends NameResolver {
  private static final long LEAST_INTERVAL = TimeUnit.SECONDS.toNanos(5);

  /** How often the process looked a name up. */
  private static final AtomicInteger LOOKUPS = new AtomicInteger();

  /** Looks a name up: {@link InetAddress#getAllByName}, but in tests. */
  interface Lookup {
    InetAddress[] addresses(String name) throws UnknownHostException;
  }

  private final Address address;
  private final Args args;
  private final Lookup lookup;
  private final long leastInterval;
  private Listener2 listener;

  /** Whether a look-up is under way or will be. */
  private boolean pending;

  private boolean stopped;
  private long lastLookup;

  // All fields are guarded by the channel's synchronization context, in which all methods run.

  /**
   * @param leastInterval nanoseconds from one look-up to the next, at least
   */
  Names(Address address, Args args, Lookup lookup, long leastInterval) {
    this.address = address;
    this.args = args;
    this.lookup = lookup;
    this.leastInterval = leastInterval;
  }

  @Override
  public String getServiceAuthority() {
    return address.authority();
  }

  @Override
  public void start(Listener2 listener) {
    this.listener = listener;
    lookUp();
  }

  @Override
  public void refresh() {
    if (pending || stopped) {
      return;
    }
    pending = true;
    long wait = lastLookup + leastInterval - System.nanoTime();
    if (wait <= 0) {
      lookUp();
    } else {
      args.getSynchronizationContext()
          .schedule(this::lookUp, wait, TimeUnit.NANOSECONDS, args.getScheduledExecutorService());
    }
  }

  @Override
  public void shutdown() {
    stopped = true;
  }

  private void lookUp() {
    if (stopped) {
      return;
    }
    pending = true;
    lastLookup = System.nanoTime();
    args.getOffloadExecutor()
        .execute(
            () -> {
              StatusOr<List<EquivalentAddressGroup>> found = find();
              args.getSynchronizationContext().execute(() -> tell(found));
            });
  }

  private void tell(StatusOr<List<EquivalentAddressGroup>> found) {
    pending = false;
    if (stopped) {
      return;
    }
    listener.onResult2(ResolutionResult.newBuilder().setAddressesOrError(found).build());
    if (!found.hasValue()) {
      // gRPC asks again as well, but after waits that grow to minutes.
      refresh();
    }
  }

  private StatusOr<List<EquivalentAddressGroup>> find() {
    List<EquivalentAddressGroup> found = new ArrayList<>();
    try {
      for (SocketAddress each : addresses()) {
        found.add(new EquivalentAddressGroup(each));
      }
    } catch (UnknownHostException | RuntimeException e) {
      return StatusOr.fromStatus(
          Status.UNAVAILABLE.withDescription("no address for " + address.host()).withCause(e));
    }
    return StatusOr.fromValue(found);
  }

  private List<SocketAddress> addresses() throws UnknownHostException {
    if (address.isUnix()) {
      return List.of(UnixDomainSocketAddress.of(address.socket()));
    }
    List<SocketAddress> found = new ArrayList<>();
    for (InetAddress each : pastTheJvm(address.host())) {
      // Without the spelling, so that it is seen in no message and compares equal the next time.
      InetAddress plain = InetAddress.getByAddress(address.host(), each.getAddress());
      found.add(new InetSocketAddress(plain, address.port()));
    }
    return found;
  }

  /** Looks a name up in a spelling of which the JVM keeps no answer yet. */
  private InetAddress[] pastTheJvm(String name) throws UnknownHostException {
    try {
      return lookup.addresses(
          address.isLiteral() ? name : spelling(name, LOOKUPS.getAndIncrement()));
    } catch (UnknownHostException e) {
      // A resolver that was put into the JVM may know the name by one spelling alone.
      return lookup.addresses(name);
    }
  }

  /**
   * Returns the n-th of the ways to spell a name in upper and lower case.
   *
   * <p>The JVM keeps what it found, and what it did not find, under the exact spelling, and lets
   * only the whole process turn that off; to DNS and hosts files names are the same in any case. Of
   * a name with one or two letters the spellings come round before the JVM's time is over.
   */
  static String spelling(String name, int n) {
    char[] letters = name.toLowerCase(Locale.ROOT).toCharArray();
    int bits = n;
    for (int i = 0; i < letters.length && bits != 0; i++) {
      if (Character.isLowerCase(letters[i])) {
        letters[i] = (bits & 1) == 0 ? letters[i] : Character.toUpperCase(letters[i]);
        bits >>>= 1;
      }
    }
    return new String(letters);
  }

  /** Makes the resolver of one address, whatever target the channel names. */
  static final class Factory extends NameResolver.Factory {
    private final Address address;

    Factory(Address address) {
      this.address = address;
    }

    @Override
    public NameResolver newNameResolver(URI target, Args args) {
      return new Names(address, args, InetAddress::getAllByName, LEAST_INTERVAL);
    }

    @Override
    public String getDefaultScheme() {
      return "credential-broker";
    }
  }
}
