/**
 * The worker deployment: which builds there are, and which one gets new work. Source:
 * https://docs.temporal.io/production-deployment/worker-deployments/worker-versioning
 */
import type { Client } from '@temporalio/client';
import type { Logger } from 'pino';
import { waitUntil } from '../platform/host/child-process.ts';

export const DEPLOYMENT_NAME = 'mooring';

/** `DESCRIBE…` and `SET…` of a deployment that no worker has polled for yet. */
const NOT_FOUND = 5;
const FAILED_PRECONDITION = 9;
const CURRENT_TIMEOUT_MS = 60_000;

/** What Temporal says of a build. Source: `WorkerDeploymentVersionStatus` of temporal.api.enums.v1. */
export const BUILD_STATUSES = ['unknown', 'inactive', 'current', 'ramping', 'draining', 'drained', 'created'] as const;
export type BuildStatus = (typeof BUILD_STATUSES)[number];

export interface Build {
  readonly buildId: string;
  readonly status: BuildStatus;
  readonly created: Date | null;
}

/** The builds of the deployment, the newest first; none when no versioned worker has ever run here. */
export async function readBuilds(client: Client): Promise<Build[]> {
  const { namespace } = client.options;
  try {
    const { workerDeploymentInfo } = await client.workflowService.describeWorkerDeployment({
      namespace,
      deploymentName: DEPLOYMENT_NAME,
    });
    const builds = (workerDeploymentInfo?.versionSummaries ?? []).map((summary) => ({
      buildId: summary.deploymentVersion?.buildId ?? '',
      status: BUILD_STATUSES[summary.status ?? 0] ?? 'unknown',
      created: summary.createTime?.seconds == null ? null : new Date(Number(summary.createTime.seconds) * 1000),
    }));
    return builds.sort((one, other) => (other.created?.getTime() ?? 0) - (one.created?.getTime() ?? 0));
  } catch (error) {
    if (codeOf(error) === NOT_FOUND) return [];
    throw error;
  }
}

/**
 * Makes a build the one that gets new work, and the next step of every workflow that isn't pinned. Throws when no worker
 * of it polls in time.
 */
export async function promoteBuild(client: Client, buildId: string): Promise<void> {
  const { namespace } = client.options;
  let reason = '';
  await waitUntil(
    async () => {
      try {
        await client.workflowService.setWorkerDeploymentCurrentVersion({
          namespace,
          deploymentName: DEPLOYMENT_NAME,
          buildId,
          // The update queue may be held back, or have workers of its own that come later.
          ignoreMissingTaskQueues: true,
          identity: client.options.identity,
        });
        return true;
      } catch (error) {
        const code = codeOf(error);
        if (code !== NOT_FOUND && code !== FAILED_PRECONDITION) throw error;
        reason = error instanceof Error ? error.message : String(error);
        return false;
      }
    },
    '',
    CURRENT_TIMEOUT_MS,
    50,
  ).catch((error: unknown) => {
    if (reason === '') throw error;
    throw new Error(`build ${buildId} could not be made current: ${reason}`);
  });
}

/**
 * What a new worker does about its build: where none is current yet, it becomes current; otherwise the operator decides,
 * and the log says how.
 */
export async function settleBuild(client: Client, buildId: string, log: Logger): Promise<void> {
  const current = (await readBuilds(client)).find((build) => build.status === 'current');
  if (current?.buildId === buildId) return;
  if (current !== undefined) {
    log.warn(
      { build_id: buildId, current: current.buildId },
      `build ${buildId} gets no new work yet: build ${current.buildId} is current. When it is to take over: mooring deployment promote ${buildId}`,
    );
    return;
  }
  await promoteBuild(client, buildId);
  log.info({ build_id: buildId }, 'this build is current: it gets new work');
}

function codeOf(error: unknown): unknown {
  return (error as { code?: unknown } | null)?.code;
}
