/**
 * `platform/identity/` is about certificates: it issues, reads, renews and checks them. This file is the certificate authority
 * of an installation: a folder with its certificate (`authority.crt`) and its private key (`authority.key`, readable by its
 * owner alone). The key is in no database, log or history.
 */

import type { webcrypto } from 'node:crypto';
import { chmod, link, mkdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
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
/** An authority that is trusted, and is to take over: {@link Authority.renew}. */
const NEXT_CERTIFICATE_FILE = 'next.crt';
const NEXT_KEY_FILE = 'next.key';
/** The certificates of those that were replaced, and are trusted still; their keys are gone. */
const FORMER_FILE = 'former.crt';
const DAY_MS = 24 * 60 * 60 * 1000;
const AUTHORITY_LIFETIME_MS = 10 * 365 * DAY_MS;
/** How long a certificate of a sled or the control plane is good by default, in milliseconds. */
const CERTIFICATE_LIFETIME_MS = 30 * DAY_MS;

/** An authority that was opened. Its key stays inside. */
export class Authority {
  readonly #keys: AuthorityKeys;
  /** Its certificate, in PEM. */
  readonly certificatePem: string;
  /** The certificates of all authorities that are trusted, in PEM: its own, then those before and after it. */
  readonly trustedPem: string;
  /** SHA-256 of its certificate, in hexadecimal: what an invitation names it by. */
  readonly fingerprint: string;
  /** How long the certificates that it issues are good, in milliseconds. */
  readonly lifetimeMs: number;

  private constructor(
    keys: AuthorityKeys,
    certificatePem: string,
    others: readonly string[],
    fingerprint: string,
    lifetimeMs: number,
  ) {
    this.#keys = keys;
    this.certificatePem = certificatePem;
    this.trustedPem = [certificatePem, ...others].map((pem) => `${pem.trimEnd()}\n`).join('');
    this.fingerprint = fingerprint;
    this.lifetimeMs = lifetimeMs;
  }

  /** Makes a new authority in a folder. Throws when there is one already, or the folder can't be written. */
  static async create(folder: string): Promise<void> {
    await mkdir(folder, { recursive: true, mode: 0o700 });
    await writeAuthority(join(folder, KEY_FILE), join(folder, CERTIFICATE_FILE)).catch(
      (error: NodeJS.ErrnoException) => {
        if (error.code !== 'EEXIST') throw error;
        throw new Error(`${folder} holds an authority already: choose another folder, or use that one`);
      },
    );
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
    for (const file of [keyFile, join(folder, NEXT_KEY_FILE)]) {
      const found = await stat(file).catch(() => null);
      if (platform !== 'win32' && found !== null && (found.mode & 0o077) !== 0)
        throw new Error(`${file} can be read by others: "chmod 600 ${file}" keeps it for its owner`);
    }
    try {
      const keys = await readAuthorityKeys(certificatePem, privateKeyPem);
      const others = await Promise.all(
        [NEXT_CERTIFICATE_FILE, FORMER_FILE].map((file) => readIfThere(join(folder, file))),
      );
      return new Authority(
        keys,
        certificatePem,
        others.filter((pem) => pem !== null),
        await certificateFingerprint(certificatePem),
        lifetimeMs,
      );
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

  /**
   * Begins to replace the authority in a folder: makes the next one, which is trusted from then on by whoever reads the folder, and
   * told to the sleds; nothing is signed by it yet. Throws when there is a next one already.
   */
  static async renew(folder: string): Promise<void> {
    await Authority.open(folder);
    if ((await readIfThere(join(folder, NEXT_CERTIFICATE_FILE))) !== null)
      throw new Error(`${folder} has a next authority already: "mooring authority switch ${folder}" lets it take over`);
    // A key without a certificate is what was left when this was broken off.
    await rm(join(folder, NEXT_KEY_FILE), { force: true });
    await writeAuthority(join(folder, NEXT_KEY_FILE), join(folder, NEXT_CERTIFICATE_FILE));
  }

  /**
   * Lets the next authority take over: it signs from then on, and the one before is trusted still, its key gone. Where it was broken
   * off it is done again. Throws when there is no next one.
   */
  static async switchOver(folder: string): Promise<void> {
    const at = (file: string) => join(folder, file);
    const next = await readIfThere(at(NEXT_CERTIFICATE_FILE));
    if (next === null)
      throw new Error(
        `${folder} has no next authority: "mooring authority renew ${folder}" makes one, for sleds to learn of first`,
      );
    const own = await readIfThere(at(CERTIFICATE_FILE));
    const former = (await readIfThere(at(FORMER_FILE))) ?? '';
    if (own !== null && own !== next && !former.includes(own.trim()))
      await replaceFile(at(FORMER_FILE), `${former}${own.trimEnd()}\n`, 0o644);
    // The key goes last: until then it can be done again.
    await replaceFile(at(CERTIFICATE_FILE), next, 0o644);
    await rename(at(NEXT_KEY_FILE), at(KEY_FILE)).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOENT') throw error;
    });
    await rm(at(NEXT_CERTIFICATE_FILE), { force: true });
  }

  /** Trusts the former authorities no more: what they have signed is refused. Throws when there are none. */
  static async retire(folder: string): Promise<void> {
    await Authority.open(folder);
    const path = join(folder, FORMER_FILE);
    if ((await readIfThere(path)) === null) throw new Error(`${folder} trusts no former authority`);
    await rm(path);
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

/** Makes an authority, and writes it into files that must not be there yet: the key first. */
async function writeAuthority(keyFile: string, certificateFile: string): Promise<void> {
  const pair = await makeKeyPair();
  const certificate = await makeAuthorityCertificate(pair, AUTHORITY_LIFETIME_MS);
  await writeNew(keyFile, pair.privateKeyPem, 0o600);
  await writeNew(certificateFile, certificate, 0o644);
}

async function readIfThere(file: string): Promise<string | null> {
  return readFile(file, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw error;
    return null;
  });
}

async function replaceFile(file: string, content: string, mode: number): Promise<void> {
  const temporary = `${file}.${process.pid}.new`;
  await writeFile(temporary, content, { mode });
  await rename(temporary, file);
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
