import { createHash } from 'node:crypto';
import { sql } from 'drizzle-orm';
import { z } from 'zod';
import type { Queryable } from '../connect.ts';
import { databaseError } from '../errors.ts';

/** Which installation a database is. */
export interface Installation {
  /** Made with the database, and kept in it: a copy of the database has the same. */
  readonly id: string;
  /** Eight digits that tell this database from a copy of it; `null` where its role may not see what they are made of. */
  readonly mark: string | null;
}

const idRow = z.object({ id: z.string() });
const markRow = z.object({ cluster: z.string(), database: z.string() });
/** SQLSTATE: insufficient privilege. */
const FORBIDDEN = '42501';

/** The installation that this database is. Throws where the database has none: it was not migrated. */
export async function readInstallation(db: Queryable): Promise<Installation> {
  const result = await db.execute(sql`SELECT id FROM installation`);
  const row = idRow.safeParse(result.rows[0]);
  if (!row.success)
    throw new Error('the database has no installation id: its row in the table "installation" is missing');
  return { id: row.data.id, mark: await readMark(db) };
}

/** A dump that was restored is in another cluster, or under another number: a standby that took over is under the same. */
async function readMark(db: Queryable): Promise<string | null> {
  try {
    const result = await db.execute(sql`
      SELECT system_identifier::text AS cluster, pg_database.oid::text AS database
      FROM pg_control_system(), pg_database WHERE datname = current_database()`);
    const { cluster, database } = markRow.parse(result.rows[0]);
    return createHash('sha256').update(`${cluster}/${database}`).digest('hex').slice(0, 8);
  } catch (error) {
    if (databaseError(error)?.code !== FORBIDDEN) throw error;
    return null;
  }
}
