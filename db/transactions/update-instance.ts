import { eq, sql } from 'drizzle-orm';
import { Refusal } from '../../model/refusal.ts';
import type { AutoRestartPolicy, RestartPriority } from '../../model/states.ts';
import type { Database } from '../connect.ts';
import { refuseTakenName, retryOnConflict } from '../errors.ts';
import { lockInstance } from '../queries/lock-instance.ts';
import { instance } from '../schema.ts';

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
  await refuseTakenName('instance_name', 'instance', changes.name ?? '', () =>
    retryOnConflict(() =>
      db.transaction(async (transaction) => {
        const record = await lockInstance(transaction, instanceId);
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
