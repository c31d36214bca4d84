/** Who takes work from an installation's task queues, and which build of the workers gets new work there. */
import { randomBytes } from 'node:crypto';
import { hostname } from 'node:os';
import type { Client } from '@temporalio/client';
import type { Installation } from '../db/queries/read-installation.ts';
import { deploymentOf, queueOf, TASK_QUEUES, type TaskQueue } from '../model/workflow-names.ts';

/** `TASK_QUEUE_TYPE_WORKFLOW` and `TASK_QUEUE_TYPE_ACTIVITY` of temporal.api.enums.v1. */
const WORKFLOW_TASKS = 1;
const ACTIVITY_TASKS = 2;
const TASK_TYPES = { workflow: WORKFLOW_TASKS, activity: ACTIVITY_TASKS } as const;
type TaskType = keyof typeof TASK_TYPES;
/** `WORKER_VERSIONING_MODE_VERSIONED` of temporal.api.enums.v1. */
const VERSIONED = 2;

/**
 * How long ago a worker that still polls may have begun its last poll, in milliseconds: a poll lasts a minute at most; half a
 * minute more for clocks that differ. The server remembers pollers for five minutes, so that one whose process is gone is still
 * named.
 */
const POLL_MS = 90_000;
/** `WORKER_STATUS_RUNNING` of temporal.api.enums.v1: a worker that shuts down says so in a last heartbeat. */
const RUNNING = 1;

/** One worker's poll of one queue. */
export interface Poller {
  readonly identity: string;
  /** The build of this installation's deployment that it runs; `null` for a worker that isn't versioned. */
  readonly buildId: string | null;
  readonly lastPoll: Date;
}

/** One queue's tasks of one type: who polls for them, and to whom the server gives what is new. */
export interface PolledQueue {
  readonly queue: TaskQueue;
  readonly type: TaskType;
  /** Those that poll now, as far as can be known: a process that was killed is among them for a minute. */
  readonly pollers: readonly Poller[];
  /** The build that gets new work; `null` where workers that aren't versioned do. */
  readonly currentBuild: string | null;
  /** The build that gets a part of it; `null` when none does. */
  readonly rampingBuild: string | null;
}

/** What is polled on an installation's queues; by default only for the tasks of workflows. Throws when Temporal can't be asked. */
export function readPolledQueues(
  client: Client,
  installation: string,
  types: readonly TaskType[] = ['workflow'],
): Promise<PolledQueue[]> {
  return Promise.all(
    TASK_QUEUES.flatMap((queue) => types.map((type) => readPolledQueue(client, installation, queue, type))),
  );
}

async function readPolledQueue(
  client: Client,
  installation: string,
  queue: TaskQueue,
  type: TaskType,
): Promise<PolledQueue> {
  const { namespace } = client.options;
  const name = queueOf(installation, queue);
  const [{ pollers, versioningInfo }, hasEnded] = await Promise.all([
    client.workflowService.describeTaskQueue({ namespace, taskQueue: { name }, taskQueueType: TASK_TYPES[type] }),
    readEnded(client, name),
  ]);
  const deployment = deploymentOf(installation);
  const buildOf = (version: { deploymentName?: string | null; buildId?: string | null } | null | undefined) =>
    version?.deploymentName === deployment ? (version.buildId ?? null) : null;
  const oldest = Date.now() - POLL_MS;
  return {
    queue,
    type,
    pollers: (pollers ?? [])
      .map((poller) => ({
        identity: poller.identity ?? '',
        buildId:
          poller.deploymentOptions?.workerVersioningMode === VERSIONED ? buildOf(poller.deploymentOptions) : null,
        lastPoll: new Date(Number(poller.lastAccessTime?.seconds ?? 0) * 1000),
      }))
      .filter((poller) => poller.lastPoll.getTime() >= oldest && !hasEnded(poller)),
    currentBuild: buildOf(versioningInfo?.currentDeploymentVersion),
    rampingBuild:
      Number(versioningInfo?.rampingVersionPercentage ?? 0) > 0
        ? buildOf(versioningInfo?.rampingDeploymentVersion)
        : null,
  };
}

/**
 * Which pollers of a queue have ended in order, by the last heartbeats of their workers. A server that doesn't know of heartbeats
 * says of none that it has.
 */
async function readEnded(client: Client, queue: string): Promise<(poller: Poller) => boolean> {
  const running = new Map<string, boolean>();
  const keyOf = (identity: string, buildId: string | null) => `${buildId ?? ''} ${identity}`;
  const answer = await client.workflowService
    .listWorkers({ namespace: client.options.namespace, query: `TaskQueue = "${queue}"`, pageSize: MOST_WORKERS })
    .catch(() => null);
  for (const { workerHeartbeat: beat } of answer?.workersInfo ?? []) {
    if (beat == null || beat.taskQueue !== queue) continue;
    const key = keyOf(beat.workerIdentity ?? '', beat.deploymentVersion?.buildId || null);
    running.set(key, (running.get(key) ?? false) || (beat.status ?? RUNNING) === RUNNING);
  }
  return ({ identity, buildId }) => running.get(keyOf(identity, buildId)) === false;
}
const MOST_WORKERS = 1_000;

/** A queue on which nobody takes the work of the build that gets it. */
export interface UnservedQueue {
  readonly queue: TaskQueue;
  /** `null`: the work of workers that aren't versioned. */
  readonly buildId: string | null;
  /** The builds that do poll there, `null` for workers that aren't versioned. */
  readonly polledBy: readonly (string | null)[];
}

/** The queues whose new work, or a part of it, goes to a build that nobody runs. */
export function unservedQueues(queues: readonly PolledQueue[]): UnservedQueue[] {
  return queues.flatMap(({ queue, pollers, currentBuild, rampingBuild }) =>
    [currentBuild, ...(rampingBuild === null ? [] : [rampingBuild])]
      .filter((buildId) => !pollers.some((poller) => poller.buildId === buildId))
      .map((buildId) => ({ queue, buildId, polledBy: [...new Set(pollers.map((poller) => poller.buildId))] })),
  );
}

/**
 * The identity of a worker's process on Temporal: the SDK's own, made unique, and behind it the mark of the database that it works on, by
 * which others see whether it is theirs.
 */
export function identityOf({ mark }: Pick<Installation, 'mark'>): string {
  return `${process.pid}@${hostname()}/${OWN}${mark === null ? '' : `${MARK}${mark}`}`;
}
const MARK = '/db-';
/** A container that is started again has the number and the host of the one before. */
const OWN = randomBytes(3).toString('hex');

/** The processes that poll these queues and work on another database, by their identities. */
export function foreignPollers(queues: readonly PolledQueue[], { mark }: Pick<Installation, 'mark'>): string[] {
  if (mark === null) return [];
  const identities = queues.flatMap(({ pollers }) => pollers.map(({ identity }) => identity));
  return [...new Set(identities)].filter((identity) => identity.includes(MARK) && !identity.endsWith(`${MARK}${mark}`));
}

/** Says who else is on an installation's queues, and what to do. */
export function describeForeign(installation: string, foreign: readonly string[]): string {
  return `workers of another database poll the queues of installation ${installation} (${foreign.join(', ')}): two databases have this id, so one is a copy of the other. End the processes of one of them; before those of a copy start, give it an id of its own: UPDATE installation SET id = DEFAULT`;
}

/** The queues on which nobody polls for a build. */
export function queuesWithout(queues: readonly PolledQueue[], buildId: string): PolledQueue[] {
  return queues.filter(({ pollers }) => !pollers.some((poller) => poller.buildId === buildId));
}

/** Says what is wrong with a queue that is not served, and what to do. */
export function describeUnserved({ queue, buildId, polledBy }: UnservedQueue): string {
  const others = polledBy.map((other) => (other === null ? 'a worker without a version' : `build ${other}`));
  const gets = buildId === null ? 'no build is current' : `build ${buildId} gets the new work`;
  if (others.length === 0) return `no worker polls the task queue "${queue}" (${gets}): start one`;
  const remedy = polledBy.find((other) => other !== null && other !== undefined);
  return `${gets} on the task queue "${queue}", but only ${others.join(' and ')} polls it: ${
    remedy === undefined
      ? 'start a worker of that build'
      : `"mooring deployment promote ${remedy}", or start a worker of that build`
  }`;
}
