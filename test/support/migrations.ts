/** The names of this build's migrations, the oldest first. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';

export const MIGRATIONS = join(import.meta.dirname, '../../db/migrations');

export const MIGRATION_NAMES: readonly string[] = z
  .object({ entries: z.array(z.object({ tag: z.string() })) })
  .parse(JSON.parse(readFileSync(join(MIGRATIONS, 'meta/_journal.json'), 'utf8')))
  .entries.map(({ tag }) => tag);
