/** The admin token of an embedded stack: made by the stack for its own user, so that no user of it has to handle tokens. */
import { randomBytes } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { hashTokenSecret } from '../db/access-token-secret.ts';
import { openDatabase } from '../db/connect.ts';
import { findTokenByHash } from '../db/queries/find-token.ts';
import { createTokenInDatabase } from '../db/transactions/create-token.ts';
import { writePrivateFile } from '../platform/host/private-file.ts';

/** The admin token of a stack. */
export interface StackToken {
  /** Where it is; only the stack's user may read the file. */
  readonly file: string;
  readonly secret: string;
}

/**
 * Finds the token in the stack's data folder, or makes one that doesn't expire. Throws what the database or the file system
 * reports.
 */
export async function ensureStackToken(dataDir: string, databaseUrl: string): Promise<StackToken> {
  const file = join(dataDir, 'admin-token');
  const database = openDatabase(databaseUrl, { maxConnections: 1, applicationName: 'mooring-stack' });
  try {
    const known = (await readFile(file, 'utf8').catch(() => '')).trim();
    if (known !== '') {
      const found = await findTokenByHash(database.db, hashTokenSecret(known));
      if (found !== null && !found.expired && found.token.timeRevoked === null) return { file, secret: known };
    }
    // Stacks may share a database.
    const name = `stack-admin-${randomBytes(4).toString('hex')}`;
    const { secret } = await createTokenInDatabase(
      database.db,
      { name, role: 'admin', projectId: null, expiresInSeconds: null },
      'a stack, for its own user',
    );
    await writePrivateFile(file, `${secret}\n`);
    return { file, secret };
  } finally {
    await database.close();
  }
}
