package dev.credentialbroker.client;

import dev.credentialbroker.v1.CredentialBrokerGrpc;
import io.grpc.ChannelCredentials;
import io.grpc.ConnectivityState;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.grpc.netty.shaded.io.netty.channel.ChannelOption;
import io.grpc.netty.shaded.io.netty.channel.EventLoopGroup;
import io.grpc.netty.shaded.io.netty.channel.MultiThreadIoEventLoopGroup;
import io.grpc.netty.shaded.io.netty.channel.nio.NioIoHandler;
import io.grpc.netty.shaded.io.netty.channel.socket.nio.NioDomainSocketChannel;
import io.grpc.netty.shaded.io.netty.channel.socket.nio.NioSocketChannel;
import io.grpc.netty.shaded.io.netty.util.concurrent.DefaultThreadFactory;
import io.grpc.stub.MetadataUtils;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.ScheduledFuture;
import java.util.concurrent.ScheduledThreadPoolExecutor;
import java.util.concurrent.SynchronousQueue;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.ThreadPoolExecutor;
import java.util.concurrent.TimeUnit;

/**
 * The connections to the broker and the threads of a client. The threads are its own, daemons, and
 * end with it: one for I/O, one for what is to be done later, and as many as answers need.
 */
final class BrokerChannel implements AutoCloseable {
  static final String USER_AGENT = "credentialbroker-java/0.1.0";
  private static final long CLOSE_SECONDS = 5;
  private static final int SOON = 4;
  private static final long GROWN_TO_5_SECONDS = TimeUnit.SECONDS.toNanos(9);

  private final TlsFiles tls;
  private final Backoff backoff =
      new Backoff(0.2, 1.6, 5, () -> ThreadLocalRandom.current().nextDouble());
  private final EventLoopGroup io =
      new MultiThreadIoEventLoopGroup(
          1, new DefaultThreadFactory("credential-broker-io", true), NioIoHandler.newFactory());
  private final ThreadPoolExecutor executor =
      new ThreadPoolExecutor(
          0,
          Integer.MAX_VALUE,
          10,
          TimeUnit.SECONDS,
          new SynchronousQueue<>(),
          new DefaultThreadFactory("credential-broker-answers", true));
  private final ScheduledThreadPoolExecutor timer =
      new ScheduledThreadPoolExecutor(1, new DefaultThreadFactory("credential-broker-timer", true));
  private final ManagedChannel channel;
  private final boolean severalAddresses;
  private final Presence presence;
  private int hastened;
  private ScheduledFuture<?> nextHaste;

  /**
   * Makes it, without any I/O.
   *
   * @param tls null for plaintext
   * @param serverName the name in the broker's certificate; null for that of the address
   * @param presence is told whenever no connection can be made
   */
  BrokerChannel(Address address, TlsFiles tls, String serverName, Presence presence) {
    this.tls = tls;
    this.presence = presence;
    severalAddresses = !address.isUnix() && !address.isLiteral();
    timer.setRemoveOnCancelPolicy(true);
    channel = build(address, serverName);
    follow(channel.getState(false));
  }

  // Global registration of a resolver, which replaces this method, would reach all other channels.
  @SuppressWarnings("deprecation")
  private ManagedChannel build(Address address, String serverName) {
    ChannelCredentials credentials =
        tls == null ? InsecureChannelCredentials.create() : tls.credentials();
    Metadata guard = new Metadata();
    guard.put(Metadata.Key.of("x-credential-broker", Metadata.ASCII_STRING_MARSHALLER), "1");
    NettyChannelBuilder builder =
        NettyChannelBuilder.forTarget("credential-broker:///broker", credentials)
            .nameResolverFactory(new Names.Factory(address))
            .channelType(address.isUnix() ? NioDomainSocketChannel.class : NioSocketChannel.class)
            .eventLoopGroup(io)
            .executor(executor)
            .offloadExecutor(executor)
            .withOption(ChannelOption.CONNECT_TIMEOUT_MILLIS, 5_000)
            .proxyDetector(target -> null)
            .defaultServiceConfig(ServiceConfig.VALUE)
            .disableServiceConfigLookUp()
            .enableRetry()
            // Without calls it would close its connection after 30 minutes.
            .idleTimeout(Long.MAX_VALUE, TimeUnit.NANOSECONDS)
            .keepAliveTime(60, TimeUnit.SECONDS)
            .keepAliveTimeout(20, TimeUnit.SECONDS)
            .keepAliveWithoutCalls(true)
            .userAgent(USER_AGENT)
            .intercept(MetadataUtils.newAttachHeadersInterceptor(guard));
    if (serverName != null) {
      builder.overrideAuthority(serverName);
    }
    return builder.build();
  }

  /** Returns the stub to make a call with, after a look at the TLS files. */
  CredentialBrokerGrpc.CredentialBrokerFutureStub calls() {
    lookAtFiles();
    return CredentialBrokerGrpc.newFutureStub(channel);
  }

  /** Returns the stub to open a stream with. */
  CredentialBrokerGrpc.CredentialBrokerStub streams() {
    return CredentialBrokerGrpc.newStub(channel);
  }

  /** Reads the TLS files again if they changed. */
  void lookAtFiles() {
    if (tls != null) {
      tls.refresh();
    }
  }

  /** Whether no connection can be made. */
  boolean isAway() {
    return channel.getState(false) == ConnectivityState.TRANSIENT_FAILURE;
  }

  /** Runs what may take long, as what users hung on a future; once the client is closed, here. */
  void execute(Runnable task) {
    try {
      executor.execute(task);
    } catch (RejectedExecutionException closed) {
      task.run();
    }
  }

  /** Runs something again and again, until the client is closed. */
  void every(long nanos, Runnable task) {
    timer.scheduleWithFixedDelay(task, nanos, nanos, TimeUnit.NANOSECONDS);
  }

  /** Runs something later, unless the client is closed by then. */
  ScheduledFuture<?> later(long nanos, Runnable task) {
    try {
      return timer.schedule(task, Math.max(0, nanos), TimeUnit.NANOSECONDS);
    } catch (RejectedExecutionException closed) {
      return null;
    }
  }

  /** Follows the state of the connections, from one change to the next. */
  private synchronized void follow(ConnectivityState state) {
    if (state == ConnectivityState.READY) {
      hastened = 0;
      backoff.reset();
    } else if (state == ConnectivityState.TRANSIENT_FAILURE) {
      presence.away();
    }
    if (state == ConnectivityState.TRANSIENT_FAILURE
        || (state == ConnectivityState.READY && severalAddresses)) {
      hastenLater();
    }
    if (state != ConnectivityState.SHUTDOWN) {
      channel.notifyWhenStateChanged(state, () -> follow(channel.getState(false)));
    }
  }

  /**
   * Cuts gRPC's waits between attempts to connect short, which begin at 1 s and grow to 2 minutes:
   * the first ones come sooner, and none is longer than 5 s, since every 9 s they begin again. Of
   * several addresses some may be away while the channel is ready, which it does not tell.
   */
  private synchronized void hastenLater() {
    if (nextHaste != null) {
      nextHaste.cancel(false);
    }
    boolean soon = hastened++ < SOON && channel.getState(false) != ConnectivityState.READY;
    nextHaste = later(soon ? backoff.next() : GROWN_TO_5_SECONDS, this::hasten);
  }

  private void hasten() {
    ConnectivityState state = channel.getState(false);
    if (state == ConnectivityState.TRANSIENT_FAILURE
        || (state == ConnectivityState.READY && severalAddresses)) {
      channel.resetConnectBackoff();
      hastenLater();
    }
  }

  /** Ends all connections, calls and threads. */
  @Override
  public void close() {
    channel.shutdownNow();
    timer.shutdownNow();
    try {
      channel.awaitTermination(CLOSE_SECONDS, TimeUnit.SECONDS);
      io.shutdownGracefully(0, CLOSE_SECONDS, TimeUnit.SECONDS)
          .await(CLOSE_SECONDS, TimeUnit.SECONDS);
    } catch (InterruptedException e) {
      io.shutdownGracefully(0, 0, TimeUnit.SECONDS);
      Thread.currentThread().interrupt();
    }
    executor.shutdown();
  }
}
