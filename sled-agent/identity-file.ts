/** A sled's identity on its own disk: one file, readable by its owner alone. The private key is nowhere else. */
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { uuid } from '../wire/uuid.ts';
import type { Disk } from './disk.ts';

const FILE = 'identity.json';

const storedIdentity = z.object({
  sledId: uuid,
  name: z.string(),
  /** Where its agent listens: `ip:port`. */
  address: z.string(),
  /** The sled-facing listener of the control plane. */
  controlPlaneUrl: z.url(),
  threads: z.number(),
  memoryBytes: z.number(),
  privateKeyPem: z.string(),
  certificatePem: z.string(),
  authorityPem: z.string(),
});
export type StoredIdentity = Readonly<z.infer<typeof storedIdentity>>;

/** Reads the identity in an agent's folder; `null` when there is none. Throws when it can't be read, or others can read it too. */
export async function loadIdentity(folder: string): Promise<StoredIdentity | null> {
  const path = join(folder, FILE);
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
  if (process.platform !== 'win32' && ((await stat(path)).mode & 0o077) !== 0)
    throw new Error(
      `${path} holds the sled's private key and can be read by others: "chmod 600 ${path}", and join again if somebody did`,
    );
  try {
    return storedIdentity.parse(JSON.parse(text));
  } catch {
    // Never what is in it.
    throw new Error(
      `${path} can't be understood: remove it and join the sled again with a new token of "mooring sled invite"`,
    );
  }
}

/** Writes the identity, on disk and whole before this returns. Throws a `DiskError`: then what was there is there. */
export function saveIdentity(disk: Disk, folder: string, identity: StoredIdentity): void {
  disk.makeFolder(folder);
  disk.replaceFile(join(folder, FILE), JSON.stringify(identity), 0o600);
}
