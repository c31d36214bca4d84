/** Projects, instances and sleds as records: what operators create and change, apart from the sagas. */
import { randomUUID } from 'node:crypto';
import { and, eq, isNull, sql } from 'drizzle-orm';
import { Refusal } from '../../model/refusal.ts';
import { type AutoRestartPolicy, groupNoun, type RestartPriority } from '../../model/states.ts';
import type { Database, Queryable } from '../connect.ts';
import { retryOnConflict, violatedConstraint } from '../errors.ts';
import { type AffinityGroupRow, requireAffinityGroup } from '../queries/affinity-groups.ts';
import { lockInstance } from '../queries/read-instance.ts';
import { affinityGroup, instance, project, sled } from '../schema.ts';
import { failSledVmms } from './fail-sled.ts';
import { findCreated, takeKey } from './idempotency-key.ts';
import { addAffinityMember } from './manage-affinity.ts';

/** Runs a write whose unique name may be taken: that becomes a refusal that says so. */
async function naming<T>(constraint: string, kind: string, name: string, write: () => Promise<T>): Promise<T> {
  try {
    return await write();
  } catch (error) {
    if (violatedConstraint(error) === constraint) throw Refusal.nameTaken(kind, name);
    throw error;
  }
}

/** Finds a project by name or id. Throws a {@link Refusal} when there is none. */
export async function requireProject(db: Queryable, nameOrId: string, isId: boolean) {
  const [row] = await db
    .select()
    .from(project)
    .where(and(isId ? eq(project.id, nameOrId) : eq(project.name, nameOrId), isNull(project.timeDeleted)));
  if (row === undefined) throw Refusal.notFound('project', nameOrId);
  return row;
}

export async function createProject(db: Database, values: { name: string; description: string }) {
  return naming('project_name', 'project', values.name, () =>
    db.transaction(async (transaction) => {
      const [row] = await transaction
        .insert(project)
        .values({ id: randomUUID(), ...values })
        .returning();
      if (row === undefined) throw new Error('the project was not returned');
      return row;
    }),
  );
}

export async function updateProject(db: Database, projectId: string, values: { name?: string; description?: string }) {
  return naming('project_name', 'project', values.name ?? '', () =>
    db.transaction(async (transaction) => {
      const [row] = await transaction
        .update(project)
        .set({ ...values, timeModified: sql`now()` })
        .where(and(eq(project.id, projectId), isNull(project.timeDeleted)))
        .returning();
      if (row === undefined) throw Refusal.notFound('project', projectId);
      return row;
    }),
  );
}

/** Deletes a project. Throws a {@link Refusal} while it has instances or groups. */
export async function deleteProject(db: Database, projectId: string): Promise<void> {
  await db.transaction(async (transaction) => {
    await transaction.execute(sql`/* delete-project */ SELECT 1 FROM project WHERE id = ${projectId} FOR UPDATE`);
    const [left] = await transaction
      .select({ name: instance.name })
      .from(instance)
      .where(and(eq(instance.projectId, projectId), isNull(instance.timeDeleted)))
      .limit(1);
    if (left !== undefined) {
      throw Refusal.invalid(`the project still has instances, "${left.name}" among them: delete them first`);
    }
    const [group] = await transaction
      .select({ name: affinityGroup.name, kind: affinityGroup.kind })
      .from(affinityGroup)
      .where(eq(affinityGroup.projectId, projectId))
      .limit(1);
    if (group !== undefined) {
      throw Refusal.invalid(
        `the project still has groups, ${groupNoun(group.kind)} "${group.name}" among them: delete them first`,
      );
    }
    await transaction.update(project).set({ timeDeleted: sql`now()` }).where(eq(project.id, projectId));
  });
}

/** Sets a project's quota; one below what is in use only stops new starts. */
export async function setQuota(
  db: Database,
  projectId: string,
  quota: { cpus: number | null; memoryBytes: number | null },
) {
  return db.transaction(async (transaction) => {
    const [row] = await transaction
      .update(project)
      .set({ quotaCpus: quota.cpus, quotaMemoryBytes: quota.memoryBytes, timeModified: sql`now()` })
      .where(eq(project.id, projectId))
      .returning();
    if (row === undefined) throw Refusal.notFound('project', projectId);
    return row;
  });
}

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
  readonly idempotencyKey?: string | undefined;
  /** The anti-affinity groups that it joins, by id or by name within its project. */
  readonly antiAffinityGroups?: readonly ({ readonly id: string } | { readonly name: string })[];
}

/**
 * Creates an instance, stopped, a member of its groups from the first moment. Returns its id. With a key, the same call
 * again returns the instance that the first one made. Throws a {@link Refusal}.
 */
export async function createInstance(db: Database, values: NewInstance): Promise<string> {
  const { id = randomUUID(), antiAffinityGroups = [], idempotencyKey, ...columns } = values;
  if (idempotencyKey !== undefined) {
    const made = await findCreated(db, idempotencyKey, values.projectId);
    if (made !== null) return made;
  }
  let created: string = id;
  await naming('instance_name', 'instance', values.name, () =>
    db.transaction(async (transaction) => {
      // So that the project isn't deleted meanwhile. A stronger lock would wait for every start's charge, and deadlock with them.
      const found = await transaction.execute(
        sql`/* create-instance */ SELECT 1 FROM project WHERE id = ${values.projectId} AND time_deleted IS NULL FOR KEY SHARE`,
      );
      if (found.rows.length === 0) throw Refusal.notFound('project', values.projectId);
      await transaction.insert(instance).values({ id, ...columns, state: 'no_vmm', intendedState: 'stopped' });
      if (idempotencyKey !== undefined) {
        const taken = await takeKey(transaction, { key: idempotencyKey, call: 'create', instanceId: id });
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
    const made =
      idempotencyKey !== undefined && (error instanceof CreatedMeanwhile || error instanceof Refusal)
        ? await findCreated(db, idempotencyKey, values.projectId)
        : null;
    if (made === null) throw error;
    created = made;
  });
  return created;
}

export interface InstanceChanges {
  readonly name?: string;
  readonly description?: string;
  readonly ncpus?: number;
  readonly memoryBytes?: number;
  /** `null` unsets the policy. */
  readonly autoRestartPolicy?: AutoRestartPolicy | null;
  readonly autoRestartCooldownSeconds?: number;
  readonly restartPriority?: RestartPriority;
}

/** Renames and resizes an instance. Throws a {@link Refusal} when a size would change while a VMM has it. */
export async function updateInstanceRecord(db: Database, instanceId: string, changes: InstanceChanges): Promise<void> {
  await naming('instance_name', 'instance', changes.name ?? '', () =>
    retryOnConflict(() =>
      db.transaction(async (transaction) => {
        const record = await lockInstance(transaction, instanceId);
        if (record === null || record.instance.timeDeleted !== null) throw Refusal.notFound('instance', instanceId);
        const before = record.instance;
        const fixed = { ncpus: changes.ncpus, memoryBytes: changes.memoryBytes, name: changes.name };
        const incarnated = !['stopped', 'failed'].includes(record.externalState);
        for (const [field, value] of Object.entries(fixed)) {
          if (value === undefined || value === before[field as keyof typeof fixed] || !incarnated) continue;
          throw Refusal.conflict(
            `${field} of instance "${before.name}" can't change while it is ${record.externalState}: stop it first`,
          );
        }
        await transaction
          .update(instance)
          .set({ ...changes, timeModified: sql`now()` })
          .where(eq(instance.id, instanceId));
      }),
    ),
  );
}

/** Adds a sled, in service. */
export async function addSled(
  db: Database,
  values: { name: string; address: string; threads: number; memoryBytes: number },
) {
  return naming('sled_address', 'sled at address', values.address, () =>
    naming('sled_name', 'sled', values.name, () =>
      db.transaction(async (transaction) => {
        const [row] = await transaction
          .insert(sled)
          .values({ id: randomUUID(), ...values })
          .returning();
        if (row === undefined) throw new Error('the sled was not returned');
        return row;
      }),
    ),
  );
}

/** Says whether a sled takes new VMMs. Throws a {@link Refusal} for one that is expunged. Returns the policy before. */
export async function setSledPolicy(db: Database, sledId: string, policy: 'in_service' | 'no_provision') {
  return db.transaction(async (transaction) => {
    await transaction.execute(sql`/* set-sled-policy */ SELECT 1 FROM sled WHERE id = ${sledId} FOR UPDATE`);
    const [before] = await transaction.select().from(sled).where(eq(sled.id, sledId));
    if (before === undefined) throw Refusal.notFound('sled', sledId);
    if (before.policy === 'expunged')
      throw Refusal.conflict(`sled "${before.name}" was expunged: its policy can't change; add it as a new sled`);
    await transaction.update(sled).set({ policy, timeModified: sql`now()` }).where(eq(sled.id, sledId));
    return before.policy;
  });
}

/**
 * Expunges a sled: the operator's word that it is gone for good. In one transaction its VMMs become failed, the sides of
 * their migrations with them, and what was held for VMMs that its answer was awaited for is released. A second time it
 * does nothing. Returns the instances whose records may need an update.
 */
export async function expungeSled(db: Database, sledId: string): Promise<string[]> {
  return retryOnConflict(() =>
    db.transaction(async (transaction) => {
      const found = await transaction.execute(
        sql`/* expunge-sled */ SELECT name FROM sled WHERE id = ${sledId} FOR UPDATE`,
      );
      if (found.rows.length === 0) throw Refusal.notFound('sled', sledId);
      const reason = `sled "${found.rows[0]?.name}" was expunged`;
      await transaction.execute(sql`/* expunge-sled */
        UPDATE sled SET policy = 'expunged', time_expunged = coalesce(time_expunged, now()), time_modified = now() WHERE id = ${sledId} AND policy <> 'expunged'`);
      return (await failSledVmms(transaction, { tag: 'expunge-sled', sledId, reason })).instanceIds;
    }),
  );
}
