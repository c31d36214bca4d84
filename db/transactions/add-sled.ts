import { randomUUID } from 'node:crypto';
import { and, eq, ne, sql } from 'drizzle-orm';
import { Refusal } from '../../model/refusal.ts';
import type { AgentDescription } from '../../wire/sled-protocol.ts';
import type { Database, Queryable } from '../connect.ts';
import { refuseTakenName, violatedConstraint } from '../errors.ts';
import { sled } from '../schema.ts';
import { keptIdOf } from './record-sled-answer.ts';

export interface NewSled {
  readonly name: string;
  /** In its one spelling. */
  readonly address: string;
  readonly threads: number;
  readonly memoryBytes: number;
  /** What its agent says of itself; `null`: it doesn't know the question; absent: nobody answers there. */
  readonly agent?: AgentDescription | null | undefined;
}

/**
 * Adds a sled, in service; one whose agent does not answer counts as silent. Throws a {@link Refusal} for a name, an address or
 * an agent that another sled has.
 */
export async function addSled(db: Database, { agent, ...values }: NewSled) {
  return refuseKnownAgent(db, values.address, agent, () =>
    refuseTakenName('sled_address', 'sled at address', values.address, () =>
      refuseTakenName('sled_name', 'sled', values.name, () =>
        db.transaction(async (transaction) => {
          const [row] = await transaction
            .insert(sled)
            .values({
              id: randomUUID(),
              ...values,
              ...answerOf(agent),
            })
            .returning();
          if (row === undefined) throw new Error('the sled was not returned');
          return row;
        }),
      ),
    ),
  );
}

/** What a sled's row has of the answer of its agent at its address, or of the lack of one (`undefined`). */
export function answerOf(agent: AgentDescription | null | undefined) {
  if (agent === undefined) return { silentSince: sql`now()`, anotherAnswers: false };
  return {
    anotherAnswers: false,
    lastAnsweredAt: sql`now()`,
    silentSince: null,
    agentId: agent?.agent_id ?? null,
    keptAgentId: keptIdOf(agent),
    agentVersion: agent?.version ?? null,
    agentTrouble: agent?.trouble ?? [],
    cpuModels: agent?.cpu_models ?? null,
  };
}

/** Runs a write that gives a sled its agent. Throws a {@link Refusal} that names the sled that has this agent already. */
export async function refuseKnownAgent<T>(
  db: Queryable,
  address: string,
  agent: AgentDescription | null | undefined,
  write: () => Promise<T>,
): Promise<T> {
  try {
    return await write();
  } catch (error) {
    if (violatedConstraint(error) !== 'sled_agent' || agent == null) throw error;
    const [owner] = await db
      .select({ name: sled.name, address: sled.address })
      .from(sled)
      .where(and(eq(sled.agentId, agent.agent_id), ne(sled.policy, 'expunged')));
    const whose = owner === undefined ? 'another sled' : `sled "${owner.name}" (${owner.address})`;
    throw Refusal.conflict(`address: the agent at ${address} is that of ${whose}: one host is one sled`);
  }
}
