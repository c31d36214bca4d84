import { eq, sql } from 'drizzle-orm';
import { hostOf } from '../../model/host-address.ts';
import { Refusal } from '../../model/refusal.ts';
import type { AgentDescription } from '../../wire/sled-protocol.ts';
import type { Database, Queryable } from '../connect.ts';
import { refuseTakenName, retryOnConflict, violatedConstraint } from '../errors.ts';
import { readCountedSled, type SledRow } from '../queries/read-sled.ts';
import { sled } from '../schema.ts';
import { answerOf, refuseKnownAgent } from './add-sled.ts';
import { moveVmmsOf } from './move-sled.ts';

export interface NewSledAddress {
  /** In its one spelling. */
  readonly address: string;
  /** The address that was asked, and gave no answer. */
  readonly silentAddress: string;
  /** What the agent at the new address says of itself; `null`: it doesn't know the question; absent: nobody answers there. */
  readonly agent?: AgentDescription | null | undefined;
}

/**
 * Has a sled's agent be at another address from now on, and its VMMs with it. With VMMs it must have been proved that it is
 * the same agent, by its id: at another one they would not be found, and be called lost while they run. Throws a
 * {@link Refusal}, also for an address or an agent that another sled has, and where two VMMs would have one address.
 */
export async function setSledAddress(db: Database, sledId: string, moved: NewSledAddress): Promise<void> {
  await refuseKnownAgent(db, moved.address, moved.agent, () =>
    refuseTakenName('sled_address', 'sled at address', moved.address, () =>
      retryOnConflict(() => db.transaction((transaction) => move(transaction, sledId, moved))),
    ),
  ).catch((error: unknown) => {
    if (violatedConstraint(error) !== 'vmm_address') throw error;
    throw Refusal.conflict(
      `address: a VMM of another sled has the port of one of this sled's at ${hostOf(moved.address)}: stop one of the two, and try again`,
    );
  });
}

async function move(transaction: Queryable, sledId: string, moved: NewSledAddress): Promise<void> {
  const { address, agent } = moved;
  await transaction.execute(sql`/* set-sled-address */ SELECT 1 FROM sled WHERE id = ${sledId} FOR UPDATE`);
  const before = await readCountedSled(transaction, sledId);
  if (before === null) throw Refusal.notFound('sled', sledId);
  requireMovable(before.sled, before.vmmCount, moved);
  await transaction
    .update(sled)
    .set({ address, timeModified: sql`now()`, ...answerOf(agent) })
    .where(eq(sled.id, sledId));
  await moveVmmsOf(transaction, sledId, address);
}

/** Throws a {@link Refusal} for a sled that can't be moved. */
function requireMovable(row: SledRow, livingVmms: number, { address, silentAddress, agent }: NewSledAddress): void {
  const { name } = row;
  if (row.policy === 'expunged' || row.expungingSince !== null)
    throw Refusal.conflict(`sled "${name}" was expunged: add it as a new sled`);
  if (row.identified && livingVmms > 0)
    throw Refusal.conflict(
      `sled "${name}" has joined, and its certificate names the address that its VMMs are found at: invite it again ("mooring sled invite ${name}") and join it with the new one, or drain it first`,
    );
  if (row.address !== silentAddress)
    throw Refusal.conflict(`sled "${name}" is at ${row.address} by now: look at it, and try again`);
  if (agent != null && row.agentId !== null && row.agentId !== agent.agent_id && livingVmms > 0)
    throw Refusal.conflict(
      `address: the agent at ${address} is another one than that of sled "${name}", whose ${livingVmms} VMMs it does not have: start the sled's own agent there, with its data, or declare the sled dead first`,
    );
  if (livingVmms > 0 && (agent == null || row.agentId === null))
    throw Refusal.conflict(
      `address: nothing proves that the agent at ${address} is that of sled "${name}", on which ${livingVmms} VMMs live: ${agent === undefined ? 'nobody answers there; start the agent there first' : 'it does not say who it is; drain the sled first, or declare it dead'}`,
    );
}
