import { describe, expect, test } from 'vitest';
import { deriveExternalState, isLiveMigration } from '../../model/external-state.ts';
import type { InstanceFacts, MigrationFacts, VmmFacts } from '../../model/snapshot.ts';
import { type ExternalState, isGoneVmmState, MIGRATION_STATES, VMM_STATES, type VmmState } from '../../model/states.ts';

const vmm = (id: string, state: VmmState, unwinding = state === 'saga_unwound'): VmmFacts => ({ id, state, unwinding });
const facts = (given: Partial<InstanceFacts>): InstanceFacts => ({
  state: 'vmm',
  intendedState: 'running',
  active: null,
  target: null,
  migration: null,
  ...given,
});
const migration = (
  sourceState: MigrationFacts['sourceState'],
  targetState: MigrationFacts['targetState'],
): MigrationFacts => ({
  id: 'm',
  sourceVmmId: 'a',
  targetVmmId: 't',
  sourceState,
  targetState,
});

/** The table of section 4 of docs/design.md, without a live migration. */
const EXTERNAL_STATES: Readonly<Record<VmmState, ExternalState>> = {
  creating: 'starting',
  starting: 'starting',
  running: 'running',
  rebooting: 'rebooting',
  migrating: 'migrating',
  stopping: 'stopping',
  stopped: 'stopping',
  destroyed: 'stopping',
  failed: 'stopping',
  saga_unwound: 'stopped',
};

describe('what an instance shows', () => {
  test.each([
    ['creating', 'creating'],
    ['no_vmm', 'stopped'],
    ['failed', 'failed'],
  ] as const)('without a VMM, %s shows %s', (state, externalState) => {
    expect(deriveExternalState(facts({ state }))).toBe(externalState);
  });

  test.each(Object.entries(EXTERNAL_STATES) as [VmmState, ExternalState][])(
    'an active VMM that is %s shows %s',
    (state, externalState) => {
      expect(deriveExternalState(facts({ active: vmm('a', state) }))).toBe(externalState);
    },
  );

  test('every combination of active VMM, target VMM and both sides follows the table', () => {
    let seen = 0;
    for (const active of VMM_STATES)
      for (const target of VMM_STATES)
        for (const unwinding of [false, true])
          for (const source of MIGRATION_STATES)
            for (const side of MIGRATION_STATES) {
              const given = facts({
                active: vmm('a', active),
                target: vmm('t', target, unwinding || target === 'saga_unwound'),
                migration: migration(source, side),
              });
              const sideFailed = source === 'failed' || side === 'failed';
              const live =
                !isGoneVmmState(target) &&
                !unwinding &&
                (!sideFailed || side === 'completed' || (isGoneVmmState(active) && side !== 'failed'));
              const expected = active === 'saga_unwound' ? 'stopped' : live ? 'migrating' : EXTERNAL_STATES[active];
              const cell = `active ${active}, target ${target}${unwinding ? ' (unwinding)' : ''}, source ${source}, target side ${side}`;
              expect(deriveExternalState(given), cell).toBe(expected);
              expect(isLiveMigration(given), cell).toBe(live);
              seen += 1;
            }
    expect(seen).toBe(10 * 10 * 2 * 16);
  });
});
