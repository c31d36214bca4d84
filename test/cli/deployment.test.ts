/** `mooring deployment`, and workers that are to have no versions. */
import { pino } from 'pino';
import { afterAll, afterEach, beforeAll, expect, test, vi } from 'vitest';
import { waitUntil } from '../../platform/host/child-process.ts';
import { readBuilds } from '../../temporal/deployment.ts';
import { type RunningWorker, startWorker } from '../../worker/worker.ts';
import { runCommand } from '../support/command.ts';
import { type Harness, startHarness } from '../support/harness.ts';

const workers: RunningWorker[] = [];
let harness: Harness;
beforeAll(async () => {
  harness = await startHarness({ reconcileEveryMs: 0 });
});
afterEach(() => {
  vi.unstubAllEnvs();
});
afterAll(async () => {
  await Promise.all(workers.map((worker) => worker.stop()));
  await harness?.close();
});

async function startBuild(buildId: string): Promise<RunningWorker> {
  const { databaseUrl, temporal } = harness.stack;
  const log = pino({ level: 'silent' });
  const worker = await startWorker({ databaseUrl, temporal, log, buildId, reconcileEveryMs: 0 });
  workers.push(worker);
  return worker;
}

const deployment = (...args: string[]) =>
  runCommand(['deployment', ...args], { env: { TEMPORAL_ADDRESS: harness.stack.temporalAddress } });

test('with MOORING_WORKER_VERSIONING=off a worker has no build, and works beside others that have none', async () => {
  vi.stubEnv('MOORING_WORKER_VERSIONING', 'off');
  const worker = await startBuild('never-seen');
  expect((await deployment('list')).stdout).toContain('no versioned worker has run here yet');
  expect(JSON.parse((await deployment('list', '--json')).stdout)).toEqual({ items: [] });
  // Either worker may do each step: neither refuses what the other began.
  for (let count = 0; count < 3; count += 1) await harness.running();
  await worker.stop();
  await harness.running();
  expect(await readBuilds(harness.temporal, harness.installation)).toEqual([]);
});

test('builds are listed with what to do about their workers; promoted, one is current and the other drains', async () => {
  await startBuild('one');
  await startBuild('two');
  await waitUntil(async () => (await readBuilds(harness.temporal, harness.installation)).length === 2, 'the second build never came up');
  const before = (await deployment('list')).stdout;
  expect(before).toMatch(/BUILD +STATUS +CREATED +ITS WORKERS/);
  expect(before).toMatch(/one +current .* get new work/);
  expect(before).toMatch(/two +inactive .* promote it when/);

  const promoted = await deployment('promote', 'two');
  expect([promoted.code, promoted.stdout]).toEqual([0, expect.stringContaining('build two is current')]);
  const { items } = JSON.parse((await deployment('list', '--json')).stdout) as {
    items: { buildId: string; status: string }[];
  };
  expect(Object.fromEntries(items.map(({ buildId, status }) => [buildId, status]))).toEqual({
    one: expect.stringMatching(/^drain(ing|ed)$/),
    two: 'current',
  });
  await harness.running();
});

test('a build that is not there is an error that says what to do', async () => {
  const unknown = await deployment('promote', 'three');
  expect(unknown.code).toBe(1);
  expect(unknown.stderr).toContain('there is no build "three": start a worker of it first');
});
