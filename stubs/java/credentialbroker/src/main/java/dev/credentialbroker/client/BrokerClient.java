package dev.credentialbroker.client;

import dev.credentialbroker.v1.EndTaskRequest;
import dev.credentialbroker.v1.RegisterTaskRequest;
import dev.credentialbroker.v1.Task;
import dev.credentialbroker.v1.TaskKind;
import java.net.URI;
import java.nio.file.Path;
import java.time.Duration;
import java.util.LongSummaryStatistics;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;

/**
 * Asks the credential broker for the headers to attach to calls, and keeps them current.
 *
 * <p>Make one for a process and share it: it is safe for use by any number of threads. What it
 * holds it answers from memory, without a call and without a lock. Headers are kept in memory only,
 * until they end, and are replaced before that.
 *
 * <pre>{@code
 * try (BrokerClient broker = BrokerClient.create()) {
 *   for (Header header : broker.authorization("inference", "thread-1").headers()) {
 *     request.setHeader(header.name(), header.value());
 *   }
 * }
 * }</pre>
 *
 * <p>Methods that wait can be interrupted: they throw {@link CancellationException} and leave the
 * thread interrupted. Those that return a future can be cancelled through it. Either way others who
 * wait for the same answer go on.
 *
 * <p>After {@link #close} every method that asks fails with {@link IllegalStateException}.
 */
public final class BrokerClient implements AutoCloseable {
  private final String identity;
  private final Cache cache;
  private final Presence presence;
  private final BrokerChannel channel;
  private final Watch watch;
  private final Flights flights;
  private final Calls calls;
  private final Questions questions;
  private final Upkeep upkeep;

  private BrokerClient(Builder options) {
    Address address = Address.parse(options.address);
    TlsFiles tls = options.tls(address);
    identity = options.identity;
    long timeout = Math.min(Durations.nanos(options.timeout), Calls.LONGEST);
    long idle = Durations.nanos(options.idleTime);
    cache = new Cache(options.cacheSize, idle, new Subscriptions());
    presence = new Presence(cache);
    channel = new BrokerChannel(address, tls, options.serverName, presence);
    watch =
        options.watch
            ? new Watch(channel, cache, presence, Durations.nanos(options.silence))
            : null;
    flights = new Flights(channel, timeout);
    calls = new Calls(channel, presence, timeout);
    questions = new Questions(calls, flights, cache);
    upkeep = new Upkeep(channel, cache, questions, watch, idle);
  }

  /**
   * Makes a client that finds the broker by the environment, as {@link Builder} says.
   *
   * @throws IllegalArgumentException when what it says there cannot be used
   */
  public static BrokerClient create() {
    return builder().build();
  }

  /** Begins a client with options of its own. */
  public static Builder builder() {
    return new Builder(System.getenv());
  }

  /**
   * Returns the headers for calls of a scope and a thread, from memory where they are held.
   *
   * @param scope what the call is for, as {@code inference}
   * @param thread the conversation or run that it belongs to; empty for none
   * @throws BrokerException when the broker refuses, or is away and nothing is held
   */
  public Authorization authorization(String scope, String thread) {
    Authorization held = upkeep.use(new Key(identity, scope, thread), 0, null);
    return held != null ? held : calls.await(ask(AuthorizationRequest.of(scope, thread)));
  }

  /**
   * The same, with more to say.
   *
   * @throws BrokerException when the broker refuses, or is away and nothing that suffices is held
   */
  public Authorization authorization(AuthorizationRequest request) {
    Authorization held = held(request);
    return held != null ? held : calls.await(ask(request));
  }

  /**
   * The same, without waiting. The future is the caller's own; it fails with {@link
   * BrokerException}.
   */
  public CompletableFuture<Authorization> authorizationAsync(AuthorizationRequest request) {
    Authorization held = held(request);
    return held != null ? CompletableFuture.completedFuture(held) : flights.own(ask(request));
  }

  /**
   * Tells the broker that the backend answered 401 to these headers, and returns better ones, which
   * replace what is held. Where the client already holds other ones, they are returned without a
   * call.
   *
   * @param detail what the backend said, for the audit record, cut to 256 bytes; never a header
   * @throws BrokerException when the broker has nothing better
   */
  public Authorization reportRejected(Authorization rejected, String detail) {
    return calls.await(questions.report(rejected, detail));
  }

  /** The same, without waiting. */
  public CompletableFuture<Authorization> reportRejectedAsync(
      Authorization rejected, String detail) {
    return flights.own(questions.report(rejected, detail));
  }

  /**
   * Makes sure that a thread has a live task, so that its first authorization need not wait for
   * one. Nobody has to.
   *
   * @param thread the conversation or run; empty for the work in the background that belongs to
   *     none
   * @throws BrokerException when the broker refuses, or is away
   */
  public Task registerTask(String thread) {
    return registerTask(thread, identity);
  }

  /**
   * The same for another identity than the client's own.
   *
   * @param identity empty for the client's own
   */
  public Task registerTask(String thread, String identity) {
    RegisterTaskRequest.Builder request =
        RegisterTaskRequest.newBuilder().setIdentity(whose(identity));
    if (thread.isEmpty()) {
      request.setKind(TaskKind.TASK_KIND_BACKGROUND);
    } else {
      request.setThreadId(thread);
    }
    return calls.call(stub -> stub.registerTask(request.build())).getTask();
  }

  /**
   * Ends the task of a thread. Its authorizations are refused from then on, and none is given any
   * more that this client holds of the thread or has asked for, whatever the scope. If it fails,
   * all stays as it is.
   *
   * @throws BrokerException when the broker refuses, or is away
   */
  public Task endTask(String thread) {
    return endTask(thread, identity);
  }

  /**
   * The same for another identity than the client's own.
   *
   * @param identity by the name that authorizations were asked for with; empty for the client's own
   */
  public Task endTask(String thread, String identity) {
    String whose = whose(identity);
    EndTaskRequest request =
        EndTaskRequest.newBuilder().setThreadId(thread).setIdentity(whose).build();
    Task ended = calls.call(stub -> stub.endTask(request)).getTask();
    cache.endThread(whose, thread);
    return ended;
  }

  /**
   * Returns the headers for dialling a connection that lives on, which are kept current until it is
   * closed.
   *
   * @throws BrokerException when the broker refuses, or is away and nothing is held
   */
  public BrokerConnection connection(String scope, String thread) {
    return connection(AuthorizationRequest.of(scope, thread));
  }

  /**
   * The same, with more to say.
   *
   * @throws BrokerException when the broker refuses, or is away and nothing that suffices is held
   */
  public BrokerConnection connection(AuthorizationRequest request) {
    BrokerConnection connection = new BrokerConnection(upkeep, channel, authorization(request));
    upkeep.begin(connection);
    return connection;
  }

  /** Says how the client is doing. */
  public ClientState state() {
    LongSummaryStatistics left = cache.left(System.nanoTime());
    return new ClientState(
        watch != null && watch.isUp(),
        (int) left.getCount(),
        left.getCount() == 0 ? Optional.empty() : Optional.of(Duration.ofNanos(left.getMin())),
        presence.lastError());
  }

  /** Ends everything of the client. Whoever waits fails; closing twice is fine. */
  @Override
  public void close() {
    if (!calls.close()) {
      return;
    }
    presence.close();
    if (watch != null) {
      watch.close();
    }
    flights.close();
    cache.close();
    channel.close();
  }

  /** Without what it holds. */
  @Override
  public String toString() {
    return "BrokerClient[identity=%s, %s]".formatted(identity, state());
  }

  private Authorization held(AuthorizationRequest request) {
    return upkeep.use(key(request), Durations.nanos(request.minValidity()), origin(request));
  }

  private CompletableFuture<Authorization> ask(AuthorizationRequest request) {
    return questions.ask(key(request), request, origin(request));
  }

  private Key key(AuthorizationRequest request) {
    return new Key(whose(request.identity()), request.scope(), request.thread());
  }

  private String whose(String asked) {
    return asked.isEmpty() ? identity : asked;
  }

  /** What the broker does not take as a target either has no origin; it says why. */
  private static URI origin(AuthorizationRequest request) {
    URI target = request.targetUrl();
    try {
      return target == null ? null : Origin.of(target);
    } catch (IllegalArgumentException none) {
      return target;
    }
  }

  /** Has watched what is held. */
  private final class Subscriptions implements Cache.Listener {
    @Override
    public void added(Entry entry) {
      if (watch != null) {
        watch.subscribe(entry);
      }
    }

    @Override
    public void dropped(Entry entry) {
      if (watch != null) {
        watch.unsubscribe(entry);
      }
    }
  }

  /** Options of a client. What is not set comes from the environment. */
  public static final class Builder {
    private String address;
    private Path caFile;
    private Path certificateFile;
    private Path privateKeyFile;
    private String serverName;
    private boolean plaintext;
    private String identity = "";
    private boolean watch = true;
    private Duration timeout = Duration.ofNanos(Calls.LONGEST);
    private int cacheSize = 1000;
    private Duration idleTime = Duration.ofMinutes(5);
    private Duration silence = Duration.ofSeconds(60);

    Builder(Map<String, String> environment) {
      address =
          environment.getOrDefault("CREDENTIAL_BROKER_ADDRESS", "").isEmpty()
              ? "dns:///127.0.0.1:50051"
              : environment.get("CREDENTIAL_BROKER_ADDRESS");
      caFile = file(environment, "CREDENTIAL_BROKER_CA_FILE");
      certificateFile = file(environment, "CREDENTIAL_BROKER_CERTIFICATE_FILE");
      privateKeyFile = file(environment, "CREDENTIAL_BROKER_PRIVATE_KEY_FILE");
      String name = environment.getOrDefault("CREDENTIAL_BROKER_SERVER_NAME", "");
      serverName = name.isEmpty() ? null : name;
      plaintext = environment.getOrDefault("CREDENTIAL_BROKER_PLAINTEXT", "").equals("1");
    }

    private static Path file(Map<String, String> environment, String name) {
      String path = environment.getOrDefault(name, "");
      return path.isEmpty() ? null : Path.of(path);
    }

    private static Path given(Path file, Path otherwise) {
      return file == null || file.toString().isEmpty() ? otherwise : file;
    }

    /**
     * Where the broker is: {@code unix:///absolute/path}, {@code dns:///host:port} or {@code
     * host:port}. Else {@code CREDENTIAL_BROKER_ADDRESS}, else {@code dns:///127.0.0.1:50051}.
     */
    public Builder address(String address) {
      this.address = address.isEmpty() ? this.address : address;
      return this;
    }

    /**
     * The authorities that sign the broker's certificate, a PEM file. Else {@code
     * CREDENTIAL_BROKER_CA_FILE}, else there is no TLS.
     */
    public Builder caFile(Path file) {
      caFile = given(file, caFile);
      return this;
    }

    /**
     * The client's own certificate, a PEM file, where the broker wants one. Else {@code
     * CREDENTIAL_BROKER_CERTIFICATE_FILE}.
     */
    public Builder certificateFile(Path file) {
      certificateFile = given(file, certificateFile);
      return this;
    }

    /**
     * The key of the client's certificate, a PEM file with a PKCS #8 key. Else {@code
     * CREDENTIAL_BROKER_PRIVATE_KEY_FILE}.
     */
    public Builder privateKeyFile(Path file) {
      privateKeyFile = given(file, privateKeyFile);
      return this;
    }

    /**
     * The name in the broker's certificate. Else {@code CREDENTIAL_BROKER_SERVER_NAME}, else the
     * host of the address.
     */
    public Builder serverName(String name) {
      serverName = name == null || name.isEmpty() ? serverName : name;
      return this;
    }

    /**
     * Whether to call another host without TLS, where everyone on the way can read the headers.
     * Else {@code CREDENTIAL_BROKER_PLAINTEXT=1}, else that is refused.
     */
    public Builder plaintext(boolean allowed) {
      plaintext = allowed;
      return this;
    }

    /** Whose credentials to ask for where a call does not say. Else the broker chooses. */
    public Builder identity(String identity) {
      this.identity = Objects.requireNonNull(identity);
      return this;
    }

    /**
     * Whether the broker is to send the next values, and withdrawals, by itself; true unless set.
     * Without it a value is asked for anew on use, once it is due.
     */
    public Builder watch(boolean watch) {
      this.watch = watch;
      return this;
    }

    /** How long a call may last where it does not say; 10 s unless set, and at most. */
    public Builder timeout(Duration timeout) {
      this.timeout = positive(timeout, "timeout");
      return this;
    }

    /** How many authorizations are kept at most; 1,000 unless set. */
    public Builder cacheSize(int size) {
      if (size < 1) {
        throw new IllegalArgumentException("cacheSize is less than 1");
      }
      cacheSize = size;
      return this;
    }

    /** After how long without a use an authorization is let go; 5 minutes unless set. */
    public Builder idleTime(Duration time) {
      idleTime = positive(time, "idleTime");
      return this;
    }

    /** After how long without any message the stream is dead; 60 s unless set. */
    public Builder silence(Duration time) {
      silence = positive(time, "silence");
      return this;
    }

    /**
     * Makes the client. Does no I/O but reading the TLS files.
     *
     * @throws IllegalArgumentException when the address is none, a file cannot be used, or the
     *     headers would go unprotected to another host
     */
    public BrokerClient build() {
      return new BrokerClient(this);
    }

    private TlsFiles tls(Address address) {
      if ((certificateFile == null) != (privateKeyFile == null)) {
        throw new IllegalArgumentException(
            "a certificate needs its key, and a key its certificate");
      }
      if (caFile != null) {
        return new TlsFiles(caFile, certificateFile, privateKeyFile);
      }
      if (certificateFile != null) {
        throw new IllegalArgumentException(
            "a certificate needs authorities (caFile, CREDENTIAL_BROKER_CA_FILE)");
      }
      if (!address.isLocal() && !plaintext) {
        throw new IllegalArgumentException(
            "without TLS headers go to this machine only: give authorities (caFile,"
                + " CREDENTIAL_BROKER_CA_FILE), or allow plaintext to "
                + address.authority()
                + " (plaintext, CREDENTIAL_BROKER_PLAINTEXT=1)");
      }
      return null;
    }

    private static Duration positive(Duration time, String name) {
      if (time.isNegative() || time.isZero()) {
        throw new IllegalArgumentException(name + " is not positive");
      }
      return time;
    }
  }
}
