import { readLinkedVmms, type VmmPlace } from '../db/queries/read-vmm-place.ts';
import { failVmm } from '../db/transactions/fail-vmm.ts';
import { isGoneVmmState } from '../model/states.ts';
import type { SagaContext } from './context.ts';
import { automaticActor } from './record-action.ts';
import { applyAnswer, SLED_CALL_MS, sledOf } from './sled-calls.ts';
import { SledError } from './sled-client.ts';

/** The step of a stop. */
export function stopActivities(context: SagaContext) {
  const { db, sleds, workflows } = context;
  return {
    /** Delivers a recorded stop. Fails, to be tried again, until nobody is left who has to be commanded. */
    async deliverStop(request: { instanceId: string }): Promise<string> {
      const vmms = await readLinkedVmms(db, request.instanceId);
      const living = vmms.filter((vmm) => !isGoneVmmState(vmm.state));
      if (living.length === 0) return 'nothing left to stop';
      if (living[0]?.intendedState === 'running') return 'the user wants it to run again';
      const waiting: string[] = [];
      for (const vmm of living) {
        const reason = await stopVmm(vmm);
        if (reason !== null) waiting.push(reason);
      }
      if (waiting.length === 0) return `told ${living.map((vmm) => `sled "${vmm.sledName}"`).join(' and ')}`;
      throw new SledError('unavailable', `the stop is not delivered yet: ${waiting.join('; ')}`);
    },
  };

  /** Commands one VMM to stop. Returns why it must be commanded again, or `null`. */
  async function stopVmm(vmm: VmmPlace): Promise<string | null> {
    if (vmm.state === 'stopping' || vmm.state === 'stopped') return null;
    if (vmm.unwinding) return `VMM ${vmm.vmmId} is being unwound`;
    const sled = sledOf(vmm);
    if (sled === null) return `VMM ${vmm.vmmId} has no sled`;
    if (vmm.givenUp) return `VMM ${vmm.vmmId}: sled "${vmm.sledName}" was given up`;
    // Its sled may not know it yet; its saga reads the intent before it commands it to run.
    if (vmm.state === 'creating') return `VMM ${vmm.vmmId} is being created`;
    try {
      const { updated_runtime } = await sleds.setState(sled, vmm.vmmId, { type: 'stopped' }, SLED_CALL_MS);
      await applyAnswer(context, vmm.vmmId, updated_runtime);
      return null;
    } catch (error) {
      if (!(error instanceof SledError)) throw error;
      if (error.kind === 'gone') {
        const instanceId = await failVmm(db, vmm.vmmId, error.message, automaticActor('stop'));
        if (instanceId !== null) await workflows.signalUpdate(instanceId);
        return null;
      }
      // Refused: a source whose guest has left, whose target is commanded too; or a state that does not last.
      return error.message;
    }
  }
}
