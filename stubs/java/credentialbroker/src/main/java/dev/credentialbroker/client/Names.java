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
import java.util.concurrent.TimeUnit;

/**
 * Finds the addresses behind a broker's name, anew whenever a connection was lost.
 *
 * <p>The resolver that comes with gRPC keeps an answer for 30 s, on top of the 30 s of the JVM. A
 * broker that moved has to be found within a call's deadline.
 */
final class Names extends NameResolver {
  private static final long LEAST_INTERVAL = TimeUnit.SECONDS.toNanos(5);

  private final Address address;
  private final Args args;
  private Listener2 listener;
  private int lookups;
  private boolean waiting;
  private boolean stopped;
  private long lastLookup;

  // All fields are guarded by the channel's synchronization context, in which all methods run.

  private Names(Address address, Args args) {
    this.address = address;
    this.args = args;
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
    if (waiting || stopped) {
      return;
    }
    long wait = lastLookup + LEAST_INTERVAL - System.nanoTime();
    if (lookups == 0 || wait <= 0) {
      lookUp();
      return;
    }
    waiting = true;
    args.getSynchronizationContext()
        .schedule(this::lookUp, wait, TimeUnit.NANOSECONDS, args.getScheduledExecutorService());
  }

  @Override
  public void shutdown() {
    stopped = true;
  }

  private void lookUp() {
    waiting = false;
    if (stopped) {
      return;
    }
    lastLookup = System.nanoTime();
    int count = lookups++;
    args.getOffloadExecutor()
        .execute(
            () -> {
              StatusOr<List<EquivalentAddressGroup>> found = find(count);
              args.getSynchronizationContext().execute(() -> tell(found));
            });
  }

  private void tell(StatusOr<List<EquivalentAddressGroup>> found) {
    if (!stopped) {
      listener.onResult2(ResolutionResult.newBuilder().setAddressesOrError(found).build());
    }
  }

  private StatusOr<List<EquivalentAddressGroup>> find(int lookup) {
    List<EquivalentAddressGroup> found = new ArrayList<>();
    try {
      for (SocketAddress each : addresses(lookup)) {
        found.add(new EquivalentAddressGroup(each));
      }
    } catch (UnknownHostException e) {
      return StatusOr.fromStatus(
          Status.UNAVAILABLE.withDescription("no address for " + address.host()).withCause(e));
    }
    return StatusOr.fromValue(found);
  }

  private List<SocketAddress> addresses(int lookup) throws UnknownHostException {
    if (address.isUnix()) {
      return List.of(UnixDomainSocketAddress.of(address.socket()));
    }
    String name = address.isLiteral() ? address.host() : spelling(address.host(), lookup);
    List<SocketAddress> found = new ArrayList<>();
    for (InetAddress each : InetAddress.getAllByName(name)) {
      // Without the spelling, so that it is seen in no message and compares equal the next time.
      InetAddress plain = InetAddress.getByAddress(address.host(), each.getAddress());
      found.add(new InetSocketAddress(plain, address.port()));
    }
    return found;
  }

  /**
   * Returns the n-th of the ways to spell a name in upper and lower case.
   *
   * <p>The JVM keeps what it found, and what it did not find, under the exact spelling, and lets
   * only the whole process turn that off. To everything else names are the same in any case. What
   * it keeps of a spelling goes with {@code networkaddress.cache.ttl}; a name of few letters, whose
   * spellings come round soon, is found anew after that time at the latest.
   */
  static String spelling(String name, int n) {
    char[] letters = name.toCharArray();
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
      return new Names(address, args);
    }

    @Override
    public String getDefaultScheme() {
      return "credential-broker";
    }
  }
}
