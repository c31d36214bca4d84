/**
 * `platform/identity/` is about certificates: it issues, reads, renews and checks them. This file is the certificate authority
 * of an installation: a folder with its certificate (`authority.crt`) and its private key (`authority.key`, readable by its
 * owner alone). The key is in no database, log or history.
 */

import type { webcrypto } from 'node:crypto';
import { chmod, link, mkdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { platform } from 'node:process';
import type { Identity } from '../../model/identity.ts';
import {
  type AuthorityKeys,
  certificateFingerprint,
  type IssuedCertificate,
  issueCertificate,
  makeAuthorityCertificate,
  makeKeyPair,
  type RequestedKey,
  readAuthorityKeys,
} from './certificates.ts';

const CERTIFICATE_FILE = 'authority.crt';
const KEY_FILE = 'authority.key';
const DAY_MS = 24 * 60 * 60 * 1000;
const AUTHORITY_LIFETIME_MS = 10 * 365 * DAY_MS;
/** How long a certificate of a sled or the control plane is good by default, in milliseconds. */
const CERTIFICATE_LIFETIME_MS = 30 * DAY_MS;

/** An authority that was opened. Its key stays inside. */
export class Authority {
  readonly #keys: AuthorityKeys;
  /** Its certificate, in PEM. */
  readonly certificatePem: string;
  /** SHA-256 of its certificate, in hexadecimal: what an invitation names it by. */
  readonly fingerprint: string;
  /** How long the certificates that it issues are good, in milliseconds. */
  readonly lifetimeMs: number;

  private constructor(keys: AuthorityKeys, certificatePem: string, fingerprint: string, lifetimeMs: number) {
    this.#keys = keys;
    this.certificatePem = certificatePem;
    this.fingerprint = fingerprint;
    this.lifetimeMs = lifetimeMs;
  }

  /** Makes a new authority in a folder. Throws when there is one already, or the folder can't be written. */
  static async create(folder: string): Promise<void> {
    await mkdir(folder, { recursive: true, mode: 0o700 });
    const pair = await makeKeyPair();
    const certificate = await makeAuthorityCertificate(pair, AUTHORITY_LIFETIME_MS);
    try {
      await writeNew(join(folder, KEY_FILE), pair.privateKeyPem, 0o600);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
      throw new Error(`${folder} holds an authority already: choose another folder, or use that one`);
    }
    await writeNew(join(folder, CERTIFICATE_FILE), certificate, 0o644);
  }

  /**
   * Opens the authority in a folder. `lifetimeMs`: how long the certificates that it issues are good, in milliseconds.
   * Throws when there is none, when others may read its key, or when key and certificate don't belong together.
   */
  static async open(folder: string, lifetimeMs = CERTIFICATE_LIFETIME_MS): Promise<Authority> {
    const keyFile = join(folder, KEY_FILE);
    const [certificatePem, privateKeyPem] = await Promise.all(
      [join(folder, CERTIFICATE_FILE), keyFile].map((file) =>
        readFile(file, 'utf8').catch((error: NodeJS.ErrnoException) => {
          if (error.code !== 'ENOENT') throw error;
          throw new Error(
            `there is no authority in ${folder} (${file} is missing): "mooring authority create ${folder}" makes one`,
          );
        }),
      ),
    );
    if (certificatePem === undefined || privateKeyPem === undefined) throw new Error('both files were read');
    const { mode } = await stat(keyFile);
    if (platform !== 'win32' && (mode & 0o077) !== 0)
      throw new Error(`${keyFile} can be read by others: "chmod 600 ${keyFile}" keeps it for its owner`);
    try {
      const keys = await readAuthorityKeys(certificatePem, privateKeyPem);
      return new Authority(keys, certificatePem, await certificateFingerprint(certificatePem), lifetimeMs);
    } catch (error) {
      // Only which files, never what is in them.
      throw new Error(`the authority in ${folder} can't be used: ${error instanceof Error ? error.message : error}`);
    }
  }

  /** Opens the authority in a folder, made when there is none. For one process alone with its folder. */
  static async openOrCreate(folder: string, lifetimeMs?: number): Promise<Authority> {
    const exists = await stat(join(folder, KEY_FILE)).catch(() => null);
    if (exists === null) await Authority.create(folder);
    return Authority.open(folder, lifetimeMs);
  }

  /** Signs a public key for an identity found at these IP addresses and names. */
  issue(
    publicKey: RequestedKey['request']['publicKey'] | webcrypto.CryptoKey,
    identity: Identity,
    hosts: readonly string[],
  ): Promise<IssuedCertificate> {
    return issueCertificate(this.#keys, publicKey, identity, hosts, this.lifetimeMs);
  }
}

/** Writes a file that must not be there yet; complete or not at all, and at no moment with a wider mode. */
async function writeNew(file: string, content: string, mode: number): Promise<void> {
  const temporary = `${file}.${process.pid}.new`;
  await rm(temporary, { force: true });
  await writeFile(temporary, content, { mode, flag: 'wx' });
  try {
    await chmod(temporary, mode);
    await link(temporary, file);
  } finally {
    await rm(temporary, { force: true });
  }
}
