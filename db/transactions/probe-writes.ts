import { sql } from 'drizzle-orm';
import type { Database } from '../connect.ts';

/** More rows than the little memory of the probe takes: PostgreSQL must write some hundred kilobytes to its disk. */
const SPILLED_ROWS = 20_000;

/**
 * Tries whether PostgreSQL takes writes, which one that answers may not: its disk is full, or it is a standby by now. It
 * writes a temporary file, which is gone with the transaction, and a row as it is. Throws what PostgreSQL says.
 */
export async function probeWrites(db: Database): Promise<void> {
  await db.transaction(async (tx) => {
    await tx.execute(sql`/* probe-writes */ SET LOCAL work_mem = '64kB'`);
    await tx.execute(sql`/* probe-writes */ SELECT count(*) FROM generate_series(1, ${SPILLED_ROWS}::int)`);
    await tx.execute(sql`/* probe-writes */ UPDATE lease_service SET last_beat_at = last_beat_at`);
  });
}
