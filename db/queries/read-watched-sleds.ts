import { sql } from 'drizzle-orm';
import { z } from 'zod';
import type { Queryable } from '../connect.ts';

const watchedSled = z.object({
  id: z.string(),
  name: z.string(),
  address: z.string(),
  /** An operator has expunged it, and guests of it may run still. */
  leaves: z.boolean(),
});
export type WatchedSled = z.infer<typeof watchedSled>;

/** The sleds that the watcher asks what runs there: all but those that are expunged, with nothing of them left. */
export async function readWatchedSleds(db: Queryable): Promise<WatchedSled[]> {
  const result = await db.execute(sql`
    SELECT id, name, address, expunging_since IS NOT NULL AS leaves FROM sled WHERE policy <> 'expunged'`);
  return result.rows.map((row) => watchedSled.parse(row));
}

const expungedSled = z.object({ id: z.string(), name: z.string(), address: z.string(), identified: z.boolean() });
export type ExpungedSled = z.infer<typeof expungedSled>;

/** The sleds that are expunged, and whose address no other sled has by now: should one answer, the operator was wrong. */
export async function readExpungedSleds(db: Queryable): Promise<ExpungedSled[]> {
  const result = await db.execute(sql`
    SELECT DISTINCT ON (address) id, name, address, identified FROM sled
    WHERE policy = 'expunged' AND NOT EXISTS (SELECT 1 FROM sled other WHERE other.address = sled.address AND other.policy <> 'expunged')
    ORDER BY address, time_expunged DESC`);
  return result.rows.map((row) => expungedSled.parse(row));
}

/** Those of some VMMs that are of an expunged sled: whatever has them, they are to be ended. */
export async function readVmmsOfExpunged(db: Queryable, vmmIds: readonly string[]): Promise<string[]> {
  const result = await db.execute(sql`
    SELECT vmm.id FROM vmm JOIN sled ON sled.id = vmm.sled_id
    WHERE sled.policy = 'expunged' AND vmm.id IN (SELECT value::uuid FROM jsonb_array_elements_text(${JSON.stringify(vmmIds)}::jsonb))`);
  return result.rows.map((row) => String(row.id));
}
