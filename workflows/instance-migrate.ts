/**
 * The instance-migrate saga: from a Running instance to one whose destination has accepted to migrate it in.
 *
 * It guarantees: when it fails, the instance shows what its active VMM says, as before, and can be migrated again at
 * once. From the moment the destination may be migrating in, nothing here tears the migration down: the destination's
 * definitive answer or the sleds' reports decide, and the update saga draws the consequences.
 *
 * Who else touches these rows: both sleds report their side of the migration; the update saga alone clears the ids.
 */
import { CancellationScope, sleep, uuid4, workflowInfo } from '@temporalio/workflow';
import type { InstanceMigrateInput, InstanceMigrateResult } from '../model/workflow-inputs.ts';
import { DEFAULT_REGISTER_TIMEOUT_MS, database, registering, untilDefinitive } from './activities.ts';
import { errorBodyOf, failedWith, operationFailure } from './failures.ts';
import { Saga } from './saga.ts';
import { unwindVmm } from './unwind.ts';

/** How long the saga waits for the update to clear a leftover, and how often it looks. */
const UPDATE_WAIT_ROUNDS = 50;
const UPDATE_WAIT_MS = 200;

export async function instanceMigrate(input: InstanceMigrateInput): Promise<InstanceMigrateResult> {
  const { instanceId, destinationSledId, drainedSledId } = input;
  const { workflowId, firstExecutionRunId: operationId } = workflowInfo();
  const vmmId = uuid4();
  const migrationId = uuid4();
  const attempt = { kind: 'migrate' as const, instanceId, vmmId, operationId, workflowId };
  const wanted = { ...attempt, destinationSledId, migrationId, drainedSledId };
  const saga = new Saga({ vmm_id: vmmId });
  let failure: unknown;
  let spared = false;
  let sled: string | undefined;
  saga.compensateWith('unwind the target VMM', async () => {
    spared =
      (await unwindVmm({ ...attempt, spareRunning: true, error: errorBodyOf(failure, 'the migration', sled) })) ===
      'spared';
  });

  try {
    let claimed = await database.claimMigration(wanted);
    for (let round = 1; claimed.outcome === 'awaits-update' && round <= UPDATE_WAIT_ROUNDS; round++) {
      await database.signalUpdate({ instanceId });
      await sleep(UPDATE_WAIT_MS, { summary: 'until the update has cleared what an earlier migration left' });
      claimed = await database.claimMigration(wanted);
    }
    if (claimed.outcome === 'already') return { outcome: 'already migrating' };
    if (claimed.outcome === 'awaits-update') {
      throw operationFailure(
        'InstanceMigrateRefused',
        {
          status: 409,
          error_code: 'Conflict',
          message: 'what an earlier migration left has not been cleared yet: wait a moment and migrate again',
        },
        undefined,
      );
    }
    const { claim } = claimed;
    sled = claim.sledName;
    await registering(input.registerTimeoutMs ?? DEFAULT_REGISTER_TIMEOUT_MS).registerVmm({ ...claim, instanceId });
    // The point of no return: a cancellation must not turn a migration that may be under way into an unwind.
    await CancellationScope.nonCancellable(() =>
      untilDefinitive.migrateIn({
        ...attempt,
        migrationId,
        sled: { name: claim.sledName, address: claim.sledAddress },
        sourceAddress: claim.sourceAddress,
      }),
    );
    return { outcome: 'migrating', vmmId, migrationId, sled: claim.sledName };
  } catch (error) {
    if (failedWith(error, 'Refusal'))
      throw operationFailure('InstanceMigrateRefused', errorBodyOf(error, 'the migration'), error);
    failure = error;
    await saga.unwind();
    // The destination has reported that it migrates in: reports decide from here.
    if (spared) {
      await CancellationScope.nonCancellable(() => database.succeedOperation(attempt));
      return { outcome: 'migrating', vmmId, migrationId };
    }
    throw operationFailure('InstanceMigrateUnwound', errorBodyOf(error, 'the migration', sled), error);
  }
}
