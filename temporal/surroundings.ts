/**
 * What a process needs around it, on the Temporal namespace and in the database, looked at again and again: it may vanish at any
 * moment, and comes back without a restart. What can be made again is made again by the look that misses it.
 *
 * Needed: the namespace; a worker that polls for the build that gets new work; the schedules of the reconciling loops; a schema
 * as new as the code; nobody of another installation on these queues. Optional: the search attributes.
 */
import { setTimeout as pause } from 'node:timers/promises';
import type { Client, Connection } from '@temporalio/client';
import type { Logger } from 'pino';
import type { Database } from '../db/connect.ts';
import { findOwningInstances } from '../db/queries/find-owning-instances.ts';
import { readInstallation } from '../db/queries/read-installation.ts';
import { readSchemaProblem } from '../db/queries/read-schema-problem.ts';
import { RECONCILERS, type ReconcilerName } from '../model/reconcilers.ts';
import { installationOf } from '../model/workflow-names.ts';
import type { TemporalClient } from './client.ts';
import { readPolledBuilds, settleBuild } from './deployment.ts';
import { isNamespaceMissing } from './errors.ts';
import { describeForeignRun } from './foreign-runs.ts';
import { describeForeign, describeUnserved, foreignPollers, readPolledQueues, unservedQueues } from './pollers.ts';
import { ensureSchedules, type LoopState, readLoops, type ScheduleOptions } from './schedules.ts';
import { missingSearchAttributes } from './search-attributes.ts';
import { ServerAges } from './server-ages.ts';

/** How long it is to the next look, in milliseconds, give or take a fifth: many processes must not look at once. */
const LOOK_EVERY_MS = 10_000;
/** The same while something is missing that is needed, in milliseconds. */
const LOOK_SOON_MS = 3_000;
/** How long the first look of a worker waits until its own polls are seen, in milliseconds. */
const POLLING_MS = 3_000;
const POLLING_LOOK_MS = 100;
/** Schedules are seldom lost: so many looks go by between two that ask for each of them, while nothing else is missing. */
const LOOKS_A_SCHEDULE = 3;
/** How long a worker whose build was not current leaves it to the build that was, in milliseconds, once none is. */
const LEAVE_TO_OTHERS_MS = 30_000;

/** What may be missing around a process; the values of a metric's label. */
export const SURROUNDINGS = [
  'namespace',
  'search_attributes',
  'schedules',
  'current_build',
  'schema',
  'own_queues',
] as const;
export type SurroundingName = (typeof SURROUNDINGS)[number];

/** One thing that is missing. */
export interface Missing {
  readonly what: SurroundingName;
  /** Whether the process can't do its work without. */
  readonly needed: boolean;
  /** One line: what is missing, what follows, what to do. */
  readonly problem: string;
}

/** What a worker does about what is missing; an API only looks. */
export interface WorkerDuties {
  /** The build to make current where none is; `null` for a worker that isn't versioned. */
  readonly buildId: string | null;
  /** How the schedules are to be made where they are missing; `null` leaves them alone. */
  readonly schedules: ScheduleOptions | null;
}

export interface SurroundingsOptions {
  readonly temporal: TemporalClient;
  readonly db: Database;
  readonly log: Logger;
  /** `null` for an API. */
  readonly duties: WorkerDuties | null;
  /** How long it is to the next look, in milliseconds; default 10000. */
  readonly everyMs?: number | undefined;
}

/** Thrown to a process that would work beside another installation's workers. */
class ForeignInstallation extends Error {
  override readonly name = 'ForeignInstallation';
}

/**
 * Throws, with what to do, where workers of another database poll this installation's queues: to be asked before a process polls
 * there itself. A server that doesn't know the namespace is no error.
 */
export async function refuseForeign(temporal: Pick<TemporalClient, 'client' | 'installation'>): Promise<void> {
  const { client } = temporal;
  const installation = await temporal.installation();
  const queues = await readPolledQueues(client, installation.id).catch((error: unknown) => {
    if (isNamespaceMissing(error)) return [];
    throw error;
  });
  const foreign = foreignPollers(queues, installation);
  if (foreign.length > 0) throw new ForeignInstallation(describeForeign(installation.id, foreign));
}

/** What is missing around an installation, for the doctor: it looks at the same, and changes nothing. Throws what it can't ask. */
export async function examineSurroundings(
  db: Database,
  connection: Connection,
  client: Client,
): Promise<readonly Missing[]> {
  const { namespace } = client.options;
  const installation = await readInstallation(db);
  try {
    const [queues, builds, loops, attributes, schema, foreignRuns] = await Promise.all([
      readPolledQueues(client, installation.id),
      readPolledBuilds(client, installation.id),
      readLoops(client, installation.id),
      missingSearchAttributes(connection, namespace),
      readSchemaProblem(db),
      findForeignRuns(db, client, installation.id),
    ]);
    const foreign = foreignPollers(queues, installation);
    return [
      ...(foreign.length === 0 ? [] : [needed('own_queues', describeForeign(installation.id, foreign))]),
      ...foreignRuns.map((problem) => needed('own_queues', problem)),
      ...unservedQueues(queues).map((unserved) => needed('current_build', describeUnserved(unserved))),
      ...builds
        .filter(({ status, pollers }) => status === 'draining' && pollers === 0)
        .map(({ buildId }) =>
          needed(
            'current_build',
            `build ${buildId} drains, and no worker of it is left to end the sagas that it began: start one`,
          ),
        ),
      ...loopProblems(loops).map((problem) => needed('schedules', problem)),
      ...(schema === null ? [] : [needed('schema', schema)]),
      ...(attributes.length === 0
        ? []
        : [
            {
              what: 'search_attributes' as const,
              needed: false,
              problem: `search attributes that the namespace "${namespace}" lacks, so that workflows run without: ${attributes.join(', ')}`,
            },
          ]),
    ];
  } catch (error) {
    if (!isNamespaceMissing(error)) throw error;
    return [needed('namespace', describeMissingNamespace(namespace))];
  }
}

/** The open runs on another installation's queues whose ids are of instances and VMMs of this one, a line each; not all of many. */
async function findForeignRuns(db: Database, client: Client, installation: string): Promise<string[]> {
  const suspects: { readonly workflowId: string; readonly other: string; readonly subject: string }[] = [];
  const query = 'ExecutionStatus = "Running" AND TaskQueue STARTS_WITH "mooring-"';
  for await (const { workflowId, taskQueue } of client.workflow.list({ query })) {
    const other = installationOf(taskQueue);
    if (other === null || other === installation) continue;
    suspects.push({ workflowId, other, subject: workflowId.split('/').at(-1) ?? '' });
    if (suspects.length === MOST_SUSPECTS) break;
  }
  if (suspects.length === 0) return [];
  const owners = await findOwningInstances(
    db,
    suspects.map(({ subject }) => subject),
  );
  return suspects
    .filter(({ subject }) => owners.has(subject))
    .slice(0, MOST_NAMED)
    .map(({ workflowId, other }) => describeForeignRun(workflowId, installation, other));
}
const MOST_SUSPECTS = 1_000;
const MOST_NAMED = 10;

function needed(what: SurroundingName, problem: string): Missing {
  return { what, needed: true, problem };
}

function describeMissingNamespace(namespace: string): string {
  return `Temporal has no namespace "${namespace}": create it ("temporal operator namespace create --namespace ${namespace}"), or name another in TEMPORAL_NAMESPACE`;
}

/** What is wrong with the reconciling loops, as their schedules show it. */
function loopProblems(states: readonly LoopState[], expected: readonly ReconcilerName[] = RECONCILERS): string[] {
  const lost = expected.filter((name) => !states.some((state) => state.name === name));
  return [
    ...(lost.length === 0
      ? []
      : [
          `the schedules of these reconciling loops are missing: ${lost.join(', ')}; a worker makes them again within seconds`,
        ]),
    ...states
      .filter(({ isOverdue }) => isOverdue)
      .map(
        ({ name, lastRun }) =>
          `the reconciling loop "${name}" has not run since ${lastRun?.toISOString()}: no worker takes it`,
      ),
  ];
}

/** Looks, and says what was found. */
export class Surroundings {
  readonly #options: SurroundingsOptions;
  #missing: readonly Missing[] = [];
  /** What the last look missed, before it was sure. */
  #suspected: ReadonlySet<string> = new Set();
  #looks = 0;
  #timer: NodeJS.Timeout | null = null;
  #looking: Promise<void> | null = null;
  #stopped = false;
  #otherWasCurrentAt: number | null = null;
  #loopStates: readonly LoopState[] = [];
  #loopsSeenAt = 0;
  /** The loops whose schedules were seen once. */
  readonly #seenLoops = new Set<string>();
  readonly #endListening: () => void;
  readonly #ages: ServerAges;

  private constructor(options: SurroundingsOptions) {
    this.#options = options;
    this.#ages = ServerAges.of(options.temporal.client);
    this.#endListening = options.temporal.searchAttributes.onRefused(() => this.#schedule(0));
  }

  /**
   * Looks for the first time, and goes on looking until it is stopped. Throws when the first look can't make what a worker needs,
   * and where it finds another database's workers on its queues. An API begins without the rest, and is not ready.
   */
  static async begin(options: SurroundingsOptions): Promise<Surroundings> {
    const surroundings = new Surroundings(options);
    try {
      await surroundings.#look(true);
    } catch (error) {
      if (options.duties !== null || error instanceof ForeignInstallation) {
        surroundings.stop();
        throw error;
      }
      options.log.warn({ err: error }, 'the surroundings could not be looked at yet');
    }
    surroundings.#schedule();
    return surroundings;
  }

  /** What is missing, as the last look found it. */
  get missing(): readonly Missing[] {
    return this.#missing;
  }

  /** What keeps the process from doing its work, for people. */
  get problems(): string[] {
    return this.#missing.filter(({ needed }) => needed).map(({ problem }) => problem);
  }

  /** What it does without. */
  get notes(): string[] {
    return this.#missing.filter(({ needed }) => !needed).map(({ problem }) => problem);
  }

  /** For how long each loop that is switched on has not run, in milliseconds, as far as the last look at them knows. */
  get loops(): { readonly name: string; readonly silentMs: number }[] {
    return this.#loopStates.flatMap(({ name, lastRun, silentMs }) =>
      lastRun === null ? [] : [{ name, silentMs: silentMs + performance.now() - this.#loopsSeenAt }],
    );
  }

  /** Ends the looks. One that is under way ends with its connections. */
  stop(): void {
    this.#stopped = true;
    this.#endListening();
    if (this.#timer !== null) clearTimeout(this.#timer);
  }

  #schedule(inMs?: number): void {
    if (this.#stopped) return;
    if (this.#timer !== null) clearTimeout(this.#timer);
    const everyMs = this.#options.everyMs ?? LOOK_EVERY_MS;
    const isSoon =
      this.#missesNeeded() || [...this.#suspected].some((what) => !this.#missing.some((one) => one.what === what));
    const ms = inMs ?? Math.min(isSoon ? LOOK_SOON_MS : everyMs, everyMs) * (0.8 + 0.4 * Math.random());
    this.#timer = setTimeout(() => {
      this.#timer = null;
      this.#looking ??= this.#look(false)
        .catch((error: unknown) => {
          // Whether PostgreSQL and Temporal answer is asked by every question for readiness.
          this.#options.log.debug({ err: error }, 'a look at the surroundings failed');
        })
        .finally(() => {
          this.#looking = null;
          if (this.#timer === null) this.#schedule();
        });
    }, ms);
    this.#timer.unref();
  }

  #missesNeeded(): boolean {
    return this.#missing.some(({ needed }) => needed);
  }

  /** One look at everything. What it misses for the first time is looked at once more before it is said, but for the first look. */
  async #look(isFirst: boolean): Promise<void> {
    const { db, temporal, log } = this.#options;
    const found: Missing[] = [];
    try {
      if (!isFirst) await temporal.searchAttributes.look();
      const attributes = temporal.searchAttributes.problem;
      if (attributes !== null) found.push({ what: 'search_attributes', needed: false, problem: attributes });
      const foreign = temporal.foreignRuns.problem;
      if (foreign !== null) found.push({ what: 'own_queues', needed: false, problem: foreign });
      found.push(...(await this.#queues(isFirst)));
      const isDue = isFirst || this.#looks % LOOKS_A_SCHEDULE === 0 || this.#missesNeeded();
      if (isDue || found.some((one) => one.needed)) found.push(...(await this.#loops()));
      else found.push(...this.#missing.filter(({ what }) => what === 'schedules'));
      const schema = await readSchemaProblem(db);
      if (schema !== null) found.push(needed('schema', schema));
    } catch (error) {
      if (!isNamespaceMissing(error)) throw error;
      const problem = describeMissingNamespace(temporal.client.options.namespace);
      found.splice(0, found.length, needed('namespace', problem));
      if (isFirst && this.#options.duties !== null) throw new Error(problem, { cause: error });
    }
    this.#looks += 1;
    this.#settle(found, isFirst, log);
  }

  #settle(found: readonly Missing[], isFirst: boolean, log: Logger): void {
    const known = new Set(this.#missing.map(({ what }) => what));
    const sure = found.filter(({ what, needed }) => isFirst || !needed || known.has(what) || this.#suspected.has(what));
    this.#suspected = new Set(found.map(({ what }) => what));
    const before = new Map(this.#missing.map(({ what, problem }) => [what, problem]));
    // The search attributes have lines of their own.
    for (const { what, needed, problem } of sure)
      if (needed && before.get(what) !== problem) log.error({ missing: what }, problem);
    for (const what of before.keys())
      if (!this.#suspected.has(what) && what !== 'search_attributes')
        log.info({ missing: what }, `${what} is there again`);
    this.#missing = sure;
  }

  /** Who polls, and for which build; where none is current, a worker that is versioned sees to it. */
  async #queues(isFirst: boolean): Promise<Missing[]> {
    const { temporal, log, duties } = this.#options;
    const { client } = temporal;
    const installation = await temporal.installation();
    let queues = await this.#polledQueues(installation.id);
    const foreign = foreignPollers(queues, installation);
    const problems: Missing[] = [];
    if (foreign.length > 0) {
      const problem = describeForeign(installation.id, foreign);
      if (isFirst) throw new ForeignInstallation(problem);
      problems.push(needed('own_queues', problem));
    }
    const buildId = duties?.buildId ?? null;
    if (buildId !== null && (isFirst || queues.some(({ routing }) => routing.currentBuild === null))) {
      if (isFirst || this.#mayTakeOver()) {
        const current = await settleBuild(client, installation.id, buildId, log);
        this.#otherWasCurrentAt = current === buildId ? null : performance.now();
        queues = await this.#polledQueues(installation.id);
      }
    } else if (buildId !== null && queues.some(({ routing }) => routing.currentBuild !== buildId))
      this.#otherWasCurrentAt = performance.now();
    const until = performance.now() + POLLING_MS;
    while (isFirst && duties !== null && unservedQueues(queues).length > 0 && performance.now() < until) {
      await pause(POLLING_LOOK_MS);
      queues = await this.#polledQueues(installation.id);
    }
    return [
      ...problems,
      ...unservedQueues(queues).map((unserved) => needed('current_build', describeUnserved(unserved))),
    ];
  }

  #polledQueues(installation: string) {
    return readPolledQueues(this.#options.temporal.client, installation, ['workflow'], this.#ages);
  }

  /** Whether no other build was current a moment ago: that one comes first when a server has forgotten all of them. */
  #mayTakeOver(): boolean {
    return this.#otherWasCurrentAt === null || performance.now() - this.#otherWasCurrentAt > LEAVE_TO_OTHERS_MS;
  }

  async #loops(): Promise<Missing[]> {
    const { temporal, log, duties } = this.#options;
    const { client } = temporal;
    if (duties !== null && duties.schedules === null) return [];
    const installation = await temporal.installation();
    let states: LoopState[];
    if (duties?.schedules == null) states = await readLoops(client, installation.id, this.#ages);
    else {
      states = await ensureSchedules(client, installation.id, duties.schedules, this.#ages).catch((error: unknown) => {
        if (this.#looks === 0 || isNamespaceMissing(error)) throw error;
        log.warn({ err: error }, 'the schedules of the reconciling loops could not be seen to');
        return readLoops(client, installation.id, this.#ages);
      });
      const made = states.filter((state) => state.made).map(({ name }) => name);
      if (made.length > 0 && this.#looks > 0)
        log.warn({ loops: made }, 'schedules of reconciling loops were missing: made again');
    }
    this.#loopStates = states;
    this.#loopsSeenAt = performance.now();
    for (const { name } of states) this.#seenLoops.add(name);
    // An API takes calls without them, and can't know which were ever to be.
    const expected = duties === null ? RECONCILERS.filter((name) => this.#seenLoops.has(name)) : RECONCILERS;
    return loopProblems(states, expected).map((problem) => ({ what: 'schedules', needed: duties !== null, problem }));
  }
}
