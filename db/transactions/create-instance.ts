import { randomUUID } from 'node:crypto';
import { sql } from 'drizzle-orm';
import { Refusal } from '../../model/refusal.ts';
import type { AutoRestartPolicy, RestartPriority } from '../../model/states.ts';
import type { Database } from '../connect.ts';
import { refuseTakenName } from '../errors.ts';
import { findCreated } from '../queries/find-created-instance.ts';
import { requireAffinityGroup } from '../queries/require-affinity-group.ts';
import { type AffinityGroupRow, instance } from '../schema.ts';
import { addAffinityMember } from './add-affinity-member.ts';
import { type RequestKey, takeKey } from './take-key.ts';

/** The same call was quicker: this one's transaction is given up. */
class CreatedMeanwhile extends Error {}

export interface NewInstance {
  /** A new one when absent. */
  readonly id?: string;
  readonly projectId: string;
  readonly name: string;
  readonly description: string;
  readonly hostname: string;
  readonly ncpus: number;
  readonly memoryBytes: number;
  readonly autoRestartPolicy: AutoRestartPolicy | null;
  readonly restartPriority?: RestartPriority | undefined;
  /** The client's key for this call. */
  readonly key?: RequestKey | undefined;
  /** The anti-affinity groups that it joins, by id or by name within its project. */
  readonly antiAffinityGroups?: readonly ({ readonly id: string } | { readonly name: string })[];
}

/**
 * Creates an instance, stopped, a member of its groups from the first moment. Returns its id. With a key, the same call
 * again returns the instance that the first one made, or throws what that one was refused with. Throws a {@link Refusal}.
 */
export async function createInstance(db: Database, values: NewInstance): Promise<string> {
  const { id = randomUUID(), antiAffinityGroups = [], key, ...columns } = values;
  if (key !== undefined) {
    const made = await findCreated(db, key);
    if (made !== null) return made;
  }
  let created: string = id;
  await refuseTakenName('instance_name', 'instance', values.name, () =>
    db.transaction(async (transaction) => {
      // So that the project isn't deleted meanwhile. A stronger lock would wait for every start's charge, and deadlock with them.
      const found = await transaction.execute(
        sql`/* create-instance */ SELECT 1 FROM project WHERE id = ${values.projectId} AND time_deleted IS NULL FOR KEY SHARE`,
      );
      if (found.rows.length === 0) throw Refusal.notFound('project', values.projectId);
      await transaction.insert(instance).values({ id, ...columns, state: 'no_vmm', intendedState: 'stopped' });
      if (key !== undefined) {
        const taken = await takeKey(transaction, key, id);
        if (!taken.fresh) throw new CreatedMeanwhile();
      }
      const groups = new Map<string, AffinityGroupRow>();
      for (const named of antiAffinityGroups) {
        const { projectId } = values;
        const group = await requireAffinityGroup(transaction, 'anti_affinity', { ...named, projectId });
        // Named twice, once by its id perhaps, it is joined once.
        groups.set(group.id, group);
      }
      // In the order in which a start locks them.
      for (const group of [...groups.values()].sort((a, b) => (a.id < b.id ? -1 : 1)))
        await addAffinityMember(transaction, group, { id, name: values.name });
    }),
  ).catch(async (error: unknown) => {
    // The same call at the same time: it has the key, or the name that this one found taken.
    if (key === undefined || !(error instanceof CreatedMeanwhile || error instanceof Refusal)) throw error;
    if (error instanceof Refusal) await keepRefusal(db, key, error);
    const made = await findCreated(db, key);
    if (made === null) throw error;
    created = made;
  });
  return created;
}

/** Keeps a refusal for the key of its request, so that the key names that request from now on; one that is taken stays. */
async function keepRefusal(
  db: Database,
  { value, call, digest, sending }: RequestKey,
  refusal: Refusal,
): Promise<void> {
  if (refusal.kept === null) return;
  await db.execute(sql`/* keep-refusal */
    INSERT INTO idempotency_key (key, call, request_digest, taken_by, refusal)
    VALUES (${value}, ${call}, decode(${digest}, 'hex'), ${sending}, ${JSON.stringify(refusal.kept)}::jsonb)
    ON CONFLICT (key) DO NOTHING`);
}
