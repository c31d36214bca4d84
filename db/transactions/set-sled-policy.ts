import { eq, sql } from 'drizzle-orm';
import { Refusal } from '../../model/refusal.ts';
import type { Database } from '../connect.ts';
import { sled } from '../schema.ts';

/** Sets whether a sled takes new VMMs. Throws a {@link Refusal} for one that is expunged. Returns the policy before. */
export async function setSledPolicy(db: Database, sledId: string, policy: 'in_service' | 'no_provision') {
  return db.transaction(async (transaction) => {
    await transaction.execute(sql`/* set-sled-policy */ SELECT 1 FROM sled WHERE id = ${sledId} FOR UPDATE`);
    const [before] = await transaction.select().from(sled).where(eq(sled.id, sledId));
    if (before === undefined) throw Refusal.notFound('sled', sledId);
    if (before.policy === 'expunged' || before.expungingSince !== null)
      throw Refusal.conflict(`sled "${before.name}" was expunged: its policy can't change; add it as a new sled`);
    await transaction.update(sled).set({ policy, timeModified: sql`now()` }).where(eq(sled.id, sledId));
    return before.policy;
  });
}
