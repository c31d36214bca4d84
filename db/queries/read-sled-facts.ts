import { sql } from 'drizzle-orm';
import { leaseStanding } from '../../model/lease.ts';
import type { SledFacts } from '../../model/operator-word.ts';
import type { Queryable } from '../connect.ts';
import { goneStates } from '../gone-states.ts';
import { readLeaseFacts } from './read-lease-facts.ts';

/**
 * What the database knows of a sled that a word is taken about: how its lease stands, and whether VMMs are placed there that
 * may run. Whoever decides by it has locked the sled's row.
 */
export async function readSledFacts(db: Queryable, sledId: string): Promise<Omit<SledFacts, 'answers'>> {
  const lease = await readLeaseFacts(db, sledId);
  const placed = await db.execute(sql`
    SELECT EXISTS (SELECT 1 FROM vmm WHERE sled_id = ${sledId} AND time_deleted IS NULL AND state NOT IN ${goneStates}) AS guests,
      EXISTS (SELECT 1 FROM sled WHERE id = ${sledId} AND time_declared_dead IS NOT NULL) AS dead`);
  const { guests, dead } = placed.rows[0] ?? {};
  return { lease: lease === null ? null : leaseStanding(lease), guests: guests === true, dead: dead === true };
}
