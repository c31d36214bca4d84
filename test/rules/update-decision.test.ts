import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  INTENDED_STATES,
  isGoneVmmState,
  MIGRATION_STATES,
  type MigrationState,
  VMM_STATES,
  type VmmState,
} from '../../model/states.ts';
import {
  decideUpdate,
  type HoldingVmm,
  needsUpdate,
  type UpdateDecision,
  type UpdateSnapshot,
  updateCase,
} from '../../model/update-decision.ts';

const vmm = (id: string, state: VmmState): HoldingVmm => ({
  id,
  state,
  unwinding: state === 'saga_unwound',
  hasReservation: state !== 'saga_unwound',
});
function snapshot(
  active: VmmState | null,
  target?: VmmState,
  source: MigrationState = 'pending',
  side: MigrationState = 'pending',
): UpdateSnapshot {
  return {
    state: active === null ? 'no_vmm' : 'vmm',
    intendedState: 'running',
    deleted: false,
    active: active === null ? null : vmm('a', active),
    target: target === undefined ? null : vmm('t', target),
    migration:
      target === undefined
        ? null
        : { id: 'm', sourceVmmId: 'a', targetVmmId: 't', sourceState: source, targetState: side },
    activeGuestLeft: source === 'completed',
    unlinked: [],
    hasCharge: active !== null && active !== 'saga_unwound',
  };
}

test.each(MIGRATION_STATES.flatMap((source) => MIGRATION_STATES.map((target) => [source, target] as const)))(
  'a VMM that a start put in the place of a migrating one stays, whatever the migration came to: source %s, target %s',
  (source, target) => {
    const before = { ...snapshot('starting', 'saga_unwound', source, target), active: vmm('new', 'starting') };
    const decision = decideUpdate(before);
    expect(updateCase(before)).toBe('not-moved');
    expect(decision.instance).toEqual({ state: 'vmm', activeVmmId: 'new', targetVmmId: null, migrationId: null });
    expect(decision.releaseCharge).toBe(false);
    expect(decision.unregister).toEqual([]);
  },
);

/** The snapshot after a decision was written, as the database would give it. */
function apply(before: UpdateSnapshot, decision: UpdateDecision): UpdateSnapshot {
  const all = [before.active, before.target, ...before.unlinked].filter((one) => one !== null);
  const unique = [...new Map(all.map((one) => [one.id, one])).values()].filter(
    (one) => !decision.retire.includes(one.id),
  );
  const next = decision.instance ?? {
    state: before.state,
    activeVmmId: before.active?.id ?? null,
    targetVmmId: before.target?.id ?? null,
    migrationId: before.migration?.id ?? null,
  };
  const find = (id: string | null) => unique.find((one) => one.id === id) ?? null;
  const left = (id: string) =>
    before.migration?.sourceVmmId === id &&
    (before.migration.sourceState === 'completed' || before.migration.targetState === 'completed');
  return {
    ...before,
    state: next.state,
    intendedState: decision.intendedState ?? before.intendedState,
    active: find(next.activeVmmId),
    target: find(next.targetVmmId),
    migration: next.migrationId === null ? null : before.migration,
    activeGuestLeft:
      before.migration !== null &&
      before.migration.sourceVmmId === next.activeVmmId &&
      before.migration.sourceState === 'completed',
    unlinked: unique
      .filter((one) => one.id !== next.activeVmmId && one.id !== next.targetVmmId)
      .map((one) => ({ ...one, guestLeft: left(one.id) })),
    hasCharge: before.hasCharge && !decision.releaseCharge,
  };
}

const anySnapshot = fc
  .tuple(
    fc.option(fc.constantFrom(...VMM_STATES)),
    fc.option(fc.constantFrom(...VMM_STATES)),
    fc.constantFrom(...MIGRATION_STATES),
    fc.constantFrom(...MIGRATION_STATES),
    fc.constantFrom(...INTENDED_STATES),
    fc.boolean(),
    fc.boolean(),
  )
  .map(([active, target, source, side, intendedState, deleted, held]) => ({
    ...holding(snapshot(active, active === null ? undefined : (target ?? undefined), source, side), held),
    intendedState,
    deleted,
  }));

/** The same, where what was unwound still waits for its sled's answer, or does not. */
function holding(given: UpdateSnapshot, held: boolean): UpdateSnapshot {
  const hold = (one: HoldingVmm | null) =>
    one === null || one.state !== 'saga_unwound' ? one : { ...one, hasReservation: held };
  return { ...given, active: hold(given.active), target: hold(given.target) };
}

/** Every combination of active VMM, target VMM, both sides, intent and deletion. */
function everySnapshot(): UpdateSnapshot[] {
  return VMM_STATES.flatMap((active) =>
    [undefined, ...VMM_STATES].flatMap((target) =>
      MIGRATION_STATES.flatMap((source) =>
        MIGRATION_STATES.flatMap((side) =>
          INTENDED_STATES.flatMap((intendedState) =>
            [false, true].flatMap((deleted) =>
              [false, true].map((held) => ({
                ...holding(snapshot(active, target, source, side), held),
                intendedState,
                deleted,
              })),
            ),
          ),
        ),
      ),
    ),
  );
}

/** Applies decisions until none is needed; each must keep the constraints, and they must come to an end. */
function comesToRest(given: UpdateSnapshot): void {
  let now = given;
  for (let round = 0; round < 4 && needsUpdate(now); round++) {
    const decision = decideUpdate(now);
    const next = decision.instance;
    if (next !== null) {
      expect(next.state === 'vmm').toBe(next.activeVmmId !== null);
      expect(next.targetVmmId !== null).toBe(next.migrationId !== null);
      expect([next.activeVmmId, next.targetVmmId].some((id) => id !== null && decision.retire.includes(id))).toBe(
        false,
      );
    }
    now = apply(now, decision);
  }
  expect(needsUpdate(now), JSON.stringify(given)).toBe(false);
  // Nobody waits for ever: what is gone stays linked only while the other side's answer is out.
  if (now.active !== null && isGoneVmmState(now.active.state)) expect(updateCase(now)).toBe('unknown');
}

describe('the update decision', () => {
  test('1: moved, whatever the source says', () => {
    for (const source of MIGRATION_STATES) {
      const decision = decideUpdate(snapshot('failed', 'running', source, 'completed'));
      expect(decision.instance).toEqual({ state: 'vmm', activeVmmId: 't', targetVmmId: null, migrationId: null });
      expect(decision.activateReservation).toBe('t');
      expect(decision.retire).toEqual(['a']);
    }
  });
  test('1: a source that still lives keeps a tombstoned reservation, and is not unregistered', () => {
    const decision = decideUpdate(snapshot('migrating', 'running', 'in_progress', 'completed'));
    expect(decision.tombstone).toEqual(['a']);
    expect(decision.unregister).toEqual([]);
  });
  test('2: left, not yet arrived: the target is active and the migration stays', () => {
    const decision = decideUpdate(snapshot('destroyed', 'migrating', 'completed', 'in_progress'));
    expect(decision.instance).toEqual({ state: 'vmm', activeVmmId: 't', targetVmmId: 't', migrationId: 'm' });
  });
  test('2: left, and the target fails: the guest is lost', () => {
    const decision = decideUpdate(snapshot('destroyed', 'failed', 'completed', 'failed'));
    expect(decision.instance).toEqual({ state: 'failed', activeVmmId: null, targetVmmId: null, migrationId: null });
    const stopped = decideUpdate({
      ...snapshot('destroyed', 'failed', 'completed', 'failed'),
      intendedState: 'stopped',
    });
    expect(stopped.instance?.state).toBe('no_vmm');
  });
  test('2: left, and the target’s side fails while its VMM lives, or its VMM ends well: the guest is lost all the same', () => {
    const alive = decideUpdate(snapshot('destroyed', 'migrating', 'completed', 'failed'));
    expect(alive.instance).toEqual({ state: 'failed', activeVmmId: null, targetVmmId: null, migrationId: null });
    expect(alive.unregister).toEqual(['t']);
    const ended = decideUpdate(snapshot('stopping', 'destroyed', 'completed', 'in_progress'));
    expect(ended.instance?.state).toBe('failed');
    expect(ended.intendedState).toBeNull();
  });
  test('3: not moved: the instance stays, and a target that lives is unregistered', () => {
    const decision = decideUpdate(snapshot('running', 'migrating', 'failed', 'in_progress'));
    expect(decision.instance).toEqual({ state: 'vmm', activeVmmId: 'a', targetVmmId: null, migrationId: null });
    expect(decision.unregister).toEqual(['t']);
  });
  test('4: a source that died is waited out, whatever it reports of its side, and the target is asked', () => {
    for (const source of ['pending', 'in_progress', 'failed'] as const) {
      const given = snapshot('failed', 'migrating', source, 'in_progress');
      expect(updateCase(given)).toBe('unknown');
      const decision = decideUpdate(given);
      expect(decision.instance).toBeNull();
      expect(decision.ask).toBe('t');
    }
  });
  test.each([
    ['failed', 'running', 'failed'],
    ['failed', 'stopped', 'no_vmm'],
    ['destroyed', 'running', 'no_vmm'],
    ['saga_unwound', 'running', 'no_vmm'],
  ] as const)('5: an active VMM that is %s with intent %s leaves %s', (state, intendedState, expected) => {
    const decision = decideUpdate({ ...snapshot(state), intendedState });
    expect(decision.instance?.state).toBe(expected);
    expect(decision.instance?.activeVmmId).toBeNull();
  });
  test('5: a guest that had left, and whom nobody has, is a failure even if its VMM ended well', () => {
    expect(decideUpdate({ ...snapshot('destroyed'), activeGuestLeft: true }).instance?.state).toBe('failed');
  });
  test('6: an unwound VMM whose sled has not answered keeps its row and its reservation', () => {
    const held = { ...vmm('u', 'saga_unwound'), hasReservation: true, guestLeft: false };
    expect(decideUpdate({ ...snapshot('running'), unlinked: [held] }).retire).toEqual([]);
    expect(decideUpdate({ ...snapshot('running'), unlinked: [{ ...held, hasReservation: false }] }).retire).toEqual([
      'u',
    ]);
  });
  test('6: an unwound VMM is unlinked and retired at once, unless its sled has not answered', () => {
    expect(decideUpdate(snapshot('saga_unwound')).retire).toEqual(['a']);
    expect(decideUpdate(snapshot('running', 'saga_unwound', 'failed', 'failed')).retire).toEqual(['t']);
    const held = { ...vmm('a', 'saga_unwound'), hasReservation: true };
    const decision = decideUpdate({ ...snapshot('saga_unwound'), active: held });
    expect(decision.instance?.activeVmmId).toBeNull();
    expect(decision.retire).toEqual([]);
  });
  test('7: a guest that shut itself down changes the intent, but never a newer one', () => {
    expect(decideUpdate(snapshot('destroyed')).intendedState).toBe('guest_shutdown');
    expect(decideUpdate({ ...snapshot('destroyed'), intendedState: 'stopped' }).intendedState).toBeNull();
  });
  test('a failed instance is never made no_vmm, and a deleted one ends destroyed', () => {
    expect(decideUpdate({ ...snapshot(null), state: 'failed' }).instance).toBeNull();
    expect(decideUpdate({ ...snapshot('saga_unwound'), deleted: true }).instance?.state).toBe('destroyed');
  });

  test('in every combination no decision breaks a constraint, and the records come to rest', () => {
    const all = everySnapshot();
    expect(all).toHaveLength(10 * 11 * 4 * 4 * 4 * 2 * 2);
    for (const given of all) comesToRest(given);
  });
  test('a decision that was applied is not made again', () => {
    fc.assert(fc.property(anySnapshot, comesToRest), { numRuns: 2000 });
  });
});
