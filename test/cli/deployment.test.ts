/** `mooring deployment`, and workers that are to have no versions. */
import { isDeepStrictEqual } from 'node:util';
import { pino } from 'pino';
import { afterAll, afterEach, beforeAll, expect, test, vi } from 'vitest';
import { startApi } from '../../api/server.ts';
import { deploymentOf } from '../../model/workflow-names.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import { readBuilds } from '../../temporal/deployment.ts';
import { readPolledQueues } from '../../temporal/pollers.ts';
import { type RunningWorker, startWorker } from '../../worker/worker.ts';
import { runCommand } from '../support/command.ts';
import { type Harness, startHarness } from '../support/harness.ts';
import { eventually } from '../support/wait.ts';

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
  await waitUntil(
    async () => (await readBuilds(harness.temporal, harness.installation)).length === 2,
    'the second build never came up',
  );
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

test('a build whose workers are gone is not promoted; forced, it is a fault that every place names until it has workers', async () => {
  const two = workers.find(({ buildId }) => buildId === 'two');
  const one = workers.find(({ buildId }) => buildId === 'one');
  const api = await startApi({
    ...{ databaseUrl: harness.stack.databaseUrl, temporal: harness.stack.temporal, host: '127.0.0.1', port: 0 },
    ...{ authentication: 'open', plainSleds: true, log: pino({ level: 'silent' }), lookEveryMs: 300 },
  });
  try {
    await one?.stop();
    const refused = await until(async () => {
      const tried = await deployment('promote', 'one');
      return tried.code === 0 ? null : tried;
    });
    expect([refused.code, refused.stderr]).toEqual([
      1,
      expect.stringMatching(/no worker of it polls the task queue "mooring" and "mooring-update": start one first/),
    ]);
    const ready = async () => {
      const answer = await fetch(`${api.url}/readyz`);
      return { status: answer.status, text: await answer.text() };
    };
    await until(async () => ((await ready()).status === 200 ? true : null));

    expect((await deployment('promote', 'one', '--force')).code).toBe(0);
    const unready = await until(async () => {
      const now = await ready();
      return now.status === 503 ? now : null;
    });
    expect(unready.text).toMatch(
      /build one gets the new work .* only .*two polls it: "mooring deployment promote two"/,
    );
    const listed = (await deployment('list')).stdout;
    expect(listed).toMatch(/one +current .* NOBODY TAKES THE NEW WORK.* 0/);
    expect(listed).toMatch(/WORK GOES TO NOBODY: build one gets the new work/);
    const doctor = await runCommand(['doctor'], {
      env: { TEMPORAL_ADDRESS: harness.stack.temporalAddress, DATABASE_URL: harness.stack.databaseUrl },
    });
    expect([doctor.code, doctor.stdout]).toEqual([
      1,
      expect.stringMatching(/surroundings +build one gets the new work/),
    ]);

    expect((await deployment('promote', 'two')).code).toBe(0);
    await until(async () => ((await ready()).status === 200 ? true : null));

    // A ramp to workers that aren't versioned is a ramp: the stack's own worker is one.
    const { namespace } = harness.temporal.options;
    const ramp = (percentage: number) =>
      harness.temporal.workflowService.setWorkerDeploymentRampingVersion({
        ...{ namespace, deploymentName: deploymentOf(harness.installation), buildId: '', percentage },
        ...{ ignoreMissingTaskQueues: true, allowNoPollers: true, identity: 'a-test' },
      });
    const ramps = async () =>
      (await readPolledQueues(harness.temporal, harness.installation)).map(({ routing }) => routing.ramp);
    await ramp(100);
    const toUnversioned = { buildId: null, percentage: 100 };
    await until(async () => (isDeepStrictEqual(await ramps(), [toUnversioned, toUnversioned]) ? true : null));
    await ramp(0);
    await until(async () => (isDeepStrictEqual(await ramps(), [null, null]) ? true : null));
    await harness.running();
    expect(two?.buildId).toBe('two');
  } finally {
    await api.stop();
  }
});

/** Waits for something that is not `null`. */
async function until<Found>(look: () => Promise<Found | null>): Promise<Found> {
  let found: Found | null = null;
  await eventually(async () => {
    found = await look();
    return found !== null;
  }, 'it never came');
  if (found === null) throw new Error('it never came');
  return found;
}

test('a build that is not there is an error that says what to do', async () => {
  const unknown = await deployment('promote', 'three');
  expect(unknown.code).toBe(1);
  expect(unknown.stderr).toContain('there is no build "three": start a worker of it first');
});
