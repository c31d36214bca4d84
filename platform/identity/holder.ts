/**
 * The identity of a running process: its present key and certificate, renewed before they expire. Listeners are called after
 * each renewal, so that new connections use the new ones without a restart.
 */
import type { SecureContextOptions } from 'node:tls';
import { renewalTime } from '../../model/identity.ts';
import { readCertificate, splitBundle } from './certificates.ts';

/** A key and its certificate, all in PEM. */
export interface IdentityMaterial {
  readonly privateKeyPem: string;
  readonly certificatePem: string;
  /** The authorities that are trusted: the one that has signed the certificate first. */
  readonly authorityPem: string;
}

/** After a renewal that failed, the next try comes after this long at first, in milliseconds, and at most after an hour. */
const FIRST_RETRY_MS = 1_000;
const MAX_WAIT_MS = 60 * 60 * 1000;

/** Holds an identity and renews it; see the head of this file. */
export class IdentityHolder {
  #material: IdentityMaterial;
  #timer: NodeJS.Timeout | undefined;
  #stopped = false;
  #retryMs = FIRST_RETRY_MS;
  #renewing = false;
  #trusted: ReadonlySet<string>;
  readonly #listeners = new Set<() => void>();
  readonly #renew: () => Promise<IdentityMaterial>;
  readonly #onTrouble: (message: string) => void;

  /** `renew` gets a new certificate; a failure is reported to `onTrouble`, and it is tried again. */
  constructor(
    material: IdentityMaterial,
    renew: () => Promise<IdentityMaterial>,
    onTrouble: (message: string) => void = () => {},
  ) {
    this.#material = material;
    this.#trusted = namesIn(material);
    this.#renew = renew;
    this.#onTrouble = onTrouble;
    this.#schedule();
  }

  get material(): IdentityMaterial {
    return this.#material;
  }

  /** Key, certificate with its authority's behind it, and all that are trusted, as TLS takes them; TLS 1.3 alone. */
  get secureContext(): SecureContextOptions {
    const { privateKeyPem, certificatePem, authorityPem } = this.#material;
    const cert = `${certificatePem}\n${splitBundle(authorityPem)[0] ?? ''}`;
    return { key: privateKeyPem, cert, ca: authorityPem, minVersion: 'TLSv1.3' };
  }

  /** Whether an authority is trusted, by its name: as of now, where a connection was made before. */
  trusts(issuer: string): boolean {
    return this.#trusted.has(issuer);
  }

  /** Calls `listener` after each renewal. Returns a function that removes it. */
  onRenewal(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Renews now, unless it is at it. What fails is tried again, as ever. */
  async renewNow(): Promise<void> {
    if (this.#stopped || this.#renewing) return;
    clearTimeout(this.#timer);
    await this.#renewNow();
  }

  /** Ends the renewals. */
  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#timer);
  }

  #schedule(waitMs?: number): void {
    if (this.#stopped) return;
    const dueMs = waitMs ?? renewalTime(readCertificate(this.#material.certificatePem)).getTime() - Date.now();
    // A timer can't wait longer than 24 days, and a clock may be set meanwhile: it looks again every hour.
    const early = dueMs > MAX_WAIT_MS;
    this.#timer = setTimeout(
      () => (early ? this.#schedule() : void this.#renewNow()),
      Math.max(0, Math.min(dueMs, MAX_WAIT_MS)),
    );
    this.#timer.unref();
  }

  async #renewNow(): Promise<void> {
    this.#renewing = true;
    try {
      this.#material = await this.#renew();
      this.#trusted = namesIn(this.#material);
      this.#retryMs = FIRST_RETRY_MS;
      for (const listener of this.#listeners) listener();
      this.#schedule();
    } catch (error) {
      const { notAfter } = readCertificate(this.#material.certificatePem);
      this.#onTrouble(
        `the certificate, good until ${notAfter.toISOString()}, could not be renewed; it is tried again: ${error instanceof Error ? error.message : error}`,
      );
      this.#schedule(this.#retryMs * (0.5 + Math.random()));
      this.#retryMs = Math.min(this.#retryMs * 2, MAX_WAIT_MS);
    } finally {
      this.#renewing = false;
    }
  }
}

/** The names of the authorities that are trusted. */
function namesIn({ authorityPem }: IdentityMaterial): ReadonlySet<string> {
  return new Set(splitBundle(authorityPem).map((pem) => readCertificate(pem).subject));
}
