/**
 * The instance-migrate saga: from a Running instance to one whose destination has accepted to migrate it in.
 *
 * It guarantees: when it fails, the instance shows what its active VMM says, as before, and can be migrated again at
 * once. From the moment the destination may be migrating in, nothing here tears the migration down: the destination's
 * definitive answer or the sleds' reports decide, and the update saga draws the consequences.
 *
 * Who else touches these rows: both sleds report their side of the migration; the update saga alone clears the ids.
 */
import { CancellationScope, sleep, uuid4 } from '@temporalio/workflow';
import type { InstanceMigrateInput, InstanceMigrateResult } from '../model/workflow-inputs.ts';
import { stepFailure } from './failures.ts';
import { runSaga } from './saga.ts';
import { claimMigration, DEFAULT_REGISTER_TIMEOUT_MS, migrateIn, registerVmm, signalUpdate } from './steps.ts';

/** How long the saga waits for the update to clear a leftover, and how often it looks. */
const UPDATE_WAIT_ROUNDS = 50;
const UPDATE_WAIT_MS = 200;

export async function instanceMigrate(input: InstanceMigrateInput): Promise<InstanceMigrateResult> {
  const { instanceId, destinationSledId, drainedSledId } = input;
  const register = registerVmm(input.registerTimeoutMs ?? DEFAULT_REGISTER_TIMEOUT_MS);
  const migrationId = uuid4();
  let told = false;
  return runSaga<InstanceMigrateResult>({
    kind: 'migrate',
    instanceId,
    async steps(attempt) {
      const claimed = await claimOnceCleared({ ...attempt, migrationId, destinationSledId, drainedSledId });
      if (claimed.outcome === 'already') return { outcome: 'already migrating' };
      const { claim } = claimed;
      const sled = { name: claim.sledName, address: claim.sledAddress, keptAgentId: claim.sledAgentId ?? null };
      const lookedAtMs = await register({ ...claim, instanceId });
      told = true;
      // The point of no return: a cancellation must not turn a migration that may be under way into an unwind.
      await CancellationScope.nonCancellable(() =>
        migrateIn({ ...attempt, migrationId, sled, sourceAddress: claim.sourceAddress, lookedAtMs }),
      );
      return { outcome: 'migrating', vmmId: attempt.vmmId, migrationId, sled: claim.sledName };
    },
    // A destination that has reported that it migrates in has the guest, or is about to: reports decide from there.
    sparesRunning: () => true,
    wasRefused: () => told,
    spared: ({ vmmId }) => ({ outcome: 'migrating', vmmId, migrationId }),
  });
}

/** Claims, and waits for the update to clear what an earlier migration left, where that stands in the way. */
async function claimOnceCleared(request: Parameters<typeof claimMigration>[0]) {
  for (let round = 0; ; round++) {
    const claimed = await claimMigration(request);
    if (claimed.outcome !== 'awaits-update') return claimed;
    if (round === UPDATE_WAIT_ROUNDS)
      throw stepFailure(
        'UpdatePending',
        'what an earlier migration left has not been cleared yet: wait a moment and migrate again',
      );
    await signalUpdate({ instanceId: request.instanceId });
    await sleep(UPDATE_WAIT_MS, { summary: 'until the update has cleared what an earlier migration left' });
  }
}
