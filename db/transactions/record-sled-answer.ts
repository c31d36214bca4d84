/**
 * What is known of a sled's answers, in its row. It proves nothing of what runs there: it is shown to people, and placement
 * takes a silent sled last.
 */
import { type SQL, sql } from 'drizzle-orm';
import type { AgentDescription } from '../../wire/sled-protocol.ts';
import type { Queryable } from '../connect.ts';
import { violatedConstraint } from '../errors.ts';

/** A sled that isn't expunged, by its id or by its address. */
export type SledKey = { readonly id: string } | { readonly address: string };

/**
 * Records that a sled answered a call, and what its agent says of itself where it was asked (`null`: it doesn't know the
 * question). An agent id that another sled has is not taken over: then it is silent, and takes no VMM.
 */
export async function recordSledAnswer(
  db: Queryable,
  key: SledKey,
  agent: AgentDescription | null | undefined,
): Promise<void> {
  const described =
    agent === undefined
      ? sql``
      : sql`, agent_id = ${agent?.agent_id ?? null}::uuid, kept_agent_id = ${keptIdOf(agent)}::uuid,
        another_answers = false, agent_version = ${agent?.version ?? null},
        agent_trouble = ${textArray(agent?.trouble ?? [])}, cpu_models = ${agent?.cpu_models == null ? sql`NULL` : textArray(agent.cpu_models)}`;
  try {
    await db.execute(sql`/* sled-answer */
      UPDATE sled SET last_answered_at = now(), silent_since = NULL${described} WHERE ${isThat(key)}`);
  } catch (error) {
    if (violatedConstraint(error) !== 'sled_agent') throw error;
    // Another sled has got it at this moment: the next look finds whose it is, and until then nothing is placed here.
    await recordSledSilence(db, key, ['the agent at its address is that of another sled: one host is one sled']);
  }
}

/**
 * Records that a sled gave no answer, from the first time on. `another`: an agent answers there that is not its own, or takes no
 * orders from this installation, in sentences; then no VMM is placed there until its own one has said who it is.
 */
export async function recordSledSilence(db: Queryable, key: SledKey, another?: readonly string[]): Promise<void> {
  const trouble = another === undefined ? null : textArray(another);
  const ailing = trouble === null ? sql`` : sql`, another_answers = true, agent_trouble = ${trouble}`;
  const changed = trouble === null ? sql`` : sql` OR NOT another_answers OR agent_trouble IS DISTINCT FROM ${trouble}`;
  await db.execute(sql`/* sled-answer */
    UPDATE sled SET silent_since = coalesce(silent_since, now())${ailing}
    WHERE ${isThat(key)} AND (silent_since IS NULL${changed})`);
}

/** The id of an agent that keeps it with its data; `null` of any other one. */
export const keptIdOf = (agent: AgentDescription | null | undefined): string | null =>
  agent?.agent_id_kept === true ? agent.agent_id : null;

const isThat = (key: SledKey): SQL =>
  'id' in key ? sql`id = ${key.id} AND policy <> 'expunged'` : sql`address = ${key.address} AND policy <> 'expunged'`;

const textArray = (texts: readonly string[]): SQL =>
  sql`ARRAY(SELECT jsonb_array_elements_text(${JSON.stringify(texts)}::jsonb))`;
