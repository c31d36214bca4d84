/**
 * The worker deployment: which builds there are, and which one gets new work. Source:
 * https://docs.temporal.io/production-deployment/worker-deployments/worker-versioning
 */
import type { Client } from '@temporalio/client';
import type { Logger } from 'pino';
import { DEPLOYMENT_PREFIX, deploymentOf } from '../model/workflow-names.ts';
import { waitUntil } from '../platform/host/child-process.ts';
import { isNotFound, oneLine } from './errors.ts';
import { describeUnserved, queuesWithout, readPolledQueues, unservedQueues } from './pollers.ts';
import { ServerAges } from './server-ages.ts';

/** `SET…` of a build that no worker has polled for yet. */
const FAILED_PRECONDITION = 9;
const NOT_FOUND = 5;
/** How long a worker that has just begun may take to poll all of its queues, in milliseconds. */
const POLLED_TIMEOUT_MS = 5_000;
const CURRENT_TIMEOUT_MS = 60_000;
const LOOK_MS = 100;
/** `ROUTING_CONFIG_UPDATE_STATE_IN_PROGRESS` of temporal.api.enums.v1: queues learn of a promotion one after the other. */
const IN_PROGRESS = 1;
/** `PINNED_OVERRIDE_BEHAVIOR_PINNED` of temporal.api.workflow.v1. */
const PINNED = 1;

/** What Temporal says of a build. Source: `WorkerDeploymentVersionStatus` of temporal.api.enums.v1. */
export const BUILD_STATUSES = ['unknown', 'inactive', 'current', 'ramping', 'draining', 'drained', 'created'] as const;
export type BuildStatus = (typeof BUILD_STATUSES)[number];

export interface Build {
  readonly buildId: string;
  readonly status: BuildStatus;
  readonly created: Date | null;
}

/** A build, and how many workers of it poll: on the queue where there are fewest. */
export interface PolledBuild extends Build {
  readonly pollers: number;
}

/** The builds of an installation's deployment, the newest first; none when no versioned worker has ever run here. */
export async function readBuilds(client: Client, installation: string): Promise<Build[]> {
  return (await readDeployment(client, installation)).builds;
}

/** The builds, each with whether anybody runs it. Throws when Temporal can't be asked. */
export async function readPolledBuilds(client: Client, installation: string): Promise<PolledBuild[]> {
  const [builds, queues] = await Promise.all([
    readBuilds(client, installation),
    readPolledQueues(client, installation),
  ]);
  return builds.map((build) => ({
    ...build,
    pollers: Math.min(
      ...queues.map(
        ({ pollers }) =>
          new Set(pollers.filter(({ buildId }) => buildId === build.buildId).map(({ identity }) => identity)).size,
      ),
    ),
  }));
}

/** To whom no build answers, though work goes to them: a line each, for people. Throws when Temporal can't be asked. */
export async function readUnserved(client: Client, installation: string): Promise<string[]> {
  return unservedQueues(await readPolledQueues(client, installation)).map(describeUnserved);
}

/** The installations that have a worker deployment on the client's namespace, by their ids. */
export async function findDeployedInstallations(client: Client): Promise<string[]> {
  const found: string[] = [];
  let nextPageToken: Uint8Array | null | undefined;
  do {
    const page = await client.workflowService.listWorkerDeployments({
      namespace: client.options.namespace,
      ...(nextPageToken == null ? {} : { nextPageToken }),
    });
    for (const { name } of page.workerDeployments ?? [])
      if (name?.startsWith(DEPLOYMENT_PREFIX)) found.push(name.slice(DEPLOYMENT_PREFIX.length));
    ({ nextPageToken } = page);
  } while (nextPageToken != null && nextPageToken.length > 0);
  return found;
}

async function readDeployment(
  client: Client,
  installation: string,
): Promise<{ readonly builds: Build[]; readonly isSettled: boolean }> {
  const { namespace } = client.options;
  try {
    const { workerDeploymentInfo } = await client.workflowService.describeWorkerDeployment({
      namespace,
      deploymentName: deploymentOf(installation),
    });
    const builds = (workerDeploymentInfo?.versionSummaries ?? []).map((summary) => ({
      buildId: summary.deploymentVersion?.buildId ?? '',
      status: BUILD_STATUSES[summary.status ?? 0] ?? 'unknown',
      created: summary.createTime?.seconds == null ? null : new Date(Number(summary.createTime.seconds) * 1000),
    }));
    return {
      builds: builds.sort((one, other) => (other.created?.getTime() ?? 0) - (one.created?.getTime() ?? 0)),
      isSettled: workerDeploymentInfo?.routingConfigUpdateState !== IN_PROGRESS,
    };
  } catch (error) {
    if (isNotFound(error)) return { builds: [], isSettled: true };
    throw error;
  }
}

/**
 * Makes a build the one that gets new work, and the next step of every workflow that isn't pinned, and returns when every queue
 * gives it its work. Throws when no worker of the build polls both queues, for both types of tasks, within five seconds (unless
 * `unpolled` does not ask), and when it has not become current within a minute.
 */
export async function promoteBuild(
  client: Client,
  installation: string,
  buildId: string,
  { unpolled = false }: { unpolled?: boolean } = {},
): Promise<void> {
  const ages = ServerAges.of(client);
  if (!unpolled)
    await until(POLLED_TIMEOUT_MS, buildId, async () => {
      const without = queuesWithout(
        await readPolledQueues(client, installation, ['workflow', 'activity'], ages),
        buildId,
      );
      const queues = [...new Set(without.map(({ queue }) => `"${queue}"`))];
      return queues.length === 0
        ? null
        : `no worker of it polls the task queue ${queues.join(' and ')}: start one first`;
    });
  const { namespace, identity } = client.options;
  await until(CURRENT_TIMEOUT_MS, buildId, async () => {
    await client.workflowService.setWorkerDeploymentCurrentVersion({
      namespace,
      deploymentName: deploymentOf(installation),
      buildId,
      // Who polls was asked above. The update queue may be held back, or have workers of its own that come later.
      ignoreMissingTaskQueues: true,
      allowNoPollers: unpolled,
      identity,
    });
    return null;
  });
  await until(CURRENT_TIMEOUT_MS, buildId, async () => {
    const { builds, isSettled } = await readDeployment(client, installation);
    const isCurrent = builds.some((build) => build.buildId === buildId && build.status === 'current');
    if (isCurrent && isSettled) return null;
    return isCurrent
      ? 'it is current, but not every task queue knows of it: those that don’t give new work to the build before. Look again ("mooring deployment list"), or promote it again'
      : 'the server has not made it current';
  });
}

/**
 * Has every workflow that runs on another build than `buildId`, and would go over with its next step, end where it is. A build that
 * is gone back to does not know what a newer one has written into a history; one that has ended needs no worker that does. What
 * they start in turn follows them. Returns the ids of these runs. It can be done again: what is pinned stays so.
 */
export async function keepRunsWhereTheyAre(client: Client, installation: string, buildId: string): Promise<string[]> {
  const { namespace, identity } = client.options;
  const deploymentName = deploymentOf(installation);
  const kept: string[] = [];
  for (const other of await readBuilds(client, installation)) {
    if (other.buildId === buildId) continue;
    const query = [
      'ExecutionStatus = "Running"',
      'TemporalWorkflowVersioningBehavior = "AutoUpgrade"',
      `TemporalWorkerDeploymentVersion = "${deploymentName}:${other.buildId}"`,
    ].join(' AND ');
    for await (const { workflowId, runId } of client.workflow.list({ query }))
      try {
        await client.workflowService.updateWorkflowExecutionOptions({
          namespace,
          identity,
          workflowExecution: { workflowId, runId },
          workflowExecutionOptions: {
            versioningOverride: {
              pinned: { behavior: PINNED, version: { deploymentName, buildId: other.buildId } },
            },
          },
          updateMask: { paths: ['versioning_override'] },
        });
        kept.push(runId);
      } catch (error) {
        // It has ended meanwhile.
        if (!isNotFound(error)) throw error;
      }
  }
  return kept;
}

/** Tries until nothing stands in the way any more; throws what does, in words, after `timeoutMs` milliseconds. */
async function until(timeoutMs: number, buildId: string, obstacle: () => Promise<string | null>): Promise<void> {
  let reason: string | null = null;
  await waitUntil(
    async () => {
      try {
        reason = await obstacle();
      } catch (error) {
        const { code } = error as { code?: unknown };
        if (code !== NOT_FOUND && code !== FAILED_PRECONDITION) throw error;
        reason = oneLine(error);
      }
      return reason === null;
    },
    '',
    timeoutMs,
    LOOK_MS,
  ).catch((error: unknown) => {
    if (reason === null) throw error;
    throw new Error(`build ${buildId} does not get all new work yet: ${reason}`);
  });
}

/**
 * What a worker does about its build: where none is current, it becomes current, once it polls; otherwise the operator decides,
 * and the log says how. Returns the build that is current. Throws what {@link promoteBuild} throws.
 */
export async function settleBuild(client: Client, installation: string, buildId: string, log: Logger): Promise<string> {
  const current = (await readBuilds(client, installation)).find((build) => build.status === 'current');
  if (current?.buildId === buildId) return buildId;
  if (current !== undefined) {
    log.warn(
      { build_id: buildId, current: current.buildId },
      `build ${buildId} gets no new work yet: build ${current.buildId} is current. When it is to take over: mooring deployment promote ${buildId}`,
    );
    return current.buildId;
  }
  await promoteBuild(client, installation, buildId, { unpolled: true });
  log.info({ build_id: buildId }, 'this build is current: it gets new work');
  return buildId;
}
