/** What spares a report its second statement: an instance that is alone with its VMM needs an update if that is gone. */
import { expect, test } from 'vitest';
import { INTENDED_STATES, isGoneVmmState, VMM_STATES, type VmmState } from '../../model/states.ts';
import { needsUpdate, type UpdateSnapshot } from '../../model/update-decision.ts';

const booleans = [false, true];

/** Every snapshot of an instance that is alone with its active VMM. */
function* alone(state: VmmState): Generator<UpdateSnapshot> {
  for (const intendedState of INTENDED_STATES)
    for (const unwinding of booleans)
      for (const hasReservation of booleans)
        for (const deleted of booleans)
          for (const activeGuestLeft of booleans)
            for (const hasCharge of state === 'saga_unwound' ? booleans : [true])
              yield {
                state: 'vmm',
                intendedState,
                active: { id: 'a', state, unwinding, hasReservation },
                target: null,
                migration: null,
                deleted,
                activeGuestLeft,
                unlinked: [],
                hasCharge,
              };
}

test.each(VMM_STATES.filter((state) => !isGoneVmmState(state)))(
  'alone with a VMM that is %s, an instance needs no update, whatever else holds',
  (state) => {
    for (const snapshot of alone(state)) expect(needsUpdate(snapshot), JSON.stringify(snapshot)).toBe(false);
  },
);

test.each(VMM_STATES.filter(isGoneVmmState))(
  'alone with a VMM that is %s, an instance needs an update, whatever else holds',
  (state) => {
    for (const snapshot of alone(state)) expect(needsUpdate(snapshot), JSON.stringify(snapshot)).toBe(true);
  },
);
