import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { sql } from 'drizzle-orm';
import { z } from 'zod';
import type { Queryable } from '../connect.ts';
import { databaseError } from '../errors.ts';

const JOURNAL = fileURLToPath(new URL('../migrations/meta/_journal.json', import.meta.url));
const journalFile = z.object({ entries: z.array(z.object({ when: z.number() })).min(1) });
/** SQLSTATE 42P01: no such table, 3F000: no such schema; 42501: this role may not look. */
const ABSENT: ReadonlySet<string | undefined> = new Set(['42P01', '3F000']);
const FORBIDDEN = '42501';
const rowOf = z.object({ newest: z.coerce.number().nullable() });

/**
 * What is wrong with the schema for this build; `null` when it is as new as this build needs it. A newer one is fine: migrations
 * leave the version before at work. A role that may not read the list of migrations is told nothing.
 */
export async function readSchemaProblem(db: Queryable): Promise<string | null> {
  const { entries } = journalFile.parse(JSON.parse(await readFile(JOURNAL, 'utf8')));
  const needed = Math.max(...entries.map(({ when }) => when));
  let newest: number | null;
  try {
    const result = await db.execute(sql`SELECT max(created_at) AS newest FROM drizzle.__drizzle_migrations`);
    ({ newest } = rowOf.parse(result.rows[0]));
  } catch (error) {
    const code = databaseError(error)?.code;
    if (code === FORBIDDEN) return null;
    if (!ABSENT.has(code)) throw error;
    newest = null;
  }
  if (newest !== null && newest >= needed) return null;
  return 'the schema of the database is older than this build needs: was an older state restored? Restart a worker or an API, which brings it up to date';
}
