import dev.credentialbroker.client.Authorization;
import dev.credentialbroker.client.AuthorizationRequest;
import dev.credentialbroker.client.BrokerClient;
import dev.credentialbroker.client.BrokerHttpClient;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;

/** Calls a protected resource of a backend with the credential that the broker has for it. */
public class Quickstart {
  public static void main(String[] arguments) throws Exception {
    URI url =
        URI.create(
            arguments.length > 0 ? arguments[0] : "http://127.0.0.1:8089/backend-api/codex/models");

    try (BrokerClient broker = BrokerClient.create()) {
      AuthorizationRequest wanted = AuthorizationRequest.of("inference", "quickstart");
      HttpClient http = BrokerHttpClient.of(broker, url.resolve("/"), wanted);

      HttpResponse<String> answer =
          http.send(HttpRequest.newBuilder(url).build(), BodyHandlers.ofString());

      Authorization used = broker.authorization(wanted); // from memory
      String kind = used.kind().name().replace("CREDENTIAL_KIND_", "");
      System.out.println(kind + " " + answer.statusCode());
    }
  }
}
