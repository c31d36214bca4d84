/**
 * How a sled leaves for good, in two steps that are one where nothing of it can run any more. An operator's word takes it out
 * of service: no new VMM, no lease, no way back. Its VMMs become failed, and the sled expunged, when their guests are off by
 * all that can be known (`model/operator-word.ts`): at once, when its lease has lapsed, or when it has ended them itself.
 */
import { sql } from 'drizzle-orm';
import { explainRefusal, judgeWord } from '../../model/operator-word.ts';
import { Refusal } from '../../model/refusal.ts';
import type { Database, Queryable } from '../connect.ts';
import { retryOnConflict } from '../errors.ts';
import { readSledFacts } from '../queries/read-sled-facts.ts';
import { type Actor, recordSledAction, SILENT_AND_OFF } from './declare-dead.ts';
import { failSledVmms } from './fail-sled.ts';

/** What came of an expunge. */
export interface Expunged {
  /** What is awaited before the sled's VMMs are failed: the end of its lease, or its own answers; `null`: nothing. */
  readonly awaits: 'lease' | 'sled' | null;
  /** The VMMs that are failed now. */
  readonly failed: readonly string[];
  /** The instances whose records may need an update. */
  readonly instanceIds: readonly string[];
}

/**
 * Expunges a sled, as an operator states that it is gone for good: `poweredOff` that it is powered off or removed, `answers`
 * whether it answers all the same. A second time it is judged anew, as long as something is awaited. Throws a
 * {@link Refusal} for a sled that is not there, and where the word is not enough.
 */
export async function expungeSled(
  db: Database,
  sledId: string,
  { answers, poweredOff }: { readonly answers: boolean; readonly poweredOff: boolean } = SILENT_AND_OFF,
): Promise<Expunged> {
  return retryOnConflict(() =>
    db.transaction(async (transaction) => {
      const found = await transaction.execute(
        sql`/* expunge-sled */ SELECT name, policy FROM sled WHERE id = ${sledId} FOR UPDATE`,
      );
      const row = found.rows[0];
      if (row === undefined) throw Refusal.notFound('sled', sledId);
      const name = String(row.name);
      if (row.policy === 'expunged') return { awaits: null, failed: [], instanceIds: [] };
      const facts = { answers, ...(await readSledFacts(transaction, sledId)) };
      const judged = judgeWord('expunge', facts, poweredOff);
      if (judged.verdict === 'refuse') throw Refusal.conflict(explainRefusal('expunge', name, judged.why));
      if (judged.verdict === 'at once') return complete(transaction, sledId, name);
      await transaction.execute(sql`/* expunge-sled */
        UPDATE sled SET policy = 'no_provision', expunging_since = coalesce(expunging_since, now()), time_modified = now()
        WHERE id = ${sledId}`);
      return { awaits: judged.verdict === 'when lapsed' ? 'lease' : 'sled', failed: [], instanceIds: [] };
    }),
  );
}

/**
 * Completes what {@link expungeSled} has begun, once nothing of the sled can run any more: its lease has lapsed, or no VMM of
 * it lives, by its own word. That it is silent now proves nothing. `null`: not yet, or there is nothing to complete.
 */
export async function settleExpunge(db: Database, sledId: string, by: Actor | null = null): Promise<Expunged | null> {
  return retryOnConflict(() =>
    db.transaction(async (transaction) => {
      const found = await transaction.execute(sql`/* expunge-sled */
        SELECT name FROM sled WHERE id = ${sledId} AND policy <> 'expunged' AND expunging_since IS NOT NULL FOR UPDATE`);
      const row = found.rows[0];
      if (row === undefined) return null;
      const { lease, guests } = await readSledFacts(transaction, sledId);
      if (guests && lease !== 'dead') return null;
      const settled = await complete(transaction, sledId, String(row.name));
      await recordSledAction(transaction, 'sled_expunge', sledId, by);
      return settled;
    }),
  );
}

/** The sled's row is locked, and nothing of it can run any more. */
async function complete(transaction: Queryable, sledId: string, name: string): Promise<Expunged> {
  await transaction.execute(sql`/* expunge-sled */
    UPDATE sled SET policy = 'expunged', expunging_since = coalesce(expunging_since, now()), time_expunged = now(),
      time_modified = now() WHERE id = ${sledId}`);
  const reason = `sled "${name}" was expunged`;
  return { awaits: null, ...(await failSledVmms(transaction, { by: 'expunge-sled', sledId, reason })) };
}
