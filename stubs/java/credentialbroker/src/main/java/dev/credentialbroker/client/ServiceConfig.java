package dev.credentialbroker.client;

import java.util.List;
import java.util.Map;

/** The service config that is shipped in every client: {@code protos/service_config.json}. */
final class ServiceConfig {
  private static final String SERVICE = "credentialbroker.v1.CredentialBroker";

  static final Map<String, Object> VALUE =
      Map.of(
          "loadBalancingConfig",
          List.of(Map.of("round_robin", Map.of())),
          "methodConfig",
          List.of(
              Map.of(
                  "name",
                  List.of(Map.of("service", SERVICE)),
                  "waitForReady",
                  true,
                  "timeout",
                  "10s",
                  "retryPolicy",
                  Map.of(
                      "maxAttempts",
                      4.0,
                      "initialBackoff",
                      "0.1s",
                      "maxBackoff",
                      "2s",
                      "backoffMultiplier",
                      2.0,
                      "retryableStatusCodes",
                      List.of("UNAVAILABLE"))),
              Map.of(
                  "name",
                  List.of(Map.of("service", SERVICE, "method", "WatchAuthorizations")),
                  "waitForReady",
                  false)));

  private ServiceConfig() {}
}
