import { setImmediate } from "node:timers/promises";

import type { AuthorizationOptions, CallOptions } from "./client.js";
import type { Authorization } from "./authorization.js";
import { OriginError } from "./errors.js";

/** A function that is called like `fetch`. */
export type Fetch = typeof globalThis.fetch;

/** What the `fetch` of a client is made for. */
export interface FetchOptions extends Pick<AuthorizationOptions, "thread" | "identity" | "timeoutMs"> {
  /** The backend's origin, `https://host[:port]`; a URL is taken for its origin. Requests to any other fail. */
  readonly origin: string | URL;
  /** What the calls are for, for example `inference`. */
  readonly scope: string;
  /** What sends; `fetch` of Node by default. */
  readonly fetch?: Fetch | undefined;
}

/** What the adapter needs of a client. */
interface Broker {
  authorization(scope: string, options: AuthorizationOptions): Promise<Authorization>;
  reportRejected(authorization: Authorization, options: CallOptions): Promise<Authorization>;
}

/**
 * Returns a `fetch` that attaches the headers to requests of one origin.
 *
 * - A request to another origin fails with an {@link OriginError} before anything is sent.
 * - Redirects are never followed: they are the answer, whatever `redirect` says; with `redirect: "error"` a failure.
 * - After a 401 it reports, and sends the request once more with better headers. Requests with a body that can be read
 *   only once (a stream, or a `Request` with a body) are not sent again: theirs is the 401, after the report.
 * - When the broker has nothing better, or sending again fails, the 401 is the answer.
 *
 * @throws TypeError when `origin` is not an origin.
 */
export function brokerFetch(broker: Broker, options: FetchOptions): Fetch {
  const { origin } = new URL(options.origin);
  if (origin === "null") {
    throw new TypeError(`origin must be http(s)://host[:port], not ${String(options.origin)}`);
  }
  const { scope, thread, identity, timeoutMs, fetch: send = globalThis.fetch } = options;

  return async (input, init) => {
    const request = new Request(input, { ...init, redirect: "manual" });
    if (new URL(request.url).origin !== origin) {
      throw new OriginError(`this fetch sends credentials to ${origin} only, not to ${new URL(request.url).origin}`);
    }
    const mayFollow = (init?.redirect ?? (input instanceof Request ? input.redirect : "follow")) !== "error";
    const { signal } = request;
    const sendWith = async (authorization: Authorization, body: Request): Promise<Response> => {
      authorization.applyTo(body.headers);
      const response = await send(body);
      if (!mayFollow && response.status >= 300 && response.status < 400 && response.headers.has("location")) {
        await cancel(response);
        throw new TypeError(`the answer is a redirect (${String(response.status)}), and redirect is "error"`);
      }
      return response;
    };

    const again = canBeSentAgain(input, init) ? request.clone() : undefined;
    const authorization = await broker.authorization(scope, {
      thread,
      identity,
      timeoutMs,
      targetUrl: origin,
      signal,
    });
    const answer = await sendWith(authorization, request);
    if (answer.status !== 401) {
      return answer;
    }
    try {
      const better = await broker.reportRejected(authorization, { timeoutMs, signal });
      if (again === undefined) {
        return answer;
      }
      await readAhead(answer);
      const second = await sendWith(better, again);
      await cancel(answer);
      return second;
    } catch (error) {
      if (signal.aborted) {
        throw error;
      }
      return answer; // an answer never becomes an error
    }
  };
}

const MOST_READ_AHEAD = 65_536;

/** Reads what an answer begins with, and leaves it to be read again: of one that is read its connection is free. */
async function readAhead(answer: Response): Promise<void> {
  const body: ReadableStream<Uint8Array> | null = answer.clone().body;
  const reader = body?.getReader();
  try {
    let bytes = 0;
    while (reader !== undefined && bytes <= MOST_READ_AHEAD) {
      const { done, value } = await reader.read();
      if (done) {
        await setImmediate(); // undici puts the connection back just after the last bytes
        return;
      }
      bytes += value.byteLength;
    }
  } catch {
    return; // what is broken is told to whoever reads it, should it be the answer
  }
  reader?.cancel().catch(() => undefined); // ends with the other reader, so it is not waited for
}

/** Says that nobody reads an answer. Whether it ended well does not matter any more. */
async function cancel(answer: Response): Promise<void> {
  await answer.body?.cancel().catch(() => undefined);
}

/** Whether a request holds no body, or one that stands in memory. */
function canBeSentAgain(input: string | URL | Request, init: RequestInit | undefined): boolean {
  const body = init?.body ?? (input instanceof Request ? input.body : null);
  return (
    body === null || (!(body instanceof ReadableStream) && !(typeof body === "object" && Symbol.asyncIterator in body))
  );
}
