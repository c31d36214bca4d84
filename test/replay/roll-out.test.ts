/**
 * A roll-out: an old and a new build side by side. What is pinned ends on the build that began it, what lasts goes over,
 * and a change that a history would not survive is found before it is deployed.
 */
import { fileURLToPath } from 'node:url';
import { pino } from 'pino';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { deploymentOf, workflowIds } from '../../model/workflow-names.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import { promoteBuild, readBuilds } from '../../temporal/deployment.ts';
import { readHistories, replay } from '../../worker/replay.ts';
import { installRuntime, type RunningWorker, startWorker } from '../../worker/worker.ts';
import { bundleWorkflows, VERSIONING } from '../../worker/workflow-bundle.ts';
import { type Harness, startHarness } from '../support/harness.ts';
import { STUCK_MS } from '../support/wait.ts';

const log = pino({ level: 'silent' });
const changed = bundleWorkflows(fileURLToPath(new URL('changed-workflows.ts', import.meta.url)), [VERSIONING]);
let harness: Harness;
const workers: RunningWorker[] = [];
beforeAll(async () => {
  installRuntime(log);
  harness = await startHarness({
    reconcileEveryMs: 0,
    registerTimeoutMs: 120_000,
    waitMs: 500,
    temporalDynamicConfig: {
      'matching.wv.VersionDrainageStatusVisibilityGracePeriod': '1s',
      'matching.wv.VersionDrainageStatusRefreshInterval': '1s',
    },
  });
});
afterAll(async () => {
  harness?.everywhere(({ agent }) => agent.faults.clear());
  await Promise.all(workers.map((worker) => worker.stop()));
  await harness?.close();
});

async function startBuild(buildId: string, options: Partial<Parameters<typeof startWorker>[0]> = {}) {
  const { databaseUrl, temporal } = harness.stack;
  const worker = await startWorker({ databaseUrl, temporal, log, buildId, reconcileEveryMs: 0, ...options });
  workers.push(worker);
  return worker;
}

/** The build whose worker did a workflow's last step. */
async function buildOf(workflowId: string): Promise<string | undefined> {
  const { raw } = await harness.temporal.workflow.getHandle(workflowId).describe();
  return raw.workflowExecutionInfo?.versioningInfo?.deploymentVersion?.buildId ?? undefined;
}

/** The build that a workflow ended on: its caller may be answered before it has closed, and only a task that is over has a build. */
async function buildOfEnded(workflowId: string): Promise<string | undefined> {
  await harness.temporal.workflow.getHandle(workflowId).result();
  return buildOf(workflowId);
}

async function statusOf(buildId: string) {
  return (await readBuilds(harness.temporal, harness.installation)).find((build) => build.buildId === buildId)?.status;
}

/** `ROUTING_CONFIG_UPDATE_STATE_COMPLETED` of temporal.api.enums.v1. */
const ROUTED = 2;

/**
 * Makes a build current and waits until every partition of the task queues knows: the server answers before they do, and
 * one that does not know yet hands work to the build that was current before.
 */
async function promote(buildId: string): Promise<void> {
  await promoteBuild(harness.temporal, harness.installation, buildId);
  await waitUntil(
    async () => {
      const { workerDeploymentInfo } = await harness.temporal.workflowService.describeWorkerDeployment({
        namespace: harness.temporal.options.namespace,
        deploymentName: deploymentOf(harness.installation),
      });
      const current = workerDeploymentInfo?.routingConfig?.currentDeploymentVersion?.buildId;
      return current === buildId && workerDeploymentInfo?.routingConfigUpdateState === ROUTED;
    },
    `the task queues never knew that build ${buildId} is current`,
    STUCK_MS,
  );
}

test('the first build becomes current by itself; one that comes later waits for the operator', async () => {
  await startBuild('old');
  expect(await statusOf('old')).toBe('current');
  const later = await startBuild('later');
  await waitUntil(async () => (await statusOf('later')) !== undefined, 'the build never came up', STUCK_MS);
  expect(await statusOf('later')).toBe('inactive');
  await promote('later');
  expect(await statusOf('later')).toBe('current');
  await promote('old');
  await later.stop();
});

test('a start in flight ends on the old build, a stop in flight goes over, and what is new begins on the new build', async () => {
  const begun = await harness.create();
  const stopping = await harness.running();
  expect(await buildOfEnded(workflowIds.start(stopping))).toBe('old');
  harness.everywhere(({ agent }) => {
    agent.faults.plant({ call: 'register', act: { type: 'refuse', status: 503 } });
    agent.faults.plant({ call: 'state:stopped', act: { type: 'refuse', status: 503 } });
  });
  await harness.client.startInstance(begun);
  await harness.client.stopInstance(stopping);
  await waitUntil(async () => (await buildOf(workflowIds.stop(stopping))) === 'old', 'the stop never began', STUCK_MS);
  await waitUntil(async () => (await buildOf(workflowIds.start(begun))) === 'old', 'the start never began', STUCK_MS);

  await startBuild('new', { bundle: await changed });
  await promote('new');
  expect(await statusOf('old')).toBe('draining');
  // The next try of its step is the new build's, and takes the workflow along: only then may the sleds answer.
  await waitUntil(
    async () => (await buildOf(workflowIds.stop(stopping))) === 'new',
    'the stop in flight never went over',
    STUCK_MS,
  );
  harness.everywhere(({ agent }) => agent.faults.clear());

  await harness.shows(begun, 'running');
  await harness.shows(stopping, 'stopped');
  expect(await buildOfEnded(workflowIds.start(begun))).toBe('old');
  expect(await buildOfEnded(workflowIds.stop(stopping))).toBe('new');
  const fresh = await harness.running();
  expect(await buildOfEnded(workflowIds.start(fresh))).toBe('new');
});

test('when its last saga has ended the old build is drained: its worker can be stopped', async () => {
  await waitUntil(async () => (await statusOf('old')) === 'drained', 'the old build never drained', STUCK_MS, 500);
  await workers.find((worker) => worker.buildId === 'old')?.stop();
  await harness.running();
});

test('the replay of the recorded histories finds the change that would break a start', async () => {
  const broken = new Set<string>();
  const folder = fileURLToPath(new URL('../histories', import.meta.url));
  for await (const { workflowType, problem } of replay(await changed, readHistories(folder)))
    if (problem !== null) broken.add(workflowType);
  expect([...broken]).toEqual(['instanceStart']);
});
