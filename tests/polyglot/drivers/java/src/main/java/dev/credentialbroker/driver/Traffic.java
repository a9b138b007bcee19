package dev.credentialbroker.driver;

import com.google.gson.JsonObject;
import dev.credentialbroker.client.Authorization;
import dev.credentialbroker.client.BrokerClient;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.LockSupport;

/** Calls that go on, at a steady rate, until they are stopped. */
final class Traffic {
  private final BrokerClient client;
  private final String scope;
  private final List<String> threads = new ArrayList<>();
  private final List<Thread> workers = new ArrayList<>();
  private final Map<String, Integer> errors = new TreeMap<>();
  private final Set<String> revisions = new HashSet<>();
  private volatile boolean stopped;
  private long calls;
  private long failed;
  private long slowest;
  private long longestExpired;

  private Traffic(BrokerClient client, JsonObject command) {
    this.client = client;
    scope = Driver.text(command, "scope");
    command.getAsJsonArray("threads").forEach(each -> threads.add(each.getAsString()));
  }

  static Traffic start(BrokerClient client, JsonObject command) {
    Traffic traffic = new Traffic(client, command);
    int count = command.has("workers") ? command.get("workers").getAsInt() : 1;
    double rate = command.get("rate").getAsDouble();
    long interval = (long) (TimeUnit.SECONDS.toNanos(count) / rate);
    for (int i = 0; i < count; i++) {
      int first = i;
      Thread worker = new Thread(() -> traffic.work(first, interval), "traffic");
      worker.setDaemon(true);
      traffic.workers.add(worker);
      worker.start();
    }
    return traffic;
  }

  private void work(int first, long interval) {
    long next = System.nanoTime();
    for (int i = first; !stopped; i++) {
      call(threads.get(i % threads.size()));
      next += interval;
      LockSupport.parkNanos(next - System.nanoTime());
    }
  }

  private void call(String thread) {
    long begun = System.nanoTime();
    try {
      Authorization got = client.authorization(scope, thread);
      long left = got.expiresIn().toNanos();
      record(System.nanoTime() - begun, -left, got.revision(), null);
    } catch (RuntimeException failure) {
      record(System.nanoTime() - begun, 0, null, failure);
    }
  }

  private synchronized void record(
      long took, long expired, String revision, RuntimeException failure) {
    calls++;
    slowest = Math.max(slowest, took);
    longestExpired = Math.max(longestExpired, expired);
    if (failure == null) {
      revisions.add(revision);
    } else {
      failed++;
      errors.merge(failure.toString(), 1, Integer::sum);
    }
  }

  JsonObject stop() throws InterruptedException {
    stopped = true;
    for (Thread worker : workers) {
      worker.join();
    }
    JsonObject texts = new JsonObject();
    JsonObject answer = new JsonObject();
    synchronized (this) {
      errors.forEach(texts::addProperty);
      answer.addProperty("calls", calls);
      answer.addProperty("failed", failed);
      answer.add("errors", texts);
      answer.addProperty("slowest_seconds", slowest / 1e9);
      answer.addProperty("longest_expired_seconds", longestExpired / 1e9);
      answer.addProperty("revisions", revisions.size());
    }
    return answer;
  }
}
