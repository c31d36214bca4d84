/**
 * The first of the two transactions of an unwind; `finish-unwind.ts` is the last. Between them the sled is asked to
 * unregister the VMM; from the first one on no report and no verdict is written to its row, and the last one writes
 * `saga_unwound` over whatever state is there. Neither touches the instance's ids or generation: those are the update saga's.
 *
 * Exactly one of success and unwind: an operation's success is written only under the lock of its VMM's row while that is
 * not marked, and the mark is set under the same lock only while no success is written.
 */
import { sql } from 'drizzle-orm';
import { z } from 'zod';
import { SLED_POLICIES } from '../../model/states.ts';
import type { UnwindInput } from '../../model/workflow-inputs.ts';
import type { Database, Queryable } from '../connect.ts';
import { retryOnConflict } from '../errors.ts';
import { readOperation } from '../queries/read-operation.ts';
import { burnVmmId } from './burn-vmm-id.ts';

const begunRow = z.object({
  sledName: z.string().nullable(),
  sledAddress: z.string().nullable(),
  sledAgentId: z.string().nullable(),
  sledPolicy: z.enum(SLED_POLICIES).nullable(),
  commanded: z.boolean(),
  vouched: z.boolean(),
  spared: z.boolean(),
  forward: z.boolean(),
  ended: z.boolean(),
});

export type BeginUnwindRequest = Omit<UnwindInput, 'error'>;

export interface BegunUnwind {
  /** The operation has succeeded, before or by this: the guest runs after all, here or where it moved. Nothing was marked. */
  readonly spared: boolean;
  /** A migration that is past the point of no return: it is to be carried forward. Nothing was marked. */
  readonly forward: boolean;
  /** It has been unwound to its end before. */
  readonly ended: boolean;
  /** Where the VMM may be registered; `null` when its claim never arrived, or its sled was given up. */
  readonly sled: { readonly name: string; readonly address: string; readonly keptAgentId: string | null } | null;
  /** The sled was commanded, or was about to be, to run the guest or migrate it in. */
  readonly commanded: boolean;
}

/**
 * Begins an unwind: marks the VMM as unwinding. When its claim never arrived it writes the `saga_unwound` row itself, so
 * that the claim can't arrive later.
 *
 * A VMM is left alone, and its operation's success recorded in the same statement, when that success is on record; with
 * `spareRunning`, when its sled has reported that its guest ran, or that it was migrating in: whatever answer the saga had,
 * that guest is not its to end; and a start's VMM in any case when its guest has moved on: that its sled doesn't know it
 * any more is how a migration ends, and the start had succeeded.
 */
export async function beginUnwind(db: Database, request: BeginUnwindRequest): Promise<BegunUnwind> {
  const row = await retryOnConflict(async () => {
    const begun = await mark(db, request);
    if (begun !== null) return begun;
    // By a statement of its own: a claim that is on its way commits before it, and only a later statement sees its row.
    await burnVmmId(db, request);
    return mark(db, request);
  });
  // Neither claimed nor burnt: the operation had ended before anything was claimed for it.
  if (row === null) {
    const spared = (await readOperation(db, request.operationId))?.succeeded === true;
    return { spared, forward: false, ended: false, sled: null, commanded: false };
  }
  const reachable = row.sledAddress !== null && row.sledName !== null && row.sledPolicy !== 'expunged' && !row.vouched;
  return {
    spared: row.spared,
    forward: row.forward,
    ended: row.ended,
    sled: reachable ? { name: row.sledName ?? '', address: row.sledAddress ?? '', keptAgentId: row.sledAgentId } : null,
    commanded: row.commanded,
  };
}

/**
 * Marks the VMM, or spares it; `null` when there is none. A report that holds the VMM may be writing its side of the
 * migration, or the operation's success: these rows are locked too, after the VMM's, and a row that is locked is read as it
 * was committed last, not as it was when the statement began.
 */
async function mark(db: Queryable, { kind, vmmId, operationId, spareRunning, refused = false }: BeginUnwindRequest) {
  const result = await db.execute(sql`/* begin-unwind */
    WITH subject AS MATERIALIZED (
      SELECT id, sled_id, state, unwinding_since, commanded_at, vouched_gone_at FROM vmm WHERE id = ${vmmId} FOR UPDATE
    ), side AS MATERIALIZED (
      SELECT source_vmm_id, target_vmm_id, source_state, target_state
      FROM migration JOIN subject ON subject.id IN (source_vmm_id, target_vmm_id) FOR UPDATE OF migration
    ), own AS MATERIALIZED (
      SELECT operation.id, succeeded FROM operation JOIN subject ON operation.id = ${operationId}
      WHERE (SELECT count(*) FROM side) >= 0 FOR UPDATE OF operation
    ), judged AS (
      SELECT id, unwinding_since IS NULL AND (
        EXISTS (SELECT 1 FROM own WHERE succeeded)
        OR ${spareRunning} AND CASE WHEN ${kind} = 'start' THEN state IN ('running', 'rebooting', 'migrating')
          ELSE EXISTS (SELECT 1 FROM side WHERE target_vmm_id = subject.id AND target_state IN ('in_progress', 'completed')) END
        OR ${kind} = 'start' AND EXISTS (
          SELECT 1 FROM side WHERE source_vmm_id = subject.id AND 'completed' IN (source_state, target_state))
      ) AS spared, ${kind} = 'migrate' AND NOT ${refused} AND unwinding_since IS NULL AND commanded_at IS NOT NULL
        AND vouched_gone_at IS NULL AND state NOT IN ('destroyed', 'failed')
        AND NOT EXISTS (SELECT 1 FROM sled WHERE sled.id = sled_id AND sled.policy = 'expunged') AS commanded_in
      FROM subject
    ), marked AS (
      UPDATE vmm SET unwinding_since = now() FROM judged
      WHERE vmm.id = judged.id AND NOT spared AND NOT commanded_in AND vmm.unwinding_since IS NULL
    ), succeeded AS (
      UPDATE operation SET succeeded = true, time_ended = now() FROM judged, own
      WHERE operation.id = own.id AND spared AND operation.time_ended IS NULL
    )
    SELECT sled.name AS "sledName", sled.address AS "sledAddress", sled.kept_agent_id AS "sledAgentId", sled.policy AS "sledPolicy", commanded_at IS NOT NULL AS commanded,
      vouched_gone_at IS NOT NULL AS vouched, spared, commanded_in AND NOT spared AS forward, state = 'saga_unwound' AS ended
    FROM subject JOIN judged USING (id) LEFT JOIN sled ON sled.id = sled_id`);
  const found = result.rows[0];
  return found === undefined ? null : begunRow.parse(found);
}
