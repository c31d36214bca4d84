/**
 * The fault matrix, cell by cell. Which part of it runs here: `MOORING_MATRIX=whole` everything; by default every twentieth
 * cell, aslant, so that every step meets a twentieth of the faults and every fault a twentieth of the steps.
 * The deaths of processes (PostgreSQL, the worker) are `npm run matrix`'s, which always runs it whole; the soak has them
 * as well.
 */
import { beforeAll, describe, expect, test } from 'vitest';
import { SAGA_STEPS, type SagaSteps, type SagaType } from '../../model/saga-steps.ts';
import { COLUMNS } from './columns.ts';
import { type MatrixResult, runMatrix } from './run-matrix.ts';

const WHOLE_MS = 30 * 60_000;
const whole = process.env.MOORING_MATRIX === 'whole';
const columns = COLUMNS.filter(({ disaster }) => whole || disaster === undefined);

const stepNames = Object.entries(SAGA_STEPS).flatMap(([workflow, saga]: [string, SagaSteps]) =>
  [...saga.steps, ...saga.compensations].map(({ activity }) => `${workflow}.${activity}`),
);
const runsHere = (step: string, head: string) =>
  whole || (stepNames.indexOf(step) + columns.findIndex((column) => column.head === head)) % 20 === 0;

let result: MatrixResult;
beforeAll(async () => {
  result = await runMatrix({
    columns,
    cells: ({ scenario, activity }, { head }) => runsHere(`${scenario.workflow}.${activity}`, head),
  });
}, WHOLE_MS);

const workflows = Object.entries(SAGA_STEPS) as [SagaType, SagaSteps][];

test('every step of every workflow is reached by a scenario that does what it says', () => {
  expect(result.problems.join('\n')).toBe('');
  expect(result.rows.map(({ scenario, activity }) => `${scenario.workflow}.${activity}`)).toEqual(
    workflows.flatMap(([workflow, { steps, compensations }]) =>
      [...steps, ...compensations].map(({ activity }) => `${workflow}.${activity}`),
    ),
  );
});

describe.each(workflows)('%s', (workflow, { steps, compensations }) => {
  describe.each([...steps, ...compensations].map(({ activity }) => activity))('%s', (activity) => {
    const here = columns.filter(({ head }) => runsHere(`${workflow}.${activity}`, head));
    test.each(here.map(({ head, title }) => [title, head]))('%s', (_, head) => {
      const cell = result.cells.find(
        ({ row, column }) => row.scenario.workflow === workflow && row.activity === activity && column.head === head,
      );
      expect(cell?.verdict.kind === 'broken' ? cell.verdict.reason : cell?.verdict.kind).toMatch(
        /^(holds|not applicable)$/,
      );
    });
  });
});
