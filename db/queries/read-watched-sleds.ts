import { sql } from 'drizzle-orm';
import { z } from 'zod';
import type { Queryable } from '../connect.ts';
import { goneStates } from '../gone-states.ts';

const watchedSled = z.object({
  id: z.string(),
  name: z.string(),
  address: z.string(),
  /** An operator has expunged it, and guests of it may run still. */
  leaves: z.boolean(),
  /** As far as is on record. */
  silent: z.boolean(),
  /** That it answers was written within the last minute. */
  answeredLately: z.boolean(),
  agentId: z.string().nullable(),
  /** The same, of an agent that keeps it with its data. */
  keptAgentId: z.string().nullable(),
  identified: z.boolean(),
  /** VMMs live there that its agent has spoken of, so that no other agent can speak for it. */
  guests: z.boolean(),
  /** Another agent than its own answers there: it takes no VMM. */
  anotherAnswers: z.boolean(),
  agentVersion: z.string().nullable(),
  agentTrouble: z.array(z.string()),
  cpuModels: z.array(z.string()).nullable(),
});
export type WatchedSled = z.infer<typeof watchedSled>;

/**
 * The sleds that the watcher asks what runs there, with what is known of them: all but those that are expunged, with nothing of
 * them left.
 */
export async function readWatchedSleds(db: Queryable): Promise<WatchedSled[]> {
  const result = await db.execute(sql`
    SELECT id, name, address, expunging_since IS NOT NULL AS leaves, silent_since IS NOT NULL AS silent,
      coalesce(last_answered_at > now() - interval '1 minute', false) AS "answeredLately",
      kept_agent_id AS "keptAgentId", identified, EXISTS (SELECT 1 FROM vmm WHERE vmm.sled_id = sled.id AND vmm.time_deleted IS NULL
        AND vmm.state <> 'creating' AND vmm.state NOT IN ${goneStates}) AS guests,
      another_answers AS "anotherAnswers", agent_id AS "agentId", agent_version AS "agentVersion", agent_trouble AS "agentTrouble",
      cpu_models AS "cpuModels"
    FROM sled WHERE policy <> 'expunged'`);
  return result.rows.map((row) => watchedSled.parse(row));
}

const expungedSled = z.object({
  id: z.string(),
  name: z.string(),
  address: z.string(),
  identified: z.boolean(),
  keptAgentId: z.string().nullable(),
});
export type ExpungedSled = z.infer<typeof expungedSled>;

/** The sleds that are expunged, and whose address no other sled has by now: should one answer, the operator was wrong. */
export async function readExpungedSleds(db: Queryable): Promise<ExpungedSled[]> {
  const result = await db.execute(sql`
    SELECT DISTINCT ON (address) id, name, address, identified, kept_agent_id AS "keptAgentId" FROM sled
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
