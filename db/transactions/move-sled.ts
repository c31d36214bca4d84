import { sql } from 'drizzle-orm';
import { hostOf } from '../../model/host-address.ts';
import { explainMoveRefusal, judgeWord } from '../../model/operator-word.ts';
import { Refusal } from '../../model/refusal.ts';
import type { Queryable } from '../connect.ts';
import { goneStates } from '../gone-states.ts';
import { readSledFacts } from '../queries/read-sled-facts.ts';

/** What was heard at a sled's address before the transaction that decides whether it may move. */
export interface FormerAddress {
  /** The address at which the sled's agent was asked whether it answers. */
  readonly askedAddress: string;
  /** It does, there. */
  readonly answers: boolean;
}

/** What is known of the agent at the address to which a sled is to move, and what an operator says of the former one. */
export interface SledMove {
  readonly to: string;
  /** Whether an agent answers where the sled has been; `null`: nobody has asked, since it is to stay there. */
  readonly former: FormerAddress | null;
  /** That of the agent at the new address: `null` of one that doesn't say, `undefined` where nobody answers. */
  readonly agentId: string | null | undefined;
  /** The VMMs that the agent at the new address has; `null`: it hasn't said. */
  readonly vmmIds: readonly string[] | null;
  /** An operator states that the machine at the former address is powered off or removed. */
  readonly poweredOff: boolean;
}

/** A sled as its row, which is locked, has it. */
export interface MovingSled {
  readonly id: string;
  readonly name: string;
  readonly address: string;
  /** The id that its agent is known by; `null`: none. */
  readonly agentId: string | null;
}

/**
 * Makes sure that a sled, whose row is locked, may move to another address: its VMMs would be looked for there, not be found,
 * and be called lost while they run at the former one. Throws a {@link Refusal} that says what is missing, also where the
 * former address is not the one that was asked.
 */
export async function requireMayMove(
  transaction: Queryable,
  { id, name, address: from, agentId: knownAgentId }: MovingSled,
  { former, agentId, vmmIds, poweredOff, to }: SledMove,
): Promise<void> {
  if (former === null ? from !== to : former.askedAddress !== from)
    throw Refusal.conflict(`sled "${name}" is at ${from} by now: look at it, and try again`);
  const answers = former?.answers ?? false;
  const own = knownAgentId !== null && knownAgentId === agentId;
  const missing = await readMissingVmms(transaction, id, vmmIds ?? []);
  const facts = { answers, ...(await readSledFacts(transaction, id)) };
  const arrived = own && vmmIds !== null && missing.length === 0;
  const judged = judgeWord('change-address', { ...facts, arrived }, poweredOff);
  if (judged.verdict !== 'refuse') return;
  const agent =
    agentId === undefined ? 'nobody' : own ? 'own' : agentId === null || knownAgentId === null ? 'unknown' : 'another';
  throw Refusal.conflict(explainMoveRefusal(name, { from, to, agent, listed: vmmIds !== null, missing }, judged.why));
}

/** The VMMs of a sled that its agent has spoken of, and that are not among these, with the instance of each, in words. */
async function readMissingVmms(db: Queryable, sledId: string, vmmIds: readonly string[]): Promise<string[]> {
  const result = await db.execute(sql`/* move-sled */
    SELECT vmm.id, instance.name FROM vmm JOIN instance ON instance.id = vmm.instance_id
    WHERE vmm.sled_id = ${sledId} AND vmm.time_deleted IS NULL AND vmm.state <> 'creating' AND vmm.state NOT IN ${goneStates}
      AND vmm.id NOT IN (SELECT value::uuid FROM jsonb_array_elements_text(${JSON.stringify(vmmIds)}::jsonb))
    ORDER BY instance.name, vmm.id`);
  return result.rows.map((row) => `VMM ${row.id} (instance "${row.name}")`);
}

/** Two VMMs would have one address (`vmm_address`), were a sled's VMMs to move to this address of its agent. */
export function portTaken(address: string): Refusal {
  return Refusal.conflict(
    `address: a VMM of another sled has the port of one of this sled's at ${hostOf(address)}: stop one of the two, and try again`,
  );
}

/**
 * Has the VMMs of a sled, whose row is locked and has its new address by now, be where it is: each keeps its port. The network
 * follows in the same transaction.
 */
export async function moveVmmsOf(transaction: Queryable, sledId: string, address: string): Promise<void> {
  const host = hostOf(address);
  await transaction.execute(sql`/* move-sled */
    UPDATE vmm SET ip = ${host} WHERE sled_id = ${sledId} AND time_deleted IS NULL AND ip <> ${host}`);
  await transaction.execute(sql`/* move-sled */
    UPDATE instance_network SET ip = ${host}, generation = generation + 1, changed_in = pg_current_xact_id(), time_modified = now()
    WHERE sled_id = ${sledId} AND ip <> ${host}`);
}
