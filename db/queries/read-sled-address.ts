import { sql } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';

/** The address (`ip:port`) of a sled; `null` when there is no such sled. */
export async function readSledAddress(db: Queryable, sledId: string): Promise<string | null> {
  const result = await db.execute(sql`/* sled-identity */ SELECT address FROM sled WHERE id = ${sledId}`);
  const row = result.rows[0];
  return row === undefined ? null : String(row.address);
}
