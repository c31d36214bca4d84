/** Who takes work from an installation's task queues, and which build of the workers gets new work there. */
import { randomBytes } from 'node:crypto';
import { hostname } from 'node:os';
import type { Client } from '@temporalio/client';
import type { Installation } from '../db/queries/read-installation.ts';
import { deploymentOf, queueOf, TASK_QUEUES, type TaskQueue } from '../model/workflow-names.ts';
import { ServerAges, timestampMs } from './server-ages.ts';

/** `TASK_QUEUE_TYPE_WORKFLOW` and `TASK_QUEUE_TYPE_ACTIVITY` of temporal.api.enums.v1. */
const WORKFLOW_TASKS = 1;
const ACTIVITY_TASKS = 2;
const TASK_TYPES = { workflow: WORKFLOW_TASKS, activity: ACTIVITY_TASKS } as const;
type TaskType = keyof typeof TASK_TYPES;
/** `WORKER_VERSIONING_MODE_VERSIONED` of temporal.api.enums.v1. */
const VERSIONED = 2;

/**
 * How long ago, by the server's clock, a worker that still polls may have begun its last poll, in milliseconds: a poll lasts a
 * minute at most, and half a minute more for one that is late. The server remembers pollers for five minutes, so that one whose process is gone is still
 * named.
 */
const POLL_MS = 90_000;
/** `WORKER_STATUS_RUNNING` of temporal.api.enums.v1: a worker that shuts down says so in a last heartbeat. */
const RUNNING = 1;

/** One worker's poll of one queue. */
export interface Poller {
  readonly identity: string;
  /** The version that it runs, as {@link versionName} names it. */
  readonly buildId: string | null;
  readonly lastPoll: Date;
}

/** One queue's tasks of one type: who polls for them, and to whom the server gives what is new. */
export interface PolledQueue {
  readonly queue: TaskQueue;
  readonly type: TaskType;
  /** Those that poll now, as far as can be known: a process that was killed is among them for a minute. */
  readonly pollers: readonly Poller[];
  readonly routing: Routing;
}

/** To whom the server gives a queue's new work, by {@link versionName}. */
export interface Routing {
  /** The worker deployment of the installation. */
  readonly deployment: string;
  readonly currentBuild: string | null;
  /** Who gets a part of it, or all; `null` when nobody does. */
  readonly ramp: { readonly buildId: string | null; readonly percentage: number } | null;
}

interface Version {
  readonly deploymentName?: string | null;
  readonly buildId?: string | null;
}

/**
 * The name of a version of workers: the build, where it is of this deployment; with the other deployment's name behind it, where it
 * is of another; `null` for workers that aren't versioned.
 */
function versionName(deployment: string, version: Version | null | undefined): string | null {
  if (version?.buildId == null || version.buildId === '') return null;
  return version.deploymentName === deployment
    ? version.buildId
    : `${version.buildId}${OF_DEPLOYMENT}${version.deploymentName ?? ''}`;
}
const OF_DEPLOYMENT = ' of deployment ';

/**
 * What the server says of a queue's routing. A ramp with a percentage and no version is one to workers that aren't versioned. Source:
 * `TaskQueueVersioningInfo` of temporal.api.taskqueue.v1.
 */
export function readRouting(
  deployment: string,
  info:
    | {
        readonly currentDeploymentVersion?: Version | null;
        readonly rampingDeploymentVersion?: Version | null;
        readonly rampingVersionPercentage?: number | null;
      }
    | null
    | undefined,
): Routing {
  const percentage = Number(info?.rampingVersionPercentage ?? 0);
  return {
    deployment,
    currentBuild: versionName(deployment, info?.currentDeploymentVersion),
    ramp: percentage > 0 ? { buildId: versionName(deployment, info?.rampingDeploymentVersion), percentage } : null,
  };
}

/**
 * What is polled on an installation's queues; by default only for the tasks of workflows. Who looks again and again gives its `ages`.
 * Throws when Temporal can't be asked.
 */
export function readPolledQueues(
  client: Client,
  installation: string,
  types: readonly TaskType[] = ['workflow'],
  ages = ServerAges.of(client),
): Promise<PolledQueue[]> {
  const settled = ages.settle();
  return Promise.all(
    TASK_QUEUES.flatMap((queue) =>
      types.map((type) => readPolledQueue(client, installation, queue, type, ages, settled)),
    ),
  );
}

async function readPolledQueue(
  client: Client,
  installation: string,
  queue: TaskQueue,
  type: TaskType,
  ages: ServerAges,
  settled: Promise<void>,
): Promise<PolledQueue> {
  const { namespace } = client.options;
  const name = queueOf(installation, queue);
  const [{ pollers, versioningInfo }, hasEnded] = await Promise.all([
    client.workflowService.describeTaskQueue({ namespace, taskQueue: { name }, taskQueueType: TASK_TYPES[type] }),
    readEnded(client, name, deploymentOf(installation)),
    settled,
  ]);
  const deployment = deploymentOf(installation);
  const known = (pollers ?? []).map((poller) => ({
    identity: poller.identity ?? '',
    buildId:
      poller.deploymentOptions?.workerVersioningMode === VERSIONED
        ? versionName(deployment, poller.deploymentOptions)
        : null,
    lastPoll: new Date(timestampMs(poller.lastAccessTime)),
  }));
  const ageOf = ages.agesOf(
    `${type} ${name}`,
    new Map(known.map((poller) => [keyOf(poller), poller.lastPoll.getTime()])),
  );
  return {
    queue,
    type,
    pollers: known.filter((poller) => (ageOf.get(keyOf(poller)) ?? 0) <= POLL_MS && !hasEnded(poller)),
    routing: readRouting(deployment, versioningInfo),
  };
}

/** A process's polls for one version, among a queue's. */
function keyOf({ identity, buildId }: Pick<Poller, 'identity' | 'buildId'>): string {
  return `${buildId ?? ''} ${identity}`;
}

/**
 * Which pollers of a queue have ended in order, by the last heartbeats of their workers. A server that doesn't know of heartbeats
 * says of none that it has.
 */
async function readEnded(client: Client, queue: string, deployment: string): Promise<(poller: Poller) => boolean> {
  const running = new Map<string, boolean>();
  const answer = await client.workflowService
    .listWorkers({ namespace: client.options.namespace, query: `TaskQueue = "${queue}"`, pageSize: MOST_WORKERS })
    .catch(() => null);
  for (const { workerHeartbeat: beat } of answer?.workersInfo ?? []) {
    if (beat == null || beat.taskQueue !== queue) continue;
    const key = keyOf({
      identity: beat.workerIdentity ?? '',
      buildId: versionName(deployment, beat.deploymentVersion),
    });
    running.set(key, (running.get(key) ?? false) || (beat.status ?? RUNNING) === RUNNING);
  }
  return (poller) => running.get(keyOf(poller)) === false;
}
const MOST_WORKERS = 1_000;

/** A queue on which nobody takes the work of the build that gets it. */
export interface UnservedQueue {
  readonly queue: TaskQueue;
  /** Whose work it is, by {@link versionName}. */
  readonly buildId: string | null;
  /** How much of the work it is where a ramp gives it to them, in percent; `null` for the current version's. */
  readonly rampPercentage: number | null;
  readonly deployment: string;
  /** The builds that do poll there, `null` for workers that aren't versioned. */
  readonly polledBy: readonly (string | null)[];
}

/** The queues whose new work, or a part of it, goes to a build that nobody runs. */
export function unservedQueues(queues: readonly PolledQueue[]): UnservedQueue[] {
  return queues.flatMap(({ queue, pollers, routing: { deployment, currentBuild, ramp } }) =>
    [
      { buildId: currentBuild, rampPercentage: null },
      ...(ramp === null ? [] : [{ buildId: ramp.buildId, rampPercentage: ramp.percentage }]),
    ]
      .filter(({ buildId }) => !pollers.some((poller) => poller.buildId === buildId))
      .map((unserved) => ({
        ...unserved,
        ...{ queue, deployment, polledBy: [...new Set(pollers.map(({ buildId }) => buildId))] },
      })),
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
export function describeUnserved({ queue, buildId, rampPercentage, deployment, polledBy }: UnservedQueue): string {
  const others = polledBy.map((other) => (other === null ? 'a worker without a version' : `build ${other}`));
  if (rampPercentage !== null) {
    const who = buildId === null ? 'workers without a version get' : `build ${buildId} gets`;
    const polls = others.length === 0 ? 'no worker polls it' : `only ${others.join(' and ')} polls it`;
    const [build, other] = buildId?.split(OF_DEPLOYMENT) ?? [];
    return `${who} ${rampPercentage}% of the new work on the task queue "${queue}" by a ramp, but ${polls}: end the ramp ("temporal worker deployment set-ramping-version --deployment-name ${other ?? deployment} ${
      build === undefined ? '--unversioned' : `--build-id ${build}`
    } --delete"), or start such a worker`;
  }
  const [, foreign] = buildId?.split(OF_DEPLOYMENT) ?? [];
  if (foreign !== undefined)
    return `build ${buildId} gets the new work on the task queue "${queue}", and no worker of it polls there: have that deployment let go of it ("temporal worker deployment set-current-version --deployment-name ${foreign} --unversioned --ignore-missing-task-queues")`;
  const gets = buildId === null ? 'no build is current' : `build ${buildId} gets the new work`;
  if (others.length === 0) return `no worker polls the task queue "${queue}" (${gets}): start one`;
  const remedy = polledBy.find((other) => other !== null && other !== undefined);
  return `${gets} on the task queue "${queue}", but only ${others.join(' and ')} polls it: ${
    remedy === undefined
      ? 'start a worker of that build'
      : `"mooring deployment promote ${remedy}", or start a worker of that build`
  }`;
}
