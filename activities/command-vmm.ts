/** Commanding a sled to run a VMM, or to migrate one in: the point of no return of a start and of a migration. */
import { readVmmPlace, type VmmPlace } from '../db/queries/read-vmm-place.ts';
import { recordSucceededOperation } from '../db/transactions/succeed-operation.ts';
import type { Attempt } from '../model/attempt.ts';
import { isGoneVmmState } from '../model/states.ts';
import type { VmmCommand } from '../wire/sled-protocol.ts';
import { isTriedAgain } from './attempts.ts';
import type { SagaContext } from './context.ts';
import { stepFailure } from './failures.ts';
import { applyAnswer, SLED_CALL_MS, sledOf } from './sled-calls.ts';
import type { SledAddress } from './sled-client.ts';

/** An attempt whose VMM's sled is to be commanded. */
export interface CommandedAttempt extends Attempt {
  readonly sled: SledAddress;
  /** When registering the VMM looked whether it is still wanted, in milliseconds since 1970. */
  readonly lookedAtMs?: number;
}

/**
 * Throws, as final, what makes it pointless to go on registering or commanding a VMM. Returns where it is by now: its sled may
 * have another address than when it was claimed.
 */
export async function checkStillWanted(
  { db }: Pick<SagaContext, 'db'>,
  vmmId: string,
  { readIntent }: { readIntent: boolean },
): Promise<VmmPlace | null> {
  const place = await readVmmPlace(db, vmmId);
  if (place === null) return null;
  if (readIntent && place.intendedState !== 'running') throw stopRequested();
  if (place.givenUp || place.sledLeaves) {
    const what =
      place.sledPolicy === 'expunged' || place.sledLeaves ? 'expunged' : 'declared dead or stated to be powered off';
    throw stepFailure('SledExpunged', `sled "${place.sledName}" was ${what}`);
  }
  if (place.unwinding) throw vmmEnded(place.sledName ?? 'unknown');
  if (isGoneVmmState(place.state))
    throw stepFailure('VmmLost', `the VMM on sled "${place.sledName}" is ${place.state}`);
  return place;
}

/** The sled of a VMM, at its address by now; `known` where that was not read. */
export function sledNow(place: VmmPlace | null, known: SledAddress): SledAddress {
  return (place === null ? null : sledOf(place)) ?? known;
}

/** How long what registering the VMM has found is good for, in milliseconds: no longer than a step within a workflow task may take. */
const LOOK_IS_GOOD_MS = 2_000;

/** The failure of an operation whose VMM was ended by another workflow, or by another run of this one. */
export function vmmEnded(sledName: string) {
  return stepFailure('VmmLost', `the VMM on sled "${sledName}" was ended meanwhile`);
}

/** The failure of a start whose user asked for stop meanwhile. */
export function stopRequested() {
  return stepFailure('StopRequested', 'the user asked for stop meanwhile');
}

/**
 * Commands a VMM's sled, and records the operation's success with the sled's answer. `commandOf` makes the command, of where
 * the VMM is by now where that was looked at. `whenAccepted` is done beside that.
 * `readIntent`: a stop meanwhile ends it before it is tried again.
 */
export async function commandVmm(
  context: Pick<SagaContext, 'db' | 'sleds' | 'workflows'>,
  attempt: CommandedAttempt,
  commandOf: (place: VmmPlace | null) => VmmCommand,
  { readIntent, whenAccepted }: { readIntent: boolean; whenAccepted?: () => Promise<void> },
): Promise<void> {
  const looks = isTriedAgain() || Date.now() - (attempt.lookedAtMs ?? 0) > LOOK_IS_GOOD_MS;
  const place = looks ? await checkStillWanted(context, attempt.vmmId, { readIntent }) : null;
  const sled = sledNow(place, attempt.sled);
  const { updated_runtime } = await context.sleds.setState(sled, attempt.vmmId, commandOf(place), SLED_CALL_MS);
  const [applied] = await Promise.all([
    applyAnswer(context, attempt.vmmId, updated_runtime, { succeed: attempt }),
    whenAccepted?.(),
  ]);
  // An unwind of it is under way, in a workflow task that was done again or by an operator's doing: it is not a success.
  if (applied?.verdict === 'unwound') throw vmmEnded(attempt.sled.name);
  if (applied === null && !(await recordSucceededOperation(context.db, attempt))) throw vmmEnded(attempt.sled.name);
}
