import type { Authorization } from "./authorization.js";
import type { Entry } from "./entry.js";

/**
 * The headers to dial one long-lived connection with (a websocket, a pool), and word of when it must be closed.
 *
 * Close it when the connection ends: until then the client keeps its authorization current.
 *
 * ```ts
 * using dialled = await client.connection("inference", { thread: "t1" });
 * const socket = new WebSocket(url, { headers: dialled.authorization.toRecord() });
 * dialled.signal.addEventListener("abort", () => socket.close());
 * ```
 */
export class Connection implements Disposable {
  /** What to dial with. */
  readonly authorization: Authorization;
  readonly #entry: Entry | undefined;
  readonly #controller = new AbortController();

  /** Made by the client. `entry` is where it learns of changes; without one it has changed already. */
  constructor(authorization: Authorization, entry: Entry | undefined) {
    this.authorization = authorization;
    this.#entry = entry;
    const current = entry?.held?.authorization;
    if (current?.connectionTag === authorization.connectionTag) {
      entry?.connections.add(this);
    } else {
      this.end("its authorization is no longer held");
    }
  }

  /** The tag that it was dialled under. */
  get connectionTag(): string {
    return this.authorization.connectionTag;
  }

  /** Whether the headers must not be used any longer: the tag changed, or the value was withdrawn. */
  get changed(): boolean {
    return this.#controller.signal.aborted;
  }

  /** Aborted as soon as {@link changed}; also when the client is closed, then with a ClosedError as its reason. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Says that the connection has ended. Closing twice is fine. */
  close(): void {
    this.#entry?.connections.delete(this);
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** Called by the client when the headers must not be used any longer. */
  end(why: string | Error): void {
    this.close();
    this.#controller.abort(typeof why === "string" ? new Error(`the connection must be closed: ${why}`) : why);
  }
}
