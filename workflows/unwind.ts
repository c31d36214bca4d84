/**
 * How an attempt to make a VMM is undone (section 3 of docs/design.md). Three steps, each of which can run twice and can run
 * when nothing happened:
 *
 * 1. begin: from here on no report and no verdict is written to the VMM's row; a claim that never arrived can't any more.
 *    A VMM whose guest runs is spared instead, and the operation's success recorded by the same statement.
 * 2. unregister: the sled's word that the VMM isn't there. A guest that was told to run, or to migrate in, is waited for
 *    as long as it takes; one that was never told is not worth a wait: its id stays dead on the sled.
 * 3. finish: `saga_unwound`, and everything that the attempt held is released; then the update saga is signalled.
 *
 * The instance's ids and generation are not touched: only the update saga clears them.
 */
import type { OperationError } from '../model/failures.ts';
import type { UnwindInput } from '../model/workflow-inputs.ts';
import { operationError } from './failures.ts';
import {
  beginUnwind,
  finishUnwind,
  migrateIn,
  readMigrateInCommand,
  unregisterVmm,
  unregisterVmmBriefly,
  unregisterVmmOnce,
} from './steps.ts';

/**
 * Unwinds a VMM. Returns `spared` when it was left alone, because its operation had succeeded or its guest runs: then nothing
 * was undone, and the operation's success is on record. `commanded`: a migration's destination was commanded, or is about to be,
 * by an earlier run of the same workflow task; nothing was undone.
 */
async function unwindVmm(
  input: UnwindInput,
  { goesOn = false }: { goesOn?: boolean } = {},
): Promise<'unwound' | 'spared' | 'commanded'> {
  const begun = await beginUnwind(input);
  if (begun.spared) return 'spared';
  if (begun.forward) return 'commanded';
  const confirmed = await unregisters(input.vmmId, begun, goesOn ? unregisterVmmOnce : unregisterVmmBriefly);
  await finishUnwind({ ...input, confirmed, neverCommanded: !begun.commanded, ...(goesOn ? { goesOn } : {}) });
  return 'unwound';
}

/** Whether it is certain that no sled has the VMM any more. `neverTold`: how one is asked that was never commanded. */
async function unregisters(
  vmmId: string,
  { ended, sled, commanded }: BegunUnwind,
  neverTold: typeof unregisterVmm,
): Promise<boolean> {
  // What has been unwound before waits for no sled again: what its answer would release is the watcher's then.
  if (ended) return false;
  if (sled === null) return true;
  const request = { vmmId, sled };
  if (commanded) {
    await unregisterVmm(request);
    return true;
  }
  return neverTold(request).then(
    () => true,
    () => false,
  );
}
type BegunUnwind = Awaited<ReturnType<typeof beginUnwind>>;

/**
 * Gives up an attempt of a start whose sled gave no answer, so that its operation can go on with another one, from what a
 * failed start leaves. A guest that was commanded after all is waited for, as ever. `spared`: the operation has succeeded.
 */
export async function giveUpAttempt(input: UnwindInput): Promise<'unwound' | 'spared'> {
  const outcome = await unwindVmm(input, { goesOn: true });
  if (outcome === 'commanded') throw new Error('only a migration is carried forward');
  return outcome;
}

/** How an attempt was ended; `error` is what its operation's caller is answered where it was unwound. */
export interface EndedAttempt {
  readonly outcome: 'carried forward' | 'unwound' | 'spared';
  readonly error: OperationError;
}

/**
 * Ends an attempt whose steps have failed, or that was cut off, so that nobody knows how far it came. A migration whose
 * destination was commanded to migrate in is past the point of no return: it is carried forward, and unwound only when the
 * destination refuses for good. One that is `cutOff` is looked at first.
 */
export async function endAttempt(input: UnwindInput, { cutOff }: { cutOff: boolean }): Promise<EndedAttempt> {
  for (let look = cutOff; ; look = true) {
    const command = look && input.kind === 'migrate' ? await readMigrateInCommand(input) : null;
    if (command !== null) {
      try {
        await migrateIn({ ...input, ...command });
        return { outcome: 'carried forward', error: input.error };
      } catch (failure) {
        return endAttempt({ ...input, refused: true, error: operationError('migrate', failure) }, { cutOff: false });
      }
    }
    const outcome = await unwindVmm(input);
    if (outcome !== 'commanded') return { outcome, error: input.error };
  }
}
