package dev.credentialbroker.driver;

import com.google.gson.JsonArray;
import com.google.gson.JsonObject;
import dev.credentialbroker.client.Authorization;
import dev.credentialbroker.client.BrokerException;
import dev.credentialbroker.client.ClientState;
import dev.credentialbroker.client.Header;
import dev.credentialbroker.client.OriginException;
import dev.credentialbroker.v1.Task;
import io.grpc.StatusRuntimeException;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ExecutionException;

/** What the client gives, as the protocol writes it. */
final class Answers {
  private Answers() {}

  static JsonObject authorization(Authorization got) {
    JsonObject answer = new JsonObject();
    answer.add("headers", headers(got.headers()));
    answer.addProperty("kind", bare(got.kind(), "CREDENTIAL_KIND_"));
    answer.addProperty("reason", bare(got.reason(), "DECISION_REASON_"));
    answer.addProperty("revision", got.revision());
    answer.addProperty("identity", got.identity());
    answer.addProperty("connection_tag", got.connectionTag());
    answer.addProperty("stale", got.isStale());
    answer.addProperty("expires_in", seconds(got.expiresIn()));
    answer.addProperty("refresh_in", seconds(got.refreshIn()));
    return answer;
  }

  static JsonArray headers(List<Header> headers) {
    JsonArray all = new JsonArray();
    headers.forEach(header -> all.add(texts(List.of(header.name(), header.value()))));
    return all;
  }

  static JsonArray texts(List<String> texts) {
    JsonArray all = new JsonArray();
    texts.forEach(all::add);
    return all;
  }

  static JsonObject task(Task task) {
    JsonObject answer = new JsonObject();
    answer.addProperty("state", bare(task.getState(), "TASK_STATE_"));
    answer.addProperty("thread_id", task.getThreadId());
    answer.addProperty("identity", task.getIdentity());
    return answer;
  }

  static JsonObject state(ClientState state) {
    JsonObject answer = new JsonObject();
    answer.addProperty("watching", state.watching());
    answer.addProperty("held", state.held());
    state.firstEndsIn().ifPresent(left -> answer.addProperty("first_end_in", seconds(left)));
    state.lastError().ifPresent(error -> answer.add("last_error", error(error)));
    return answer;
  }

  static JsonObject error(Throwable failure) {
    Throwable cause = cause(failure);
    JsonObject error = new JsonObject();
    error.addProperty("type", type(cause));
    error.addProperty("message", String.valueOf(cause.getMessage()));
    if (cause instanceof BrokerException broker) {
      error.addProperty("reason", bare(broker.reason(), "ERROR_REASON_"));
      error.addProperty("reason_text", broker.reasonText());
      error.addProperty("code", broker.code().name());
      broker.retryDelay().ifPresent(delay -> error.addProperty("retry_delay", seconds(delay)));
      JsonObject metadata = new JsonObject();
      broker.metadata().forEach(metadata::addProperty);
      error.add("metadata", metadata);
    } else if (cause instanceof StatusRuntimeException ofTheUsersCall) {
      error.addProperty("code", ofTheUsersCall.getStatus().getCode().name());
    }
    return error;
  }

  private static Throwable cause(Throwable failure) {
    boolean wrapped =
        failure instanceof ExecutionException
            || failure instanceof CompletionException
            || (failure instanceof java.io.IOException && !(failure instanceof OriginException));
    return wrapped && failure.getCause() != null ? cause(failure.getCause()) : failure;
  }

  private static String type(Throwable cause) {
    if (cause instanceof BrokerException) {
      return "broker";
    }
    if (cause instanceof OriginException) {
      return "origin";
    }
    if (cause instanceof CancellationException) {
      return "cancelled";
    }
    if (cause instanceof IllegalArgumentException) {
      return "argument";
    }
    return cause instanceof IllegalStateException ? "closed" : "other";
  }

  private static String bare(Enum<?> value, String prefix) {
    String name = value.name();
    return name.startsWith(prefix) ? name.substring(prefix.length()) : name;
  }

  static double seconds(Duration duration) {
    return duration.toNanos() / 1e9;
  }
}
