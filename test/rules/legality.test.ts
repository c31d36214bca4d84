import { describe, expect, test } from 'vitest';
import {
  migrateVerdict,
  OPERATIONS,
  refusalMessage,
  requireLegal,
  type Verdict,
  verdict,
} from '../../model/legality.ts';
import { Refusal } from '../../model/refusal.ts';
import { EXTERNAL_STATES, type ExternalState } from '../../model/states.ts';

/** The table of section 5 of docs/design.md, as it is written there. */
const TABLE: readonly (readonly [ExternalState, ...string[]])[] = [
  ['creating', '409', '409', '409', '409', '409'],
  ['stopped', 'does', 'no-op', '400', '400', 'does'],
  ['failed', 'does', 'does', '400', '400', 'does'],
  ['starting', 'no-op', 'does', '409', '400', '400'],
  ['running', 'no-op', 'does', 'does', 'does', '400'],
  ['rebooting', 'no-op', 'does', 'no-op', '409', '400'],
  ['migrating', 'no-op', 'does', '409', '409', '400'],
  ['stopping', '409', 'no-op', '409', '400', '400'],
];
const WRITTEN: Readonly<Record<Verdict, string>> = { act: 'does', 'no-op': 'no-op', invalid: '400', conflict: '409' };

/** What {@link requireLegal} comes to, in the table's words: the status of its refusal, or its verdict. */
function requiredVerdict(operation: Parameters<typeof requireLegal>[0], state: ExternalState): string {
  try {
    return WRITTEN[requireLegal(operation, 'web', state)];
  } catch (error) {
    expect(error).toBeInstanceOf(Refusal);
    return String((error as Refusal).status);
  }
}

describe('which operation is legal in which state', () => {
  test('the table has every state', () =>
    expect(TABLE.map(([state]) => state).sort()).toEqual([...EXTERNAL_STATES].sort()));
  for (const [state, ...cells] of TABLE) {
    OPERATIONS.forEach((operation, column) => {
      test(`${operation} while ${state}: ${cells[column]}`, () => {
        expect(WRITTEN[verdict(state, operation)]).toBe(cells[column]);
        if (cells[column]?.startsWith('4'))
          expect(refusalMessage(operation, 'web', state)).toMatch(/"web" while it is \w+: .+/);
        if (operation !== 'migrate') expect(requiredVerdict(operation, state)).toBe(cells[column]);
      });
    });
  }
  test('a migration to the destination on its way is a no-op, to another one a conflict', () => {
    expect(migrateVerdict('migrating', 's1', 's1')).toBe('no-op');
    expect(migrateVerdict('migrating', 's2', 's1')).toBe('conflict');
  });
});
