/**
 * The heart of the instance-update saga: from a snapshot of what sled agents and sagas wrote, what must change so that
 * the instance's own record agrees with it. It decides from stored state alone, never from "what just changed", so that
 * a lost report, signal or process costs a moment and never the truth.
 *
 * The cases carry the numbers of section 6 of docs/design.md. Who owns what: a sled agent (or the control plane's verdict)
 * writes VMM states and migration sides; start and migrate set ids; only what is decided here clears them.
 */
import type { InstanceFacts, VmmFacts } from './snapshot.ts';
import { type InstanceState, type IntendedState, isGoneVmmState } from './states.ts';

/** A VMM of the instance, with what it still holds. */
export interface HoldingVmm extends VmmFacts {
  readonly hasReservation: boolean;
}

/** A VMM of the instance that the instance does not name. */
export interface UnlinkedVmm extends HoldingVmm {
  /** It is the source of a migration that its guest completed: it ends by itself. */
  readonly guestLeft: boolean;
}

export interface UpdateSnapshot extends InstanceFacts {
  readonly active: HoldingVmm | null;
  readonly target: HoldingVmm | null;
  readonly deleted: boolean;
  /**
   * The source side of some migration out of the active VMM is `completed`: its guest left it, even if that migration
   * is linked no more.
   */
  readonly activeGuestLeft: boolean;
  /** VMM rows of the instance that are neither active nor target and not yet soft-deleted. */
  readonly unlinked: readonly UnlinkedVmm[];
  readonly hasCharge: boolean;
}

/** What one transaction writes. Absent means "leave as it is". */
export interface UpdateDecision {
  /** New ids and state of the instance, when any of them changes; its generation rises by one. */
  readonly instance: {
    readonly state: InstanceState;
    readonly activeVmmId: string | null;
    readonly targetVmmId: string | null;
    readonly migrationId: string | null;
  } | null;
  readonly intendedState: IntendedState | null;
  /** The VMM whose reservation becomes `active`. */
  readonly activateReservation: string | null;
  /** VMMs that still live, whose reservation becomes `tombstoned`. */
  readonly tombstone: readonly string[];
  /** VMMs that are gone: their reservation is released and their row soft-deleted. */
  readonly retire: readonly string[];
  readonly releaseCharge: boolean;
  /** VMMs that live, have no guest to lose, and nobody names: their sled must end them. */
  readonly unregister: readonly string[];
  /** Someone must ask this VMM's sled for its word: nothing else can settle the instance (case 4). */
  readonly ask: string | null;
  /** The guest runs somewhere although the user asked for stop: carry the stop there (case 7). */
  readonly carryStop: boolean;
}

/** Which rule settled the instance's ids; for logs and the Web UI. */
export type UpdateCase = 'moved' | 'left' | 'lost' | 'not-moved' | 'unknown' | 'in-flight' | 'unlinked' | 'settled';

interface Placement {
  readonly case: UpdateCase;
  /** The VMM that should now be active. */
  readonly active: VmmFacts | null;
  readonly keepMigration: boolean;
  /** The guest left the active VMM and nobody has it. */
  readonly guestLost: boolean;
}

/** Cases 1 to 4: where the guest is. */
function place(snapshot: UpdateSnapshot): Placement {
  const { active, target, migration } = snapshot;
  if (migration === null || target === null) {
    return { case: 'settled', active, keepMigration: false, guestLost: false };
  }
  // A start has replaced the VMM that the migration was about: whatever became of it, the new one stays.
  if (active !== null && active.id !== migration.sourceVmmId && active.id !== migration.targetVmmId) {
    return { case: 'not-moved', active, keepMigration: false, guestLost: false };
  }
  const targetEnded = migration.targetState === 'failed' || isGoneVmmState(target.state);
  if (migration.targetState === 'completed') {
    return { case: 'moved', active: target, keepMigration: false, guestLost: false };
  }
  if (migration.sourceState === 'completed') {
    if (targetEnded) return { case: 'lost', active: null, keepMigration: false, guestLost: true };
    // A target that its saga is unwinding has no guest to give a home: its end decides.
    if (target.unwinding) return { case: 'in-flight', active, keepMigration: true, guestLost: false };
    return { case: 'left', active: target, keepMigration: true, guestLost: false };
  }
  const activeGone = active === null || isGoneVmmState(active.state);
  if (targetEnded || (migration.sourceState === 'failed' && !activeGone)) {
    return { case: 'not-moved', active, keepMigration: false, guestLost: false };
  }
  if (activeGone) return { case: 'unknown', active, keepMigration: true, guestLost: false };
  return { case: 'in-flight', active, keepMigration: true, guestLost: false };
}

/** Names the rule that applies to a snapshot. */
export function updateCase(snapshot: UpdateSnapshot): UpdateCase {
  const placement = place(snapshot);
  if (placement.case !== 'settled') return placement.case;
  return placement.active !== null && isGoneVmmState(placement.active.state) ? 'unlinked' : 'settled';
}

/** Decides what one update transaction writes. Pure; a second call on the result finds nothing more of the same. */
export function decideUpdate(snapshot: UpdateSnapshot): UpdateDecision {
  const placement = place(snapshot);
  const unknown = placement.case === 'unknown';
  const incarnated = snapshot.state === 'vmm';

  const activeGone = placement.active === null || isGoneVmmState(placement.active.state);
  const unlink = incarnated && activeGone && !unknown;
  const guestLost =
    placement.guestLost ||
    (unlink && placement.active !== null && placement.active.id === snapshot.active?.id && snapshot.activeGuestLeft);

  const next = incarnated ? nextInstance(snapshot, placement, unlink, guestLost) : null;
  const linkedNext = new Set(
    next === null
      ? [snapshot.active?.id, snapshot.target?.id]
      : [next.activeVmmId ?? undefined, next.targetVmmId ?? undefined],
  );

  const named: UnlinkedVmm[] = [snapshot.active, snapshot.target]
    .filter((vmm): vmm is HoldingVmm => vmm !== null)
    .filter((vmm, index, all) => all.findIndex((other) => other.id === vmm.id) === index)
    .map((vmm) => ({
      ...vmm,
      guestLeft:
        (vmm.id === snapshot.active?.id && snapshot.activeGuestLeft) ||
        (vmm.id === snapshot.migration?.sourceVmmId &&
          (snapshot.migration.sourceState === 'completed' || placement.case === 'moved')),
    }));
  const newlyUnlinked = named.filter((vmm) => !linkedNext.has(vmm.id));
  const unlinked = [...snapshot.unlinked, ...newlyUnlinked];

  const changed =
    next !== null &&
    (next.state !== snapshot.state ||
      next.activeVmmId !== (snapshot.active?.id ?? null) ||
      next.targetVmmId !== (snapshot.target?.id ?? null) ||
      next.migrationId !== (snapshot.migration?.id ?? null));
  const moved = changed && next.activeVmmId !== null && next.activeVmmId !== snapshot.active?.id;

  return {
    instance: changed ? next : null,
    intendedState: unlink && !guestLost && shutItselfDown(snapshot, placement) ? 'guest_shutdown' : null,
    activateReservation: moved ? next.activeVmmId : null,
    tombstone: newlyUnlinked.filter((vmm) => !isGoneVmmState(vmm.state)).map((vmm) => vmm.id),
    retire: unlinked.filter(isRetirable).map((vmm) => vmm.id),
    releaseCharge: snapshot.hasCharge && (next === null ? snapshot.state !== 'vmm' : next.state !== 'vmm'),
    unregister: unlinked
      .filter((vmm) => !isGoneVmmState(vmm.state) && !vmm.unwinding && !vmm.guestLeft)
      .map((v) => v.id),
    ask: unknown ? (snapshot.target?.id ?? null) : null,
    carryStop: incarnated && !unlink && snapshot.intendedState === 'stopped' && mayRun(placement.active),
  };
}

/**
 * Case 6. A `saga_unwound` VMM that still holds a reservation waits for its sled's answer: only that answer (or the
 * sled's end) releases it.
 */
function isRetirable(vmm: UnlinkedVmm): boolean {
  if (vmm.state === 'saga_unwound') return !vmm.hasReservation;
  return isGoneVmmState(vmm.state);
}

/** The VMM has a guest, or may get one, and is not on its way down. */
function mayRun(vmm: VmmFacts | null): boolean {
  return vmm !== null && !isGoneVmmState(vmm.state) && !['stopping', 'stopped'].includes(vmm.state);
}

/** Case 5, and the ids that cases 1 to 3 leave. */
function nextInstance(snapshot: UpdateSnapshot, placement: Placement, unlink: boolean, guestLost: boolean) {
  if (unlink) {
    const failed = snapshot.intendedState !== 'stopped' && (guestLost || placement.active?.state === 'failed');
    const state: InstanceState = snapshot.deleted ? 'destroyed' : failed ? 'failed' : 'no_vmm';
    return { state, activeVmmId: null, targetVmmId: null, migrationId: null };
  }
  return {
    state: snapshot.state,
    activeVmmId: placement.active?.id ?? null,
    targetVmmId: placement.keepMigration ? (snapshot.target?.id ?? null) : null,
    migrationId: placement.keepMigration ? (snapshot.migration?.id ?? null) : null,
  };
}

/** Case 7: the guest powered itself off where it was, while the user still wanted it to run. */
function shutItselfDown(snapshot: UpdateSnapshot, placement: Placement): boolean {
  return placement.active?.state === 'destroyed' && snapshot.intendedState === 'running' && !snapshot.deleted;
}

/** Whether a decision changes anything in the database. */
export function writesAnything(decision: UpdateDecision): boolean {
  return (
    decision.instance !== null ||
    decision.intendedState !== null ||
    decision.activateReservation !== null ||
    decision.tombstone.length > 0 ||
    decision.retire.length > 0 ||
    decision.releaseCharge
  );
}

/**
 * Whether an update would write anything. The API and the sagas ask this, of stored state, before they signal; the
 * scan also looks for what must only be done on a sled (see {@link needsAction}).
 */
export function needsUpdate(snapshot: UpdateSnapshot): boolean {
  return writesAnything(decideUpdate(snapshot));
}

/** Whether there is anything for an update to do, in the database or by way of a sled. */
export function needsAction(snapshot: UpdateSnapshot): boolean {
  const decision = decideUpdate(snapshot);
  return writesAnything(decision) || decision.unregister.length > 0 || decision.ask !== null || decision.carryStop;
}
