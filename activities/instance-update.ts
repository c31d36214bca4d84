import { readVmmPlace } from '../db/queries/read-vmm-place.ts';
import { applyReport } from '../db/transactions/apply-report.ts';
import { commitUpdate } from '../db/transactions/commit-update.ts';
import { failVmm } from '../db/transactions/fail-vmm.ts';
import type { SagaContext } from './context.ts';
import { automaticActor } from './record-action.ts';
import { BRIEF_SLED_CALL_MS, sledOf } from './sled-calls.ts';
import { SledError } from './sled-client.ts';
import { SledNotAsked } from './step-sleds.ts';

/** The step of an update. */
export function updateActivities({ db, sleds, workflows, metrics }: SagaContext) {
  return {
    /**
     * Brings the records in line, then starts what must happen on sleds. Where it has to ask a sled, and hears something
     * new, it does so again. Returns what it did, or `null` for nothing.
     */
    async updateInstance(request: { instanceId: string }): Promise<string | null> {
      const done: string[] = [];
      for (;;) {
        const update = await commitUpdate(db, request.instanceId);
        if (update === null) return null;
        for (const round of update.rounds) {
          done.push(round.case);
          if (round.factAgeSeconds !== null)
            metrics?.updateLagSeconds.observe({ case: round.case }, round.factAgeSeconds);
        }
        const { unregister, carryStop, ask } = update.left;
        for (const vmmId of unregister) await workflows.unregisterVmm(vmmId);
        if (carryStop) await workflows.carryStop(request.instanceId);
        if (ask === null || !(await askSled(ask))) break;
      }
      return done.length === 0 ? null : done.join(', then ');
    },
  };

  /** Asks a VMM's sled for its state, once. Returns whether that changed what is stored. */
  async function askSled(vmmId: string): Promise<boolean> {
    const place = await readVmmPlace(db, vmmId);
    const sled = place === null || place.givenUp ? null : sledOf(place);
    if (sled === null) return false;
    try {
      const state = await sleds.readState(sled, vmmId, BRIEF_SLED_CALL_MS);
      return (await applyReport(db, vmmId, state))?.wrote ?? false;
    } catch (error) {
      if (!(error instanceof SledError) || error instanceof SledNotAsked) throw error;
      if (error.kind !== 'gone') return false;
      return (await failVmm(db, vmmId, error.message, automaticActor('update'))) !== null;
    }
  }
}
