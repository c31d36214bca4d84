/**
 * docs/deploys.md, done under load: an installation of what was released goes over to the working tree, with the changes that a
 * next version may bring, and back again. No call fails, no process ends, everything replays, and all comes to rest.
 */
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { fetchHistories, type NamedHistory, replay } from '../../worker/replay.ts';
import { ROOT } from '../support/tree-copy.ts';
import { type Build, buildRelease, buildWorkingTree, hasHistory, RELEASES } from './builds.ts';
import { Load } from './load.ts';
import { MixedSystem } from './mixed-system.ts';

const SLEDS = 3;
const LAST = Object.keys(RELEASES).at(-1) ?? '';
/** `npm run upgrades` tries every release, also to the working tree as it is, and at length; the suite what is hardest, briefly. */
const ALL = process.env.UPGRADES === 'all';
const CALLERS = ALL ? 3 : 1;
const WAYS = (ALL ? Object.keys(RELEASES) : [LAST]).flatMap((release) =>
  (ALL ? [false, true] : [true]).map((planted) => ({ release, planted })),
);

const there = await hasHistory();
if (!there) console.warn(`SKIPPED: upgrades from ${LAST}: this copy is without the history that has its commit`);

let folder: string;
beforeAll(async () => {
  // In the working tree's own folder for such things: what is linked from there finds its packages.
  await mkdir(join(ROOT, '.mooring'), { recursive: true });
  folder = await mkdtemp(join(ROOT, '.mooring', 'upgrade-'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

async function histories(system: MixedSystem): Promise<NamedHistory[]> {
  const found: NamedHistory[] = [];
  for await (const history of fetchHistories(system.temporal, '')) found.push(history);
  return found;
}

interface HistoryEvent {
  readonly workflowTaskCompletedEventAttributes?: { deploymentVersion?: { buildId?: string } | null } | null;
  readonly workflowTaskFailedEventAttributes?: { failure?: { message?: string | null } | null } | null;
}
const eventsOf = ({ history }: NamedHistory) => (history as { events: HistoryEvent[] }).events;

/** Whose builds have done any step of a history. */
function buildsIn(history: NamedHistory): string[] {
  const all = eventsOf(history).map(
    (event) => event.workflowTaskCompletedEventAttributes?.deploymentVersion?.buildId ?? null,
  );
  return [...new Set(all.filter((id) => id !== null))];
}

async function problemsOf(build: Build, all: readonly NamedHistory[]): Promise<string[]> {
  const problems: string[] = [];
  async function* each() {
    yield* all;
  }
  for await (const { name, problem } of replay(build.bundle, each()))
    if (problem !== null) problems.push(`${name} does not replay on ${build.id}: ${problem}`);
  return problems;
}

test.runIf(there).each(WAYS)(
  'from $release to the next version and back, under load (with planted changes: $planted)',
  async ({ release, planted }) => {
    const [old, next] = await Promise.all([
      buildRelease(release, join(folder, `${release}-${planted}`)),
      buildWorkingTree('next', join(folder, `next-${release}-${planted}`), { planted }),
    ]);
    const system = await MixedSystem.start();
    try {
      await goOverAndBack(system, old, next);
    } finally {
      await system.stop();
    }
  },
);

async function goOverAndBack(system: MixedSystem, old: Build, next: Build): Promise<void> {
  await system.run(old, 'migrate');
  await system.addWorker(old);
  await system.addApi(old);
  for (let sled = 0; sled < SLEDS; sled++) await system.addSled(old);
  await system.call(old.Client, (client) => client.createProject({ name: 'default', description: '' }));
  const load = new Load(system, [old, next], CALLERS);
  /** Goes on when the callers have come round; in the suite only where a version has just taken over. */
  const goOn = async (step: string, takenOver = false) => {
    if (ALL || takenOver) await load.untilRound();
    expect([step, load.failures, system.ended()]).toEqual([step, [], []]);
  };
  await goOn('the old version');

  await system.run(next, 'migrate');
  await goOn('the old version on the new schema');
  await system.addWorker(next);
  await system.addApi(next);
  await goOn('both versions, the old one current');
  await system.run(next, 'deployment', 'promote', next.id);
  await goOn('both versions, the new one current', true);
  for (const sled of system.sleds) await system.changeAgent(sled, next);
  await goOn('new agents', true);
  await system.endApi(old);
  await system.endWorker(old);
  await goOn('the new version');
  expect(await problemsOf(next, await histories(system))).toEqual([]);

  await system.addWorker(old);
  await system.addApi(old);
  await goOn('both versions again');
  await system.run(next, 'deployment', 'promote', old.id, '--keep-running');
  await goOn('the old version is current again, on the new schema and with new agents', true);
  await system.endApi(next);
  await system.endWorker(next);
  for (const sled of system.sleds) await system.changeAgent(sled, old);
  await goOn('old agents again', true);

  await load.stop();
  expect([load.failures, system.ended()]).toEqual([[], []]);
  expect(load.calls).toBeGreaterThan(0);
  expect(await system.run(old, 'doctor', '--at-rest')).toMatch(/nothing is wrong/);
  const all = await histories(system);
  const failed = all.flatMap((history) =>
    eventsOf(history)
      .map((event) => event.workflowTaskFailedEventAttributes?.failure?.message ?? null)
      // A signal that came as the workflow was closing: the server has it closed again, as it should.
      .filter((message) => message !== null && message !== 'UnhandledCommand')
      .map((message) => `${history.name} (${buildsIn(history).join(', ')}): ${message}`),
  );
  expect(failed).toEqual([]);
  expect(await problemsOf(next, all)).toEqual([]);
  const byOld = all.filter((history) => buildsIn(history).every((id) => id === old.id));
  expect(byOld.length).toBeGreaterThan(0);
  expect(await problemsOf(old, byOld)).toEqual([]);
}
