import { eq, sql } from 'drizzle-orm';
import { Refusal } from '../../model/refusal.ts';
import type { AgentDescription } from '../../wire/sled-protocol.ts';
import type { Database, Queryable } from '../connect.ts';
import { refuseTakenName, retryOnConflict, violatedConstraint } from '../errors.ts';
import { readCountedSled, type SledRow } from '../queries/read-sled.ts';
import { sled } from '../schema.ts';
import { answerOf, refuseKnownAgent } from './add-sled.ts';
import { type FormerAddress, moveVmmsOf, portTaken, requireMayMove } from './move-sled.ts';

export interface NewSledAddress {
  /** In its one spelling. */
  readonly address: string;
  readonly former: FormerAddress;
  /** What the agent at the new address says of itself; `null`: it doesn't know the question; absent: nobody answers there. */
  readonly agent?: AgentDescription | null | undefined;
  /** The VMMs that the agent at the new address has; `null`, or absent: it hasn't said. */
  readonly vmmIds?: readonly string[] | null;
  /** An operator states that the machine at the former address is powered off or removed. */
  readonly poweredOff?: boolean;
}

/**
 * Has a sled's agent be at another address from now on, and its VMMs with it, where `judgeWord` takes it ('change-address').
 * Throws a {@link Refusal}, also for an address or an agent that another sled has, and where two VMMs would have one address.
 */
export async function setSledAddress(db: Database, sledId: string, moved: NewSledAddress): Promise<void> {
  await refuseKnownAgent(db, moved.address, moved.agent, () =>
    refuseTakenName('sled_address', 'sled at address', moved.address, () =>
      retryOnConflict(() => db.transaction((transaction) => move(transaction, sledId, moved))),
    ),
  ).catch((error: unknown) => {
    if (violatedConstraint(error) !== 'vmm_address') throw error;
    throw portTaken(moved.address);
  });
}

async function move(transaction: Queryable, sledId: string, moved: NewSledAddress): Promise<void> {
  const { address, former, agent, vmmIds = null, poweredOff = false } = moved;
  await transaction.execute(sql`/* set-sled-address */ SELECT 1 FROM sled WHERE id = ${sledId} FOR UPDATE`);
  const before = await readCountedSled(transaction, sledId);
  if (before === null) throw Refusal.notFound('sled', sledId);
  requireMovable(before.sled, before.vmmCount);
  await requireMayMove(transaction, before.sled, {
    ...{ to: address, former, vmmIds, poweredOff },
    agentId: agent === undefined ? undefined : (agent?.agent_id ?? null),
  });
  await transaction
    .update(sled)
    .set({ address, timeModified: sql`now()`, ...answerOf(agent) })
    .where(eq(sled.id, sledId));
  await moveVmmsOf(transaction, sledId, address);
}

/** Throws a {@link Refusal} for a sled that can't be moved in this way, whatever runs there. */
function requireMovable(row: SledRow, livingVmms: number): void {
  const { name } = row;
  if (row.policy === 'expunged' || row.expungingSince !== null)
    throw Refusal.conflict(`sled "${name}" was expunged: add it as a new sled`);
  if (row.identified && livingVmms > 0)
    throw Refusal.conflict(
      `sled "${name}" has joined, and its certificate names the address that its VMMs are found at: invite it again ("mooring sled invite ${name}") and join it with the new one, or drain it first`,
    );
}
