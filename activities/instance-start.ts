import { listPlaces } from '../db/queries/pick-sled.ts';
import { readInstance } from '../db/queries/read-instance.ts';
import { type ClaimedVmm, type ClaimStartRequest, claimStart } from '../db/transactions/claim-start.ts';
import { type CommandedAttempt, commandVmm } from './command-vmm.ts';
import type { SagaContext } from './context.ts';
import { type SledAddress, SledError } from './sled-client.ts';

/** How many sleds are asked at a time whether they answer, and how long each has, in milliseconds: within a workflow task's step. */
const ASKED_SLEDS = 32;
const ASK_MS = 1_500;

export interface OtherSledsRequest {
  readonly instanceId: string;
  /** Sleds that are not asked: they have given this start no answer. */
  readonly silentSledIds: readonly string[];
}

/** The steps of a start. */
export function startActivities(context: SagaContext) {
  const { db, sleds } = context;
  return {
    /** Claims the VMM. `null` when the instance is started already. */
    async claimStart(request: ClaimStartRequest): Promise<ClaimedVmm | null> {
      return claimStart(db, request);
    },

    /**
     * Asks the sleds that would take the instance whether they answer. Returns which sleds to pass over, where one of them
     * does; `null` where none does, or none would take it.
     */
    async readOtherSleds({
      instanceId,
      silentSledIds,
    }: OtherSledsRequest): Promise<{ silentSledIds: readonly string[] } | null> {
      const record = await readInstance(db, instanceId);
      if (record === null) return null;
      const { ncpus, memoryBytes } = record.instance;
      const places = await listPlaces(
        db,
        { instanceId, ncpus, memoryBytes, excludeSledIds: silentSledIds },
        ASKED_SLEDS,
      );
      const answers = await Promise.all(
        places.map(async (sled) => ({ sled, answered: await answersCalls(sleds, sled) })),
      );
      const silent = answers.filter(({ answered }) => !answered).map(({ sled }) => sled.id);
      return silent.length < places.length ? { silentSledIds: [...silentSledIds, ...silent] } : null;
    },

    /** Commands the sled to run the guest, and records the start's success with the sled's answer. */
    async runVmm(attempt: CommandedAttempt): Promise<void> {
      await commandVmm(context, attempt, () => ({ type: 'running' }), { readIntent: true });
    },
  };
}

/** Whether a sled does what it is asked, for now. */
function answersCalls(sleds: SagaContext['sleds'], sled: SledAddress): Promise<boolean> {
  return sleds.readInventory(sled, ASK_MS).then(
    () => true,
    (error: unknown) => {
      if (error instanceof SledError) return false;
      throw error;
    },
  );
}
