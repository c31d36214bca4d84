import { sql } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';

/**
 * The sled that a migration goes to, for the sled of its source; `null` when there is no such migration out of this VMM on
 * that sled, or it is over.
 */
export async function readMigrationDestination(
  db: Queryable,
  asked: { readonly migrationId: string; readonly sourceVmmId: string; readonly sourceSledId: string },
): Promise<string | null> {
  const result = await db.execute(sql`/* sled-identity */
    SELECT target.sled_id FROM migration JOIN vmm source ON source.id = source_vmm_id JOIN vmm target ON target.id = target_vmm_id
    WHERE migration.id = ${asked.migrationId} AND source.id = ${asked.sourceVmmId} AND source.sled_id = ${asked.sourceSledId}
      AND source_state NOT IN ('completed', 'failed') AND target_state NOT IN ('completed', 'failed')
      AND target.time_deleted IS NULL AND target.unwinding_since IS NULL`);
  const row = result.rows[0];
  return row?.sled_id == null ? null : String(row.sled_id);
}
