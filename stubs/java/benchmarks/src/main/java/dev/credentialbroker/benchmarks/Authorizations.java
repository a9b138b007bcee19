package dev.credentialbroker.benchmarks;

import dev.credentialbroker.client.Authorization;
import dev.credentialbroker.client.BrokerClient;
import dev.credentialbroker.v1.CredentialBrokerGrpc;
import dev.credentialbroker.v1.CredentialBrokerGrpc.CredentialBrokerBlockingStub;
import dev.credentialbroker.v1.GetAuthorizationRequest;
import dev.credentialbroker.v1.GetAuthorizationResponse;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.stub.MetadataUtils;
import java.util.Collection;
import java.util.concurrent.TimeUnit;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Scope;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.State;
import org.openjdk.jmh.annotations.TearDown;
import org.openjdk.jmh.results.RunResult;
import org.openjdk.jmh.runner.Runner;
import org.openjdk.jmh.runner.RunnerException;
import org.openjdk.jmh.runner.options.OptionsBuilder;
import org.openjdk.jmh.runner.options.TimeValue;

/** What an authorization costs from memory, and what it costs as a call to the broker. */
@State(Scope.Benchmark)
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.NANOSECONDS)
public class Authorizations {
  private static final GetAuthorizationRequest REQUEST =
      GetAuthorizationRequest.newBuilder().setScope("inference").setThreadId("benchmark").build();

  private BrokerClient broker;
  private ManagedChannel channel;
  private CredentialBrokerBlockingStub stub;

  /** Connects, and gets what the first benchmark finds in memory. */
  @Setup
  public void connect() {
    broker = BrokerClient.create();
    broker.authorization("inference", "benchmark");
    Metadata guard = new Metadata();
    guard.put(Metadata.Key.of("x-credential-broker", Metadata.ASCII_STRING_MARSHALLER), "1");
    channel =
        Grpc.newChannelBuilder(
                System.getenv().getOrDefault("CREDENTIAL_BROKER_ADDRESS", "127.0.0.1:50051"),
                InsecureChannelCredentials.create())
            .build();
    stub =
        CredentialBrokerGrpc.newBlockingStub(channel)
            .withInterceptors(MetadataUtils.newAttachHeadersInterceptor(guard));
  }

  /** Ends the connections. */
  @TearDown
  public void close() {
    broker.close();
    channel.shutdownNow();
  }

  /** A use that is answered from memory. */
  @Benchmark
  public Authorization cached() {
    return broker.authorization("inference", "benchmark");
  }

  /** The call that it saves. */
  @Benchmark
  public GetAuthorizationResponse rpc() {
    return stub.getAuthorization(REQUEST);
  }

  /**
   * Runs both, and prints the figures of both as the last line.
   *
   * @throws RunnerException when they cannot be run
   */
  public static void main(String[] arguments) throws RunnerException {
    Collection<RunResult> results =
        new Runner(
                new OptionsBuilder()
                    .include(Authorizations.class.getName())
                    .forks(1)
                    .warmupIterations(3)
                    .warmupTime(TimeValue.seconds(1))
                    .measurementIterations(5)
                    .measurementTime(TimeValue.seconds(1))
                    .shouldFailOnError(true)
                    .build())
            .run();
    double cached = 0;
    double rpc = 0;
    for (RunResult result : results) {
      double score = result.getPrimaryResult().getScore();
      if (result.getParams().getBenchmark().endsWith(".cached")) {
        cached = score;
      } else {
        rpc = score;
      }
    }
    System.out.printf(
        "{\"cached_ns\": %.1f, \"rpc_ns\": %.1f, \"ratio\": %.1f}%n", cached, rpc, rpc / cached);
  }
}
