/**
 * Races in order: every order of the transactions of two or three actors on one instance, with the doctor after every
 * step. `RACE='scenario: actor > actor > …'` plays one order only.
 */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { startTestDatabase, type TestDatabase } from '../support/database.ts';
import type { Actor } from './actors.ts';
import { explore, describe as inWords, Playground, replay, shrink } from './explore.ts';
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

async function provePeaceful(scenario: Scenario, actors: readonly Actor[]) {
  const explored = await explore(playground, scenario, actors);
  if (explored.violation !== null) {
    throw new Error(inWords(await shrink(playground, explored.violation)));
  }
  return explored;
}

test.runIf(only !== undefined)(`only this race: ${only}`, async () => {
  const [name = '', order = ''] = (only ?? '').split(': ');
  const scenario = SCENARIOS.find((each) => each.name === name);
  if (scenario === undefined)
    throw new Error(`there is no scenario "${name}": ${SCENARIOS.map((each) => each.name).join('; ')}`);
  const schedule = order.split(' > ');
  const actors = scenario.actors.filter((actor) => schedule.includes(actor.name));
  const violation = await replay(playground, scenario, actors, schedule);
  expect(violation === null ? null : inWords(violation)).toBeNull();
});

test.skipIf(only !== undefined).each(SCENARIOS.map((scenario) => [scenario.name, scenario] as const))(
  '%s: no order of the steps of any two actors breaks an invariant',
  async (_, scenario) => {
    const problems: string[] = [];
    let [orders, steps] = [0, 0];
    for (const [index, first] of scenario.actors.entries()) {
      for (const second of scenario.actors.slice(index + 1)) {
        if (sameAttempt(first, second)) continue;
        await provePeaceful(scenario, [first, second]).then(
          (explored) => {
            orders += explored.orders;
            steps += explored.steps;
          },
          (error: Error) => problems.push(error.message),
        );
      }
    }
    console.log(`${scenario.name}: ${orders} orders, ${steps} steps`);
    expect(problems.join('\n\n')).toBe('');
    expect(orders).toBeGreaterThan(10);
  },
  600_000,
);

/** Two variants of one attempt don't race each other. */
function sameAttempt(a: Actor, b: Actor): boolean {
  const root = (actor: Actor) => (actor.name.startsWith('hand-over') ? 'hand-over' : actor.name.replace(/ \(.*/, ''));
  return root(a) === root(b) && !a.name.startsWith('watcher');
}
