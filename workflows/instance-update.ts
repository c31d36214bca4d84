/**
 * The instance-update saga: brings an instance's record in line with what its VMMs and its migration have come to. One
 * workflow per instance, signalled (and started) by whoever writes a fact that may need one: so the clearing of ids is
 * serialized, and a hundred signals make few runs.
 *
 * It never undoes anything. Each round reads a snapshot and writes all that follows in one transaction; it completes only
 * after a round that found nothing to do and no signal since. A signal that arrives while it completes makes the server
 * refuse the completion and hand it over.
 */
import { continueAsNew, defineSignal, setHandler, workflowInfo } from '@temporalio/workflow';
import type { InstanceUpdateInput } from '../model/workflow-inputs.ts';
import { database } from './proxies.ts';

/** The instance's stored state may need an update. */
export const updateNeeded = defineSignal('updateNeeded');

export async function instanceUpdate(input: InstanceUpdateInput): Promise<{ rounds: number; last: string }> {
  let needed = true;
  setHandler(updateNeeded, () => {
    needed = true;
  });
  let rounds = 0;
  let last = 'nothing to do';
  while (needed) {
    needed = false;
    rounds += 1;
    const result = await database.updateInstance(input);
    if (result !== null) last = result;
    if (needed && workflowInfo().continueAsNewSuggested) return continueAsNew<typeof instanceUpdate>(input);
  }
  return { rounds, last };
}
