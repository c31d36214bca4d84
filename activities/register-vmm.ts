import type { ClaimedVmm } from '../db/transactions/claim-start.ts';
import { isGoneVmmState } from '../model/states.ts';
import { isTriedAgain } from './attempts.ts';
import { checkStillWanted, sledNow, stopRequested, vmmEnded } from './command-vmm.ts';
import type { SagaContext } from './context.ts';
import { applyAnswer, SLED_CALL_MS } from './sled-calls.ts';

/** The step that a start and a migration share. */
export function registerActivities(context: SagaContext) {
  const { sleds } = context;
  return {
    /**
     * Registers a VMM with its sled, then writes the sled's answer and, in the same transaction, reads the intent and marks
     * the VMM as about to be commanded. Final when the user asked for stop meanwhile, or when the VMM was ended: without the
     * mark nothing may command the sled to run it. Returns when it looked, in milliseconds since 1970.
     */
    async registerVmm(claim: ClaimedVmm & { instanceId: string; migrationId?: string }): Promise<number> {
      const place = isTriedAgain() ? await checkStillWanted(context, claim.vmmId, { readIntent: true }) : null;
      const sled = sledNow(place, {
        name: claim.sledName,
        address: claim.sledAddress,
        keptAgentId: claim.sledAgentId ?? null,
      });
      const state = await sleds.register(
        sled,
        claim.vmmId,
        {
          instance_id: claim.instanceId,
          ...(claim.migrationId === undefined ? {} : { migration_id: claim.migrationId }),
          vmm_runtime: {
            state: claim.migrationId === undefined ? 'starting' : 'migrating',
            gen: claim.registerGeneration,
            time_updated: new Date().toISOString(),
          },
          vmm_spec: {
            name: claim.instanceName,
            ncpus: claim.ncpus,
            memory_bytes: claim.memoryBytes,
            ...(claim.cpuModel == null ? {} : { cpu_model: claim.cpuModel }),
          },
          vmm_addr: claim.vmmAddress,
          sled_id: claim.sledId,
        },
        SLED_CALL_MS,
      );
      const applied = await applyAnswer(context, claim.vmmId, state, { markCommanded: true });
      if (applied !== null && applied.intendedState !== 'running') throw stopRequested();
      // Ended meanwhile, by an unwind or a verdict; an earlier run of this step may have marked it before.
      if (applied?.verdict !== 'applied' || isGoneVmmState(applied.state) || !applied.commanded)
        throw vmmEnded(claim.sledName);
      return Date.now();
    },
  };
}
