import { sql } from 'drizzle-orm';
import { z } from 'zod';
import type { Queryable } from '../connect.ts';

/** The database's clock: it writes the times that cooldowns count from, so it is the one to read them by. */
export async function readDatabaseTime(db: Queryable): Promise<Date> {
  const result = await db.execute(sql`SELECT now() AS now`);
  return z.coerce.date().parse(result.rows[0]?.now);
}
