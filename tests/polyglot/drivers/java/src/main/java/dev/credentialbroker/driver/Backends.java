package dev.credentialbroker.driver;

import com.google.gson.JsonArray;
import com.google.gson.JsonObject;
import dev.credentialbroker.client.AuthorizationRequest;
import dev.credentialbroker.client.BrokerCallCredentials;
import dev.credentialbroker.client.BrokerClient;
import dev.credentialbroker.client.BrokerHttpClient;
import dev.credentialbroker.client.okhttp.BrokerOkHttp;
import dev.credentialbroker.v1.CredentialBrokerGrpc;
import dev.credentialbroker.v1.ListScopesRequest;
import dev.credentialbroker.v1.ScopeRule;
import io.grpc.ChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.TlsChannelCredentials;
import java.io.File;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;
import okhttp3.HttpUrl;
import okhttp3.MediaType;
import okhttp3.OkHttpClient;
import okhttp3.Request;
import okhttp3.RequestBody;
import okhttp3.Response;
import okio.BufferedSink;

/** Calls to backends through the client's adapters. */
final class Backends {
  private record Asked(
      BrokerClient client, String origin, AuthorizationRequest request, boolean follow) {}

  private final Map<Asked, HttpClient> javaClients = new ConcurrentHashMap<>();
  private final Map<Asked, OkHttpClient> okHttpClients = new ConcurrentHashMap<>();

  JsonObject http(BrokerClient client, JsonObject command, AuthorizationRequest request)
      throws Exception {
    boolean follow =
        command.has("follow_redirects") && command.get("follow_redirects").getAsBoolean();
    Asked asked = new Asked(client, Driver.text(command, "origin"), request, follow);
    String adapter = Driver.text(command, "adapter");
    return switch (adapter) {
      case "java_net_http" -> javaNetHttp(asked, command);
      case "okhttp" -> okHttp(asked, command);
      default -> throw new UnsupportedOperationException("no adapter " + adapter);
    };
  }

  private JsonObject javaNetHttp(Asked asked, JsonObject command) throws Exception {
    HttpClient http =
        javaClients.computeIfAbsent(
            asked,
            key ->
                BrokerHttpClient.of(
                    HttpClient.newBuilder()
                        .version(HttpClient.Version.HTTP_1_1)
                        .followRedirects(
                            key.follow ? HttpClient.Redirect.ALWAYS : HttpClient.Redirect.NEVER),
                    key.client,
                    URI.create(key.origin),
                    key.request));
    HttpRequest.Builder request =
        HttpRequest.newBuilder(URI.create(Driver.text(command, "url")))
            .method(method(command), javaBody(command));
    headers(command).forEach(request::header);
    HttpResponse<String> answer = http.send(request.build(), BodyHandlers.ofString());
    return answer(
        answer.statusCode(), answer.body(), answer.headers().firstValue("location").orElse(null));
  }

  private static BodyPublisher javaBody(JsonObject command) {
    if (!command.has("body")) {
      return BodyPublishers.noBody();
    }
    BodyPublisher body = BodyPublishers.ofString(Driver.text(command, "body"));
    return streams(command) ? BodyPublishers.fromPublisher(body) : body;
  }

  private JsonObject okHttp(Asked asked, JsonObject command) throws IOException {
    OkHttpClient http =
        okHttpClients.computeIfAbsent(
            asked,
            key ->
                BrokerOkHttp.addTo(
                        new OkHttpClient.Builder()
                            .followRedirects(key.follow)
                            .followSslRedirects(key.follow),
                        key.client,
                        HttpUrl.get(key.origin),
                        key.request)
                    .build());
    Request.Builder request = new Request.Builder().url(Driver.text(command, "url"));
    headers(command).forEach(request::header);
    request.method(method(command), okHttpBody(command));
    try (Response answer = http.newCall(request.build()).execute()) {
      return answer(answer.code(), answer.body().string(), answer.header("location"));
    }
  }

  private static RequestBody okHttpBody(JsonObject command) {
    String method = method(command);
    if (!command.has("body")) {
      boolean bodiless = method.equals("GET") || method.equals("HEAD") || method.equals("DELETE");
      return bodiless ? null : RequestBody.create("", null);
    }
    RequestBody body = RequestBody.create(Driver.text(command, "body"), null);
    return streams(command) ? new OneShot(body) : body;
  }

  private static final class OneShot extends RequestBody {
    private final RequestBody body;

    OneShot(RequestBody body) {
      this.body = body;
    }

    @Override
    public MediaType contentType() {
      return body.contentType();
    }

    @Override
    public boolean isOneShot() {
      return true;
    }

    @Override
    public void writeTo(BufferedSink sink) throws IOException {
      body.writeTo(sink);
    }
  }

  private static String method(JsonObject command) {
    return command.has("method") ? Driver.text(command, "method") : "GET";
  }

  private static boolean streams(JsonObject command) {
    return command.has("stream_body") && command.get("stream_body").getAsBoolean();
  }

  private static Map<String, String> headers(JsonObject command) {
    Map<String, String> headers = new java.util.LinkedHashMap<>();
    if (command.has("headers")) {
      JsonObject all = command.getAsJsonObject("headers");
      all.keySet().forEach(name -> headers.put(name, all.get(name).getAsString()));
    }
    return headers;
  }

  private static JsonObject answer(int status, String body, String location) {
    JsonObject answer = new JsonObject();
    answer.addProperty("status", status);
    answer.addProperty("body", body);
    answer.addProperty("location", location);
    return answer;
  }

  JsonObject echo(BrokerClient client, JsonObject command, AuthorizationRequest request)
      throws IOException, InterruptedException {
    String authorities = Driver.text(command, "ca_file");
    ChannelCredentials credentials =
        authorities.isEmpty()
            ? InsecureChannelCredentials.create()
            : TlsChannelCredentials.newBuilder().trustManager(new File(authorities)).build();
    ManagedChannelBuilder<?> builder =
        Grpc.newChannelBuilder(Driver.text(command, "target"), credentials);
    if (!Driver.text(command, "server_name").isEmpty()) {
      builder.overrideAuthority(Driver.text(command, "server_name"));
    }
    ManagedChannel channel = builder.build();
    try {
      CredentialBrokerGrpc.CredentialBrokerBlockingStub stub =
          CredentialBrokerGrpc.newBlockingStub(channel)
              .withCallCredentials(new BrokerCallCredentials(client, request));
      JsonArray results = new JsonArray();
      for (int i = 0; i < (command.has("count") ? command.get("count").getAsInt() : 1); i++) {
        JsonArray metadata = new JsonArray();
        for (ScopeRule rule :
            stub.withDeadlineAfter(10, TimeUnit.SECONDS)
                .listScopes(ListScopesRequest.getDefaultInstance())
                .getScopesList()) {
          metadata.add(Answers.texts(List.of(rule.getScope(), rule.getDescription())));
        }
        JsonObject result = new JsonObject();
        result.add("metadata", metadata);
        results.add(result);
      }
      JsonObject answer = new JsonObject();
      answer.add("results", results);
      return answer;
    } finally {
      channel.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
    }
  }
}
