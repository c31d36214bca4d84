/**
 * Races in order: every order of the transactions of two or three actors on one instance, with the doctor after every
 * step. `RACE='scenario: actor > actor > …'` plays one order only. Every third scenario is explored here, and those in which
 * a run of a saga is beside another one of the same attempt; `npm run races` (`RACES=all`) explores all of them, the latter
 * with a third actor.
 */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { startTestDatabase, type TestDatabase } from '../support/database.ts';
import { describeViolation, explore, Playground, replay, shrink } from './explore.ts';
import { SCENARIOS, type Scenario } from './scenarios.ts';

let database: TestDatabase;
let playground: Playground;
beforeAll(async () => {
  database = await startTestDatabase();
  playground = await Playground.open(database.url);
});
afterAll(async () => {
  await playground?.close();
  await database?.stop();
});

const only = process.env.RACE;

async function provePeaceful(scenario: Scenario, options: Parameters<typeof explore>[2]) {
  const explored = await explore(playground, scenario, options);
  if (explored.violation !== null) throw new Error(describeViolation(await shrink(playground, explored.violation)));
  console.log(
    `${scenario.name}: ${explored.orders} orders of ${options.atOnce} actors, ${explored.steps} steps${explored.complete ? '' : ', not all of them'}`,
  );
  return explored;
}

test.runIf(only !== undefined)(`only this race: ${only}`, async () => {
  const [name = '', order = ''] = (only ?? '').split(': ');
  const scenario = SCENARIOS.find((each) => each.name === name);
  if (scenario === undefined)
    throw new Error(`there is no scenario "${name}": ${SCENARIOS.map((each) => each.name).join('; ')}`);
  const violation = await replay(playground, scenario, order.split(' > '));
  expect(violation === null ? null : describeViolation(violation)).toBeNull();
});

const explored = SCENARIOS.filter(
  (scenario, index) => process.env.RACES === 'all' || index % 3 === 0 || scenario.doneAgain,
);

test.skipIf(only !== undefined).each(explored.map((scenario) => [scenario.name, scenario] as const))(
  '%s: no order of the steps of any two actors breaks an invariant',
  async (_, scenario) => {
    const atOnce = scenario.doneAgain && process.env.RACES !== 'all' ? 1 : 2;
    const { orders, complete } = await provePeaceful(scenario, { atOnce });
    expect(complete).toBe(true);
    expect(orders).toBeGreaterThan(20);
  },
  1_800_000,
);
