/** What protos/service_config.json says, which all clients ship; a test compares them. */
export const SERVICE_CONFIG = {
  loadBalancingConfig: [{ round_robin: {} }],
  methodConfig: [
    {
      name: [{ service: "credentialbroker.v1.CredentialBroker" }],
      waitForReady: true,
      timeout: "10s",
      retryPolicy: {
        maxAttempts: 4,
        initialBackoff: "0.1s",
        maxBackoff: "2s",
        backoffMultiplier: 2,
        retryableStatusCodes: ["UNAVAILABLE"],
      },
    },
    {
      name: [{ service: "credentialbroker.v1.CredentialBroker", method: "WatchAuthorizations" }],
      waitForReady: false,
    },
  ],
};
