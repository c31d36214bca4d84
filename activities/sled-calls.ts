/** What the steps of several sagas do with a sled: take its answer into the database, and make sure that a VMM is gone. */
import { applyReport } from '../db/transactions/apply-report.ts';
import { signalAfterReport } from '../temporal/signal-update.ts';
import type { SledVmmState } from '../wire/sled-protocol.ts';
import type { ActivityContext } from './context.ts';
import { type SledAddress, SledError } from './sled-client.ts';
import type { StepSledCalls } from './step-sleds.ts';

/** How long one call to a sled agent may take, in milliseconds. */
export const SLED_CALL_MS = 4_000;
/** The same for a call that is made again soon. */
export const BRIEF_SLED_CALL_MS = 1_500;

/** The sled of a VMM, as it is spoken to; `null` where it has none. */
export function sledOf(place: {
  readonly sledName: string | null;
  readonly sledAddress: string | null;
  readonly sledAgentId: string | null;
}): SledAddress | null {
  const { sledName, sledAddress, sledAgentId } = place;
  return sledName === null || sledAddress === null
    ? null
    : { name: sledName, address: sledAddress, keptAgentId: sledAgentId };
}

/**
 * Applies the state that a sled answered a command with, as a report of it, and signals the update if the stored state then
 * needs one. `saga`: what the same transaction writes for the saga that commanded. `null` when there was no state, or no VMM.
 */
export async function applyAnswer(
  { db, workflows }: Pick<ActivityContext, 'db' | 'workflows'>,
  vmmId: string,
  state: SledVmmState | null,
  saga: Parameters<typeof applyReport>[3] = {},
) {
  if (state === null) return null;
  const applied = await applyReport(db, vmmId, state, saga);
  if (applied?.wrote) await signalAfterReport({ db, workflows }, applied);
  return applied;
}

/** Unregisters a VMM; the state in which it ended, where the sled knew it. Throws unless the sled's answer is definitive. */
export async function unregisterFromSled(
  sleds: Pick<StepSledCalls, 'unregister'>,
  sled: SledAddress,
  vmmId: string,
  timeoutMs = BRIEF_SLED_CALL_MS,
): Promise<SledVmmState | null> {
  try {
    return (await sleds.unregister(sled, vmmId, timeoutMs)).updated_runtime;
  } catch (error) {
    if (error instanceof SledError && error.kind === 'gone') return null;
    throw error;
  }
}
