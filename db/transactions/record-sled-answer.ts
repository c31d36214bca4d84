/**
 * What is known of a sled's answers, in its row. It proves nothing of what runs there: it is shown to people, and placement
 * takes a silent sled last.
 */
import { type SQL, sql } from 'drizzle-orm';
import type { AgentDescription } from '../../wire/sled-protocol.ts';
import type { Database, Queryable } from '../connect.ts';
import { retryOnConflict, violatedConstraint } from '../errors.ts';
import { goneStates } from '../gone-states.ts';

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
  try {
    await writeAnswer(db, key, agent);
  } catch (error) {
    await recordOthersAgent(db, key, error);
  }
}

/** Records, outside of the transaction that failed, that another sled has the agent. Throws any other error. */
async function recordOthersAgent(db: Queryable, key: SledKey, error: unknown): Promise<void> {
  if (violatedConstraint(error) !== 'sled_agent') throw error;
  // Another sled has got it at this moment: the next look finds whose it is, and until then nothing is placed here.
  await recordSledSilence(db, key, ['the agent at its address is that of another sled: one host is one sled']);
}

async function writeAnswer(db: Queryable, key: SledKey, agent: AgentDescription | null | undefined): Promise<void> {
  const described =
    agent === undefined
      ? sql``
      : sql`, agent_id = ${agent?.agent_id ?? null}::uuid, kept_agent_id = ${keptIdOf(agent)}::uuid,
        another_answers = false, agent_version = ${agent?.version ?? null},
        agent_trouble = ${textArray(agent?.trouble ?? [])}, cpu_models = ${agent?.cpu_models == null ? sql`NULL` : textArray(agent.cpu_models)}`;
  await db.execute(sql`/* sled-answer */
    UPDATE sled SET last_answered_at = now(), silent_since = NULL${described} WHERE ${isThat(key)}`);
}

/**
 * Takes another agent that answers at a sled's address for the sled's own from now on, where no VMM is left that only its former
 * agent can speak of: under the lock of the sled's row, which a claim takes, too. One whose VMM is only claimed may have been told to
 * make it a moment ago. `null`: one that doesn't say who it is. Returns
 * `false` where VMMs are left. One that another sled has meanwhile is not taken: then this sled is silent.
 */
export async function adoptAgent(db: Database, sledId: string, agent: AgentDescription | null): Promise<boolean> {
  const adopted = retryOnConflict(() =>
    db.transaction(async (transaction) => {
      await transaction.execute(sql`/* sled-answer */ SELECT 1 FROM sled WHERE id = ${sledId} FOR UPDATE`);
      // A statement of its own: it sees what was claimed before the lock was there.
      const { rows } = await transaction.execute(sql`/* sled-answer */
        SELECT 1 FROM vmm WHERE sled_id = ${sledId} AND time_deleted IS NULL AND state NOT IN ${goneStates} LIMIT 1`);
      if (rows.length > 0) return false;
      await writeAnswer(transaction, { id: sledId }, agent);
      return true;
    }),
  );
  return adopted.catch(async (error: unknown) => {
    // In a transaction of its own: the one that failed takes no statement any more.
    await recordOthersAgent(db, { id: sledId }, error);
    return true;
  });
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
