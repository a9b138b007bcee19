import { createPrivateKey, X509Certificate } from "node:crypto";
import { readFileSync, statSync } from "node:fs";
import { createSecureContext } from "node:tls";

import type { experimental } from "@grpc/grpc-js";

import type { Clock } from "./lifetimes.js";
import type { TlsPaths } from "./settings.js";

const LOOK_EVERY_MS = 10_000;

type CaListener = experimental.CaCertificateUpdateListener;
type IdentityListener = experimental.IdentityCertificateUpdateListener;

interface Contents {
  readonly ca: experimental.CaCertificateUpdate;
  readonly identity: experimental.IdentityCertificateUpdate | undefined;
}

/**
 * The TLS files, read again when they change: new connections use what they held last that parses.
 *
 * grpc-js takes certificates that change from a `CertificateProvider` only, which it calls experimental.
 */
export class TlsFiles implements experimental.CertificateProvider {
  readonly #paths: TlsPaths;
  readonly #clock: Clock;
  readonly #caListeners = new Set<CaListener>();
  readonly #identityListeners = new Set<IdentityListener>();
  #contents: Contents;
  #stamp: string;
  #lookedAt: number;

  /** @throws Error that names the file, when one cannot be read or does not parse. */
  constructor(paths: TlsPaths, clock: Clock) {
    this.#paths = paths;
    this.#clock = clock;
    this.#lookedAt = clock();
    this.#stamp = stamp(paths);
    this.#contents = readContents(paths);
  }

  /** Whether there is a certificate of the client's own. */
  get hasIdentity(): boolean {
    return this.#contents.identity !== undefined;
  }

  /** Looks whether the files have changed, at most every 10 s, and takes over what they hold if all of it parses. */
  refresh(): void {
    const now = this.#clock();
    if (now - this.#lookedAt < LOOK_EVERY_MS) {
      return;
    }
    this.#lookedAt = now;
    try {
      const found = stamp(this.#paths);
      if (found === this.#stamp) {
        return;
      }
      this.#contents = readContents(this.#paths);
      this.#stamp = found;
    } catch {
      return; // half-written or gone: what is in use stays, and the next look may find better
    }
    this.#caListeners.forEach((listener) => {
      listener(this.#contents.ca);
    });
    this.#identityListeners.forEach((listener) => {
      listener(this.#contents.identity ?? null);
    });
  }

  addCaCertificateListener(listener: CaListener): void {
    this.#caListeners.add(listener);
    listener(this.#contents.ca);
  }

  removeCaCertificateListener(listener: CaListener): void {
    this.#caListeners.delete(listener);
  }

  addIdentityCertificateListener(listener: IdentityListener): void {
    this.#identityListeners.add(listener);
    listener(this.#contents.identity ?? null);
  }

  removeIdentityCertificateListener(listener: IdentityListener): void {
    this.#identityListeners.delete(listener);
  }
}

/** Returns what changes with the files; links are followed, as those of a mounted secret are switched. */
function stamp({ caFile, certificateFile, privateKeyFile }: TlsPaths): string {
  return [caFile, certificateFile, privateKeyFile]
    .map((path) => path && naming(path, () => statSync(path, { bigint: true })))
    .map((file) => file && `${String(file.ino)} ${String(file.size)} ${String(file.mtimeNs)}`)
    .join(",");
}

function readContents({ caFile, certificateFile, privateKeyFile }: TlsPaths): Contents {
  const caCertificate = naming(caFile, () => readFileSync(caFile));
  naming(caFile, () => new X509Certificate(caCertificate));
  if (certificateFile === undefined || privateKeyFile === undefined) {
    return { ca: { caCertificate }, identity: undefined };
  }
  const certificate = naming(certificateFile, () => readFileSync(certificateFile));
  const parsed = naming(certificateFile, () => new X509Certificate(certificate));
  naming(certificateFile, () => createSecureContext({ cert: certificate })); // which parses the chain too
  const privateKey = naming(privateKeyFile, () => readFileSync(privateKeyFile));
  const key = naming(privateKeyFile, () => createPrivateKey(privateKey));
  if (!parsed.checkPrivateKey(key)) {
    throw new Error(`${privateKeyFile} is not the private key of ${certificateFile}`);
  }
  return { ca: { caCertificate }, identity: { certificate, privateKey } };
}

/** Lets an error name the file that it is about. */
function naming<T>(path: string, read: () => T): T {
  try {
    return read();
  } catch (cause) {
    throw new Error(`cannot use the TLS file ${path}`, { cause });
  }
}
