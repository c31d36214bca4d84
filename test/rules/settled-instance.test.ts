/** What spares a report its second statement: an instance that is alone with a VMM that is not gone needs no update. */
import { expect, test } from 'vitest';
import { INTENDED_STATES, isGoneVmmState, VMM_STATES } from '../../model/states.ts';
import { needsUpdate } from '../../model/update-decision.ts';

const booleans = [false, true];

test.each(VMM_STATES.filter((state) => !isGoneVmmState(state)))(
  'alone with a VMM that is %s, an instance needs no update, whatever else holds',
  (state) => {
    for (const intendedState of INTENDED_STATES)
      for (const unwinding of booleans)
        for (const deleted of booleans)
          for (const activeGuestLeft of booleans) {
            const snapshot = {
              state: 'vmm' as const,
              intendedState,
              active: { id: 'a', state, unwinding, hasReservation: true },
              target: null,
              migration: null,
              deleted,
              activeGuestLeft,
              unlinked: [],
              hasCharge: true,
            };
            expect(needsUpdate(snapshot), JSON.stringify(snapshot)).toBe(false);
          }
  },
);

test.each(VMM_STATES.filter(isGoneVmmState))('with a VMM that is %s it does', (state) => {
  expect(
    needsUpdate({
      state: 'vmm',
      intendedState: 'running',
      active: { id: 'a', state, unwinding: state === 'saga_unwound', hasReservation: true },
      target: null,
      migration: null,
      deleted: false,
      activeGuestLeft: false,
      unlinked: [],
      hasCharge: true,
    }),
  ).toBe(true);
});
