/**
 * The first of the two transactions of an unwind; `finish-unwind.ts` is the last. Between them the sled is asked to
 * unregister the VMM; from the first one on no report and no verdict is written to its row, and the last one writes
 * `saga_unwound` over whatever state is there. Neither touches the instance's ids or generation: those are the update saga's.
 */
import { sql } from 'drizzle-orm';
import { z } from 'zod';
import type { Attempt } from '../../model/attempt.ts';
import { SLED_POLICIES } from '../../model/states.ts';
import type { Database } from '../connect.ts';
import { retryOnConflict } from '../errors.ts';
import { burnVmmId } from './burn-vmm-id.ts';

const begunRow = z.object({
  sledName: z.string().nullable(),
  sledAddress: z.string().nullable(),
  sledPolicy: z.enum(SLED_POLICIES).nullable(),
  commanded: z.boolean(),
  vouched: z.boolean(),
  spared: z.boolean(),
});

export interface BegunUnwind {
  /** The guest runs after all, here (asked for by `spareRunning`) or where it moved, so nothing was marked. */
  readonly spared: boolean;
  /** Where the VMM may be registered; `null` when its claim never arrived, or its sled was given up. */
  readonly sled: { readonly name: string; readonly address: string } | null;
  /** The sled was commanded, or was about to be, to run the guest or migrate it in. */
  readonly commanded: boolean;
}

/**
 * Begins an unwind: marks the VMM as unwinding. When its claim never arrived it writes the `saga_unwound` row itself, so
 * that the claim can't arrive later. With `spareRunning` a VMM is left alone whose sled has reported that its guest ran, or
 * that it was migrating in: whatever answer the saga had, that guest is not its to end. A start's VMM whose guest has moved
 * on is left alone in any case: that its sled doesn't know it any more is how a migration ends, and the start had succeeded.
 */
export async function beginUnwind(
  db: Database,
  request: Pick<Attempt, 'kind' | 'instanceId' | 'vmmId'> & { spareRunning: boolean },
): Promise<BegunUnwind> {
  const row = await retryOnConflict(() =>
    db.transaction(async (transaction) => {
      await burnVmmId(transaction, request);
      // Locked by a statement of its own: a report that holds the VMM may be writing its side of the migration, and only a
      // statement that begins after the report has committed sees it.
      await transaction.execute(sql`/* begin-unwind */ SELECT 1 FROM vmm WHERE id = ${request.vmmId} FOR UPDATE`);
      const result = await transaction.execute(sql`/* begin-unwind */
        WITH marked AS (
          UPDATE vmm SET unwinding_since = coalesce(unwinding_since, now())
          WHERE id = ${request.vmmId}
            AND NOT (${request.spareRunning} AND unwinding_since IS NULL AND CASE WHEN ${request.kind} = 'start'
              THEN state IN ('running', 'rebooting', 'migrating')
              ELSE EXISTS (SELECT 1 FROM migration WHERE target_vmm_id = vmm.id AND target_state IN ('in_progress', 'completed')) END)
            AND NOT (${request.kind} = 'start' AND unwinding_since IS NULL AND EXISTS (
              SELECT 1 FROM migration WHERE source_vmm_id = vmm.id AND 'completed' IN (source_state, target_state)))
          RETURNING id
        )
        SELECT sled.name AS "sledName", sled.address AS "sledAddress",
          sled.policy AS "sledPolicy", vmm.commanded_at IS NOT NULL AS commanded,
           vmm.vouched_gone_at IS NOT NULL AS vouched, NOT EXISTS (SELECT 1 FROM marked) AS spared
        FROM vmm LEFT JOIN sled ON sled.id = vmm.sled_id WHERE vmm.id = ${request.vmmId}`);
      return begunRow.parse(result.rows[0]);
    }),
  );
  const reachable = row.sledAddress !== null && row.sledName !== null && row.sledPolicy !== 'expunged' && !row.vouched;
  return {
    spared: row.spared,
    sled: reachable ? { name: row.sledName ?? '', address: row.sledAddress ?? '' } : null,
    commanded: row.commanded,
  };
}
