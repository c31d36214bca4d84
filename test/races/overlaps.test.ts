/**
 * Races that overlap: two transactions at once, the first held after each of its statements in turn, the second begun
 * meanwhile. `DUEL='scenario: actor, step, actor, step'` runs one of them only. Of each scenario's pairs every thirty-second is
 * fought here, `npm run races` fights them all.
 */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { startTestDatabase, type TestDatabase } from '../support/database.ts';
import { type Duellist, duel, HeldConnection, stepsOf } from './duel.ts';
import { excludeEachOther } from './explore.ts';
import { SCENARIOS, type Scenario } from './scenarios.ts';

let database: TestDatabase;
let first: HeldConnection;
let second: HeldConnection;
beforeAll(async () => {
  database = await startTestDatabase();
  first = await HeldConnection.open(database.url);
  second = await HeldConnection.open(database.url);
});
afterAll(async () => {
  await Promise.allSettled([first?.close(), second?.close()]);
  await database?.stop();
});

const only = process.env.DUEL;
const oneIn = process.env.RACES === 'all' || only !== undefined ? 1 : 32;
const nameOf = ({ actor, step }: Duellist) => `${actor.name}, ${step}`;

/** Pairs of steps, one for each pair of transactions: variants of a saga share most of theirs. */
async function pairsOf(scenario: Scenario): Promise<[Duellist, Duellist][]> {
  const steps: Duellist[] = [];
  const kinds = new Set<string>();
  for (const actor of scenario.actors) {
    for (const found of await stepsOf(database.db, scenario, actor)) {
      // What a step does may hang on the fault, once the saga unwinds.
      const unwinds = ['begin', 'finish', 'succeed'].includes(found.step);
      const kind = `${unwinds ? actor.name : actor.name.replace(/ \((?!active|target).*/, '')} ${found.step}`;
      if (kinds.has(kind)) continue;
      kinds.add(kind);
      steps.push(found);
    }
  }
  const pairs = steps.flatMap((one) =>
    steps
      .filter((other) => other.actor !== one.actor && !excludeEachOther(one.actor, other.actor))
      .map((other): [Duellist, Duellist] => [one, other]),
  );
  return pairs.filter((_, index) => index % oneIn === 0);
}

const FOUGHT = [
  'stopped',
  'running',
  'migrating',
  'a migration that was told, about to unwind',
  'a start whose task is done again',
  'a migration whose task is done again',
];

test.each(SCENARIOS.filter(({ name }) => FOUGHT.includes(name)).map((scenario) => [scenario.name, scenario] as const))(
  '%s: no two transactions that overlap break an invariant',
  async (_, scenario) => {
    const problems: string[] = [];
    let [fought, waits] = [0, 0];
    for (const pair of await pairsOf(scenario)) {
      const name = `${scenario.name}: ${nameOf(pair[0])}, ${nameOf(pair[1])}`;
      if (only !== undefined && only !== name) continue;
      for (let holdAfter = 1; ; holdAfter++) {
        const result = await duel({ plain: database.db, first, second }, scenario, pair, holdAfter);
        if (result === null || !result.held) break;
        fought += 1;
        if (result.waited) waits += 1;
        if (result.wrongs.length > 0) {
          problems.push(
            [
              `${nameOf(pair[0])}, held after statement ${holdAfter}, while ${nameOf(pair[1])}${result.waited ? ' waits' : ' goes on'}:`,
              ...result.wrongs.map((wrong) => `  ! ${wrong}`),
              `  DUEL='${name}' npx vitest run test/races/overlaps.test.ts`,
            ].join('\n'),
          );
        }
      }
    }
    console.log(`${scenario.name}: ${fought} overlaps, ${waits} with a wait`);
    expect(problems.join('\n\n')).toBe('');
    if (only === undefined) expect(waits).toBeGreaterThan(0);
  },
  900_000,
);
