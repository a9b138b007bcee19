package dev.credentialbroker.client;

import com.google.common.util.concurrent.FutureCallback;
import com.google.common.util.concurrent.Futures;
import com.google.common.util.concurrent.ListenableFuture;
import com.google.common.util.concurrent.MoreExecutors;
import dev.credentialbroker.v1.CredentialBrokerGrpc.CredentialBrokerFutureStub;
import dev.credentialbroker.v1.EndTaskRequest;
import dev.credentialbroker.v1.GetAuthorizationRequest;
import dev.credentialbroker.v1.GetAuthorizationResponse;
import dev.credentialbroker.v1.RegisterTaskRequest;
import dev.credentialbroker.v1.ReportRejectedRequest;
import dev.credentialbroker.v1.ReportRejectedResponse;
import dev.credentialbroker.v1.Task;
import dev.credentialbroker.v1.TaskKind;
import io.grpc.Context;
import io.grpc.Deadline;
import io.grpc.Status;
import java.net.URI;
import java.nio.file.Path;
import java.time.Duration;
import java.util.LongSummaryStatistics;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.function.Function;
import java.util.function.Supplier;

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
 * <p>After {@link #close} every method fails with {@link IllegalStateException}.
 */
public final class BrokerClient implements AutoCloseable {
  private static final long LONGEST_CALL = TimeUnit.SECONDS.toNanos(10);

  /** So often at most the entry of a connection is looked at. */
  private static final long LEAST_LOOK = TimeUnit.MILLISECONDS.toNanos(500);

  private static final int ASKED_AGAIN = 3;
  private static final int LONGEST_DETAIL = 256;

  private final String identity;
  private final long timeout;
  private final BrokerChannel channel;
  private final Presence presence = new Presence();
  private final Cache cache;
  private final Watch watch;
  private final Flights flights;
  private volatile boolean closed;

  private BrokerClient(Builder options) {
    Address address = Address.parse(options.address);
    TlsFiles tls = options.tls(address);
    identity = options.identity;
    timeout = Math.min(Durations.nanos(options.timeout), LONGEST_CALL);
    channel = new BrokerChannel(address, tls, options.serverName, this::brokerIsAway);
    long idle = Durations.nanos(options.idleTime);
    cache = new Cache(options.cacheSize, idle, new Subscriptions());
    watch =
        options.watch
            ? new Watch(
                channel, cache, presence, Durations.nanos(options.silence), this::brokerIsAway)
            : null;
    flights = new Flights(channel, timeout);
    long interval = Math.min(Math.max(idle / 10, 1_000_000), TimeUnit.SECONDS.toNanos(30));
    channel.timer().scheduleWithFixedDelay(this::sweep, interval, interval, TimeUnit.NANOSECONDS);
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
    Authorization held = held(new Key(identity, scope, thread), 0, null);
    return held != null ? held : await(ask(AuthorizationRequest.of(scope, thread)));
  }

  /**
   * The same, with more to say.
   *
   * @throws BrokerException when the broker refuses, or is away and nothing that suffices is held
   */
  public Authorization authorization(AuthorizationRequest request) {
    Authorization held = held(request);
    return held != null ? held : await(ask(request));
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
    return await(report(rejected, detail));
  }

  /** The same, without waiting. */
  public CompletableFuture<Authorization> reportRejectedAsync(
      Authorization rejected, String detail) {
    return flights.own(report(rejected, detail));
  }

  private CompletableFuture<Authorization> report(Authorization rejected, String detail) {
    Key key = rejected.key();
    Authorization held = held(key, 0, null);
    if (held != null && !held.revision().equals(rejected.revision())) {
      return CompletableFuture.completedFuture(held);
    }
    ReportRejectedRequest report =
        ReportRejectedRequest.newBuilder()
            .setScope(key.scope())
            .setThreadId(key.thread())
            .setRevision(rejected.revision())
            .setHttpStatus(401)
            .setDetail(cut(detail))
            .build();
    return flights.join(
        new Report(key, rejected.revision()),
        deadline(null),
        left -> {
          long begun = System.nanoTime();
          GetAuthorizationRequest again = question(key).build();
          return keeping(
              key,
              new Cache.Asked(begun, 0, null, rejected.revision()),
              start(stub -> stub.reportRejected(report), left),
              ReportRejectedResponse::getAuthorization,
              () -> answer(key, again, Duration.ZERO, null, begun + left, ASKED_AGAIN));
        });
  }

  /** Cuts a text to what the broker takes, between characters. */
  static String cut(String detail) {
    int bytes = 0;
    for (int i = 0; i < detail.length(); ) {
      int character = detail.codePointAt(i);
      bytes += character < 0x80 ? 1 : character < 0x800 ? 2 : character < 0x10000 ? 3 : 4;
      if (bytes > LONGEST_DETAIL) {
        return detail.substring(0, i);
      }
      i += Character.charCount(character);
    }
    return detail;
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

  /** The same for another identity than the client's own. */
  public Task registerTask(String thread, String identity) {
    RegisterTaskRequest.Builder request = RegisterTaskRequest.newBuilder().setIdentity(identity);
    if (thread.isEmpty()) {
      request.setKind(TaskKind.TASK_KIND_BACKGROUND);
    } else {
      request.setThreadId(thread);
    }
    return await(start(stub -> stub.registerTask(request.build()), timeout)).getTask();
  }

  /**
   * Ends the task of a thread. Its authorizations are refused from then on, and none that this
   * client holds is given any more.
   *
   * @throws BrokerException when the broker refuses, or is away
   */
  public Task endTask(String thread) {
    return endTask(thread, identity);
  }

  /** The same for another identity than the client's own. */
  public Task endTask(String thread, String identity) {
    EndTaskRequest request =
        EndTaskRequest.newBuilder().setThreadId(thread).setIdentity(identity).build();
    Task ended = await(start(stub -> stub.endTask(request), timeout)).getTask();
    cache.dropAll(
        entry -> entry.key.thread().equals(thread) && entry.key.identity().equals(identity));
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
    BrokerConnection connection = new BrokerConnection(this, channel, authorization(request));
    Entry entry = cache.get(connection.authorization().key());
    if (entry == null) {
      connection.change();
      return connection;
    }
    entry.connections.add(connection);
    Authorization held = entry.value();
    if (entry.isDropped() || held == null) {
      connection.change();
    } else {
      connection.tagIs(held.connectionTag());
      keepUp(connection);
    }
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
    synchronized (this) {
      if (closed) {
        return;
      }
      closed = true;
    }
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

  static IllegalStateException closed() {
    return new IllegalStateException("the client is closed");
  }

  // ---- from memory

  private Authorization held(AuthorizationRequest request) {
    URI origin = request.targetUrl() == null ? null : origin(request.targetUrl());
    return held(key(request), Durations.nanos(request.minValidity()), origin);
  }

  private Authorization held(Key key, long minValidity, URI origin) {
    Entry entry = cache.get(key);
    if (entry == null) {
      return null;
    }
    long now = System.nanoTime();
    Authorization held = entry.use(now, minValidity, origin);
    if (held != null && held.lifetime().isDue(now)) {
      refresh(entry, held, now);
    }
    return held;
  }

  private Key key(AuthorizationRequest request) {
    String whose = request.identity().isEmpty() ? identity : request.identity();
    return new Key(whose, request.scope(), request.thread());
  }

  /** What the broker does not take as a target either has no origin; it says why. */
  private static URI origin(URI target) {
    try {
      return Origin.of(target);
    } catch (IllegalArgumentException none) {
      return target;
    }
  }

  // ---- from the broker

  private record Question(Key key, Duration minValidity, URI origin) {}

  private record Report(Key key, String revision) {}

  private CompletableFuture<Authorization> ask(AuthorizationRequest request) {
    Key key = key(request);
    URI origin = request.targetUrl() == null ? null : origin(request.targetUrl());
    GetAuthorizationRequest.Builder question = question(key);
    if (origin != null) {
      question.setTargetUrl(request.targetUrl().toString());
    }
    if (!request.minValidity().isZero()) {
      question.setMinValidity(Durations.toProto(request.minValidity()));
    }
    return flights.join(
        new Question(key, request.minValidity(), origin),
        deadline(request.timeout()),
        left ->
            answer(
                key,
                question.build(),
                request.minValidity(),
                origin,
                System.nanoTime() + left,
                ASKED_AGAIN));
  }

  private static GetAuthorizationRequest.Builder question(Key key) {
    return GetAuthorizationRequest.newBuilder()
        .setScope(key.scope())
        .setThreadId(key.thread())
        .setIdentity(key.identity());
  }

  /**
   * Asks, and again when something was withdrawn before the answer came.
   *
   * @param until when the last answer has to be there, on the monotonic clock
   * @param again how often at most
   */
  private ListenableFuture<Authorization> answer(
      Key key,
      GetAuthorizationRequest question,
      Duration minValidity,
      URI origin,
      long until,
      int again) {
    long begun = System.nanoTime();
    return keeping(
        key,
        new Cache.Asked(begun, Durations.nanos(minValidity), origin, null),
        start(stub -> stub.getAuthorization(question), until - begun),
        GetAuthorizationResponse::getAuthorization,
        () ->
            again > 0
                ? answer(key, question, minValidity, origin, until, again - 1)
                : Futures.immediateFailedFuture(
                    BrokerException.of(
                        Status.Code.ABORTED, "each answer was withdrawn while it was on its way")));
  }

  /**
   * Asks for the next value in the background, if nobody does and the last failure is old enough.
   */
  private void refresh(Entry entry, Authorization held, long now) {
    if (!entry.beginRefresh(held, now, entry.watched && watch.isUp())) {
      return;
    }
    AuthorizationRequest request =
        AuthorizationRequest.of(entry.key.scope(), entry.key.thread())
            .withIdentity(entry.key.identity());
    channel.execute(
        () -> {
          try {
            ask(request).whenComplete((answer, failure) -> entry.endRefresh(failure));
          } catch (RuntimeException | Error e) {
            entry.endRefresh(BrokerException.of(e));
            throw e;
          }
        });
  }

  /**
   * Keeps the authorization that a call answers with; drops the entry when it is refused.
   *
   * @param again asks anew, for an answer that was withdrawn on its way
   */
  private <R> ListenableFuture<Authorization> keeping(
      Key key,
      Cache.Asked asked,
      ListenableFuture<R> call,
      Function<R, dev.credentialbroker.v1.Authorization> answer,
      Supplier<ListenableFuture<Authorization>> again) {
    ListenableFuture<R> heard =
        Futures.catchingAsync(
            call,
            Throwable.class,
            thrown -> {
              BrokerException refusal = BrokerException.of(thrown);
              boolean ofTheReport =
                  asked.rejected() != null && refusal.code() == Status.Code.INVALID_ARGUMENT;
              if (refusal.refusesWhatIsHeld() && !ofTheReport) {
                cache.refuse(key, asked);
              }
              return Futures.immediateFailedFuture(thrown);
            },
            MoreExecutors.directExecutor());
    return Futures.transformAsync(
        heard,
        response -> {
          long now = System.nanoTime();
          Authorization value = Authorization.of(key, answer.apply(response), now);
          Authorization kept = cache.keep(value, asked, now);
          return kept != null ? Futures.immediateFuture(kept) : again.get();
        },
        MoreExecutors.directExecutor());
  }

  /** Begins a call, and takes note of what it says about the broker. */
  private <R> ListenableFuture<R> start(
      Function<CredentialBrokerFutureStub, ListenableFuture<R>> method, long nanos) {
    if (closed) {
      throw closed();
    }
    CredentialBrokerFutureStub stub =
        channel.calls().withDeadlineAfter(nanos, TimeUnit.NANOSECONDS);
    // Not in the context of who asked first: others wait for the same answer.
    Context before = Context.ROOT.attach();
    ListenableFuture<R> call;
    try {
      call = method.apply(stub);
    } finally {
      Context.ROOT.detach(before);
    }
    Futures.addCallback(
        call,
        new FutureCallback<R>() {
          @Override
          public void onSuccess(R answer) {
            presence.back();
          }

          @Override
          public void onFailure(Throwable thrown) {
            if (!call.isCancelled()) {
              BrokerException error = BrokerException.of(thrown);
              presence.failed(error);
              if (!error.reasonText().isEmpty()) {
                presence.back();
              } else if (error.code() == Status.Code.UNAVAILABLE) {
                brokerIsAway();
              }
            }
          }
        },
        MoreExecutors.directExecutor());
    return call;
  }

  /**
   * Until when a call may last, on the monotonic clock: gRPC's own deadline of the caller counts.
   */
  private long deadline(Duration asked) {
    long nanos = asked == null ? timeout : Math.min(Durations.nanos(asked), LONGEST_CALL);
    Deadline ofContext = Context.current().getDeadline();
    if (ofContext != null) {
      nanos = Math.min(nanos, ofContext.timeRemaining(TimeUnit.NANOSECONDS));
    }
    return System.nanoTime() + nanos;
  }

  private <T> T await(Future<T> answer) {
    try {
      return answer.get();
    } catch (InterruptedException e) {
      answer.cancel(true);
      Thread.currentThread().interrupt();
      throw new CancellationException("interrupted while waiting for the broker");
    } catch (ExecutionException e) {
      if (closed || e.getCause() instanceof IllegalStateException) {
        throw closed();
      }
      throw BrokerException.of(e.getCause());
    }
  }

  // ---- by itself

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

  private void sweep() {
    cache.sweep(System.nanoTime());
  }

  private void brokerIsAway() {
    if (!closed) {
      ClientState state = state();
      presence.away(state.held(), state.firstEndsIn());
    }
  }

  /**
   * Uses the entry of a connection, now and whenever it is due, as long as the connection is open
   * and may be used: without a watch nothing else would refresh it.
   */
  private void keepUp(BrokerConnection connection) {
    Entry entry = cache.get(connection.authorization().key());
    if (entry == null || connection.changed() || !entry.connections.contains(connection)) {
      return;
    }
    long now = System.nanoTime();
    Authorization held = entry.use(now, 0, null);
    if (held == null || held.lifetime().isDue(now)) {
      refresh(entry, held, now);
    }
    long due = held == null ? 0 : held.lifetime().due() - now;
    connection.next(channel.later(Math.max(due, LEAST_LOOK), () -> keepUp(connection)));
  }

  void forget(BrokerConnection connection) {
    Entry entry = cache.get(connection.authorization().key());
    if (entry != null) {
      entry.touch(System.nanoTime());
      entry.connections.remove(connection);
    }
    connection.next(null);
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
    private Duration timeout = Duration.ofNanos(LONGEST_CALL);
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
