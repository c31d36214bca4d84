import { sql } from 'drizzle-orm';
import { z } from 'zod';
import { SLED_POLICIES } from '../../model/states.ts';
import type { Database, Queryable } from '../connect.ts';
import { goneStates } from '../gone-states.ts';

export interface RenewalRequest {
  readonly sledId: string;
  readonly leaseMs: number;
  /** The agent reports that it holds a lease. */
  readonly held: boolean;
  /** The epoch that the agent named; `null` when it named none. */
  readonly epoch: number | null;
  /** The agent that it says it is; `null`: it doesn't say. */
  readonly agentId?: string | null;
  /** The VMMs that the agent reports as living on its sled. */
  readonly livingVmmIds: readonly string[];
}

export type Renewal =
  | { readonly outcome: 'granted'; readonly epoch: number; readonly returned: boolean }
  | { readonly outcome: 'declared-dead'; readonly epoch: number; readonly lostVmmIds: readonly string[] }
  | { readonly outcome: 'expunged'; readonly sledName: string }
  /** VMMs live on the sled of which only its own agent can speak, and this is another one: their lease must lapse. */
  | { readonly outcome: 'foreign-agent' }
  | { readonly outcome: 'unknown' };

const standing = z.object({
  name: z.string(),
  policy: z.enum(SLED_POLICIES),
  epoch: z.coerce.number(),
  dead: z.boolean(),
  leaving: z.boolean(),
  foreign_agent: z.boolean(),
});

/**
 * Renews a sled's lease from the moment of this statement, on the database's clock. A lease never ends earlier than it
 * would have: a renewal with a shorter one, or one that was long on its way, takes nothing away.
 *
 * A sled that was declared dead gets none until it names the epoch of the declaration and reports nothing that is lost;
 * then it is in service again, in the same transaction. Nor does another agent than the sled's own while VMMs live there: it
 * can't power off what it doesn't have. Source: section 10 of docs/design.md.
 */
export async function renewLease(db: Database, request: RenewalRequest): Promise<Renewal> {
  const { sledId, epoch } = request;
  const renewed = await extend(db, request);
  if (renewed !== null) return { outcome: 'granted', epoch: renewed, returned: false };
  return db.transaction(async (transaction) => {
    const found = await transaction.execute(sql`/* renew-lease */
      SELECT name, policy, lease_epoch AS epoch, time_declared_dead IS NOT NULL AS dead, expunging_since IS NOT NULL AS leaving,
        ${isForeign(sledId, request.agentId)} AS foreign_agent FROM sled WHERE id = ${sledId} FOR UPDATE`);
    const row = found.rows[0];
    if (row === undefined) return { outcome: 'unknown' };
    const sled = standing.parse(row);
    if (sled.policy === 'expunged' || sled.leaving) return { outcome: 'expunged', sledName: sled.name };
    if (sled.foreign_agent) return { outcome: 'foreign-agent' };
    const lostVmmIds = await lostAmong(transaction, sledId, request.livingVmmIds);
    if (sled.dead && (epoch !== sled.epoch || lostVmmIds.length > 0))
      return { outcome: 'declared-dead', epoch: sled.epoch, lostVmmIds };
    if (sled.dead) await returnSled(transaction, sledId);
    const granted = await extend(transaction, request);
    if (granted === null) throw new Error(`the lease of sled "${sled.name}" was not renewed under its lock`);
    return { outcome: 'granted', epoch: granted, returned: sled.dead };
  });
}

/** The sled's epoch; `null` where it has no claim to a lease. */
async function extend(db: Queryable, { sledId, leaseMs, held, agentId }: RenewalRequest): Promise<number | null> {
  const result = await db.execute(sql`/* renew-lease */
    UPDATE sled SET fencing_since = coalesce(fencing_since, clock_timestamp()),
      lease_confirmed_at = CASE WHEN ${held} THEN clock_timestamp() ELSE lease_confirmed_at END,
      lease_ms = CASE WHEN ${laterEnd(leaseMs)} THEN ${leaseMs}::int ELSE lease_ms END,
      lease_renewed_at = CASE WHEN ${laterEnd(leaseMs)} THEN clock_timestamp() ELSE lease_renewed_at END
    WHERE id = ${sledId} AND time_declared_dead IS NULL AND policy <> 'expunged' AND expunging_since IS NULL
      AND NOT ${isForeign(sledId, agentId)}
    RETURNING lease_epoch AS epoch`);
  const row = result.rows[0];
  return row === undefined ? null : Number(row.epoch);
}

/**
 * Whether an agent is another one than the sled's own while VMMs live there: as in `adoptAgent`, and as its reports are refused.
 * The certificate of a sled that has joined shows whose agent it is.
 */
const isForeign = (sledId: string, agentId: string | null | undefined) => sql`(NOT sled.identified
  AND coalesce(sled.kept_agent_id::text <> ${agentId?.toLowerCase() ?? null}::text, false)
  AND EXISTS (SELECT 1 FROM vmm WHERE vmm.sled_id = ${sledId} AND vmm.time_deleted IS NULL AND vmm.state NOT IN ${goneStates}))`;

const laterEnd = (leaseMs: number) => sql`coalesce(lease_renewed_at + lease_ms * interval '1 millisecond'
  <= clock_timestamp() + ${leaseMs}::int * interval '1 millisecond', true)`;

/** Those of the VMMs that a sled reports which the database has as gone, or doesn't have there. */
export async function lostAmong(db: Queryable, sledId: string, livingVmmIds: readonly string[]): Promise<string[]> {
  const result = await db.execute(sql`/* renew-lease */
    SELECT reported.id FROM (SELECT value::uuid AS id FROM jsonb_array_elements_text(${JSON.stringify(livingVmmIds)}::jsonb)) reported
    LEFT JOIN vmm ON vmm.id = reported.id
    WHERE vmm.id IS NULL OR vmm.sled_id IS DISTINCT FROM ${sledId}::uuid OR vmm.time_deleted IS NOT NULL OR vmm.vouched_gone_at IS NOT NULL
      OR vmm.state IN ${goneStates}`);
  return result.rows.map((row) => String(row.id));
}

/** Takes a sled whose row is locked, and that has proved what it runs, back into service. */
export async function returnSled(transaction: Queryable, sledId: string): Promise<void> {
  await transaction.execute(sql`/* renew-lease */
    UPDATE sled SET time_declared_dead = NULL, declared_dead_by = NULL, time_modified = now() WHERE id = ${sledId}`);
}
