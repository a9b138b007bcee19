package dev.credentialbroker.driver;

import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import dev.credentialbroker.client.Authorization;
import dev.credentialbroker.client.AuthorizationRequest;
import dev.credentialbroker.client.BrokerClient;
import dev.credentialbroker.client.BrokerConnection;
import dev.credentialbroker.v1.Task;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.lang.management.ManagementFactory;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/** Does with the Java client what it is told: the protocol of {@code tests/polyglot/README.md}. */
public final class Driver {
  private final Map<String, BrokerClient> clients = new ConcurrentHashMap<>();
  private final Map<String, BrokerConnection> connections = new ConcurrentHashMap<>();
  private final Map<String, Traffic> traffics = new ConcurrentHashMap<>();
  private final Map<Integer, Authorization> held = new ConcurrentHashMap<>();
  private final Backends backends = new Backends();
  private final ExecutorService commands =
      Executors.newCachedThreadPool(
          task -> {
            Thread thread = new Thread(task, "command");
            thread.setDaemon(true);
            return thread;
          });
  private final PrintStream answers = new PrintStream(System.out, true, StandardCharsets.UTF_8);

  private Driver() {}

  /**
   * Reads commands until the end of the input.
   *
   * @throws Exception when the input breaks off, or not even a first call can be made
   */
  public static void main(String[] arguments) throws Exception {
    WarmUp.run();
    new Driver().run();
    System.exit(0);
  }

  private void run() throws IOException {
    BufferedReader input =
        new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String line = input.readLine(); line != null; line = input.readLine()) {
      JsonObject command = JsonParser.parseString(line).getAsJsonObject();
      commands.execute(() -> answer(command));
    }
    clients.values().forEach(BrokerClient::close);
  }

  private void answer(JsonObject command) {
    JsonObject answer = new JsonObject();
    answer.add("id", command.get("id"));
    try {
      answer.add("ok", perform(command));
    } catch (Throwable failure) {
      answer.add("error", Answers.error(failure));
    }
    answers.println(answer);
  }

  private JsonObject perform(JsonObject command) throws Exception {
    String what = command.get("do").getAsString();
    return switch (what) {
      case "hello" -> hello();
      case "open" -> open(command);
      case "close" -> {
        client(command).close();
        yield new JsonObject();
      }
      case "authorization" -> authorization(command);
      case "many" -> many(command);
      case "cancel_after" -> cancelAfter(command);
      case "report_rejected" -> reportRejected(command);
      case "register_task" -> task(client(command), command, true);
      case "end_task" -> task(client(command), command, false);
      case "state" -> Answers.state(client(command).state());
      case "http" -> http(command);
      case "grpc_echo" -> backends.echo(client(command), command, request(command));
      case "connect" -> connect(command);
      case "changed" -> changed(command);
      case "disconnect" -> {
        connections.get(text(command, "connection")).close();
        yield new JsonObject();
      }
      case "traffic_start" -> {
        traffics.put(text(command, "traffic"), Traffic.start(client(command), command));
        yield new JsonObject();
      }
      case "traffic_stop" -> traffics.remove(text(command, "traffic")).stop();
      case "burn" -> burn(command);
      case "show" -> show(command);
      case "fork" -> {
        JsonObject unsupported = new JsonObject();
        unsupported.addProperty("unsupported", true);
        yield unsupported;
      }
      case "threads" -> {
        JsonObject count = new JsonObject();
        count.addProperty("count", ManagementFactory.getThreadMXBean().getThreadCount());
        yield count;
      }
      default -> throw new UnsupportedOperationException("no command " + what);
    };
  }

  private static JsonObject hello() {
    JsonObject adapters = new JsonObject();
    adapters.add("http", Answers.texts(List.of("java_net_http", "okhttp")));
    adapters.add("grpc", Answers.texts(List.of("call_credentials")));
    JsonObject hello = new JsonObject();
    hello.addProperty("language", "java");
    hello.addProperty("runtime", "Java " + Runtime.version());
    hello.addProperty("client", "0.1.0");
    hello.add("adapters", adapters);
    return hello;
  }

  private JsonObject open(JsonObject command) {
    BrokerClient client =
        command.has("env") && command.get("env").getAsBoolean()
            ? BrokerClient.create()
            : built(command);
    clients.put(text(command, "client"), client);
    return new JsonObject();
  }

  private static BrokerClient built(JsonObject command) {
    BrokerClient.Builder builder = BrokerClient.builder();
    for (String name : command.keySet()) {
      JsonElement value = command.get(name);
      if (value.isJsonNull()) {
        continue;
      }
      switch (name) {
        case "address" -> builder.address(value.getAsString());
        case "identity" -> builder.identity(value.getAsString());
        case "watch" -> builder.watch(value.getAsBoolean());
        case "timeout" -> builder.timeout(seconds(value));
        case "ca_file" -> builder.caFile(Path.of(value.getAsString()));
        case "certificate_file" -> builder.certificateFile(Path.of(value.getAsString()));
        case "private_key_file" -> builder.privateKeyFile(Path.of(value.getAsString()));
        case "server_name" -> builder.serverName(value.getAsString());
        case "plaintext" -> builder.plaintext(value.getAsBoolean());
        case "cache_size" -> builder.cacheSize(value.getAsInt());
        case "idle_seconds" -> builder.idleTime(seconds(value));
        case "silence_seconds" -> builder.silence(seconds(value));
        default -> {
          // Not an option: the command itself.
        }
      }
    }
    return builder.build();
  }

  private JsonObject authorization(JsonObject command) {
    Authorization got = client(command).authorization(request(command));
    held.put(command.get("id").getAsInt(), got);
    return Answers.authorization(got);
  }

  private JsonObject many(JsonObject command) throws InterruptedException {
    BrokerClient client = client(command);
    AuthorizationRequest request = request(command);
    JsonArray threads =
        command.has("threads") ? command.getAsJsonArray("threads") : new JsonArray();
    List<Callable<JsonObject>> calls = new ArrayList<>();
    for (int i = 0; i < command.get("count").getAsInt(); i++) {
      AuthorizationRequest each =
          threads.isEmpty() ? request : request.withThread(threads.get(i % threads.size()).getAsString());
      calls.add(() -> Answers.authorization(client.authorization(each)));
    }
    return atOnce(calls);
  }

  /** Begins calls in a thread each, all in the same moment, and waits for them. */
  private JsonObject atOnce(List<Callable<JsonObject>> calls) throws InterruptedException {
    CountDownLatch start = new CountDownLatch(1);
    List<Future<JsonObject>> begun = new ArrayList<>();
    for (Callable<JsonObject> call : calls) {
      begun.add(
          commands.submit(
              () -> {
                start.await();
                return call.call();
              }));
    }
    long from = System.nanoTime();
    start.countDown();
    JsonArray results = new JsonArray();
    for (Future<JsonObject> call : begun) {
      try {
        results.add(call.get());
      } catch (java.util.concurrent.ExecutionException failure) {
        JsonObject failed = new JsonObject();
        failed.add("error", Answers.error(failure));
        results.add(failed);
      }
    }
    JsonObject all = new JsonObject();
    all.add("results", results);
    all.addProperty("seconds", (System.nanoTime() - from) / 1e9);
    return all;
  }

  private JsonObject cancelAfter(JsonObject command) throws Exception {
    CompletableFuture<Authorization> call = client(command).authorizationAsync(request(command));
    try {
      return Answers.authorization(
          call.get(seconds(command.get("seconds")).toNanos(), TimeUnit.NANOSECONDS));
    } catch (TimeoutException now) {
      call.cancel(true);
      return Answers.authorization(call.get());
    }
  }

  private JsonObject reportRejected(JsonObject command) throws InterruptedException {
    BrokerClient client = client(command);
    Authorization rejected = held.get(command.get("held").getAsInt());
    String detail = text(command, "detail");
    int count = command.has("count") ? command.get("count").getAsInt() : 1;
    if (count > 1) {
      List<Callable<JsonObject>> calls = new ArrayList<>();
      for (int i = 0; i < count; i++) {
        calls.add(() -> Answers.authorization(client.reportRejected(rejected, detail)));
      }
      return atOnce(calls);
    }
    Authorization better = client.reportRejected(rejected, detail);
    held.put(command.get("id").getAsInt(), better);
    return Answers.authorization(better);
  }

  private static JsonObject task(BrokerClient client, JsonObject command, boolean register) {
    String thread = text(command, "thread");
    String identity = text(command, "identity");
    Task task;
    if (identity.isEmpty()) {
      task = register ? client.registerTask(thread) : client.endTask(thread);
    } else {
      task = register ? client.registerTask(thread, identity) : client.endTask(thread, identity);
    }
    return Answers.task(task);
  }

  private JsonObject http(JsonObject command) throws Exception {
    BrokerClient client = client(command);
    AuthorizationRequest request = request(command);
    int count = command.has("count") ? command.get("count").getAsInt() : 1;
    if (count == 1) {
      return backends.http(client, command, request);
    }
    List<Callable<JsonObject>> calls = new ArrayList<>();
    for (int i = 0; i < count; i++) {
      calls.add(() -> backends.http(client, command, request));
    }
    return atOnce(calls);
  }

  private JsonObject connect(JsonObject command) {
    BrokerConnection connection =
        client(command).connection(text(command, "scope"), text(command, "thread"));
    connections.put(text(command, "connection"), connection);
    JsonObject answer = new JsonObject();
    answer.add("headers", Answers.headers(connection.headers()));
    answer.addProperty("connection_tag", connection.connectionTag());
    return answer;
  }

  private JsonObject changed(JsonObject command) throws Exception {
    BrokerConnection connection = connections.get(text(command, "connection"));
    double wait = command.has("wait") ? command.get("wait").getAsDouble() : 0;
    boolean changed;
    try {
      if (wait > 0) {
        connection.whenChanged().get((long) (wait * 1e9), TimeUnit.NANOSECONDS);
      }
      changed = connection.changed();
    } catch (TimeoutException unchanged) {
      changed = false;
    }
    JsonObject answer = new JsonObject();
    answer.addProperty("changed", changed);
    return answer;
  }

  private JsonObject burn(JsonObject command) {
    BrokerClient client = client(command);
    String scope = text(command, "scope");
    String thread = text(command, "thread");
    int count = command.get("count").getAsInt();
    client.authorization(scope, thread);
    long from = System.nanoTime();
    for (int i = 0; i < count; i++) {
      client.authorization(scope, thread);
    }
    long nanos = System.nanoTime() - from;
    JsonObject answer = new JsonObject();
    answer.addProperty("seconds", nanos / 1e9);
    answer.addProperty("nanoseconds_each", (double) nanos / count);
    return answer;
  }

  private JsonObject show(JsonObject command) {
    List<String> texts = new ArrayList<>();
    BrokerClient client = client(command);
    Authorization authorization = held.get(command.get("held").getAsInt());
    List<Object> shown = new ArrayList<>(List.of(client, authorization, authorization.headers()));
    shown.addAll(authorization.headers());
    shown.addAll(connections.values());
    shown.add(client.state());
    for (Object each : shown) {
      texts.add(each.toString());
      texts.add(String.format("%s", each));
      texts.add(String.valueOf(List.of(each)));
    }
    JsonObject answer = new JsonObject();
    answer.add("texts", Answers.texts(texts));
    return answer;
  }

  private BrokerClient client(JsonObject command) {
    BrokerClient client = clients.get(text(command, "client"));
    if (client == null) {
      throw new UnsupportedOperationException("no such client was opened");
    }
    return client;
  }

  private static AuthorizationRequest request(JsonObject command) {
    AuthorizationRequest request =
        AuthorizationRequest.of(text(command, "scope"), text(command, "thread"))
            .withIdentity(text(command, "identity"));
    if (!text(command, "target_url").isEmpty()) {
      request = request.withTargetUrl(URI.create(text(command, "target_url")));
    }
    if (command.has("min_validity")) {
      request = request.withMinValidity(seconds(command.get("min_validity")));
    }
    return command.has("timeout") ? request.withTimeout(seconds(command.get("timeout"))) : request;
  }

  static String text(JsonObject command, String member) {
    JsonElement value = command.get(member);
    return value == null || value.isJsonNull() ? "" : value.getAsString();
  }

  static Duration seconds(JsonElement value) {
    return Duration.ofNanos(Math.round(value.getAsDouble() * 1e9));
  }
}
