package dev.credentialbroker.client;

import com.sun.net.httpserver.Headers;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.util.ArrayDeque;
import java.util.List;
import java.util.Queue;
import java.util.concurrent.CopyOnWriteArrayList;

/** An HTTP server on loopback that answers as it is told, else with 200. */
public final class FakeBackend implements AutoCloseable {
  /** What arrived. */
  public record Received(Headers headers, String body) {
    /** All values of a header. */
    public List<String> values(String name) {
      return headers.getOrDefault(name, List.of());
    }
  }

  /** In the place of a status: the connection is closed instead of an answer. */
  public static final int CUT_OFF = -1;

  /** The requests that arrived. */
  public final List<Received> received = new CopyOnWriteArrayList<>();

  /** The statuses of the next answers. */
  public final Queue<Integer> statuses = new ArrayDeque<>();

  /** Where redirects lead. */
  public volatile URI location;

  private final HttpServer server;

  /** Starts it. */
  public FakeBackend() throws IOException {
    server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0);
    server.createContext("/", this::answer);
    server.start();
  }

  /** Its origin. */
  public URI origin() {
    return URI.create("http://127.0.0.1:" + server.getAddress().getPort());
  }

  private synchronized void answer(HttpExchange exchange) throws IOException {
    String body = new String(exchange.getRequestBody().readAllBytes(), StandardCharsets.UTF_8);
    received.add(new Received(exchange.getRequestHeaders(), body));
    int status = statuses.isEmpty() ? 200 : statuses.remove();
    if (status == CUT_OFF) {
      exchange.close();
      return;
    }
    if (status / 100 == 3) {
      exchange.getResponseHeaders().set("location", location.toString());
    }
    byte[] text = Integer.toString(status).getBytes(StandardCharsets.UTF_8);
    exchange.sendResponseHeaders(status, text.length);
    exchange.getResponseBody().write(text);
    exchange.close();
  }

  @Override
  public void close() {
    server.stop(0);
  }
}
