/**
 * Runs of workflows whose ids are ours and whose task queue is another installation's: the ids of instances, VMMs and sleds are
 * shared by a database and its copy. Such a run is not ours, and where it has the id that one of ours is to have, whose it is is said.
 */
import type { WorkflowClientInterceptor } from '@temporalio/client';
import {
  WorkflowExecutionAlreadyStartedError,
  WorkflowIdConflictPolicy,
  WorkflowNotFoundError,
} from '@temporalio/common';
import type { Logger } from 'pino';
import { Refusal } from '../model/refusal.ts';
import { installationOf } from '../model/workflow-names.ts';

/** How long a foreign run that was met is spoken of, in milliseconds: who meets it again says so anew. */
const SPOKEN_OF_MS = 120_000;
/** How many runs are remembered to be ours. */
const KNOWN_RUNS = 10_000;

/** What of a start's options matters here. */
interface Started {
  readonly options: {
    readonly workflowId?: string | undefined;
    readonly workflowIdConflictPolicy?: WorkflowIdConflictPolicy | undefined;
  };
}

/** What a run is looked up by, and what the server says of it that matters here. */
export type ReadQueue = (workflowId: string, runId?: string) => Promise<string | null>;

/** Which runs of one client are whose. */
export class ForeignRuns {
  readonly #installation: () => Promise<{ readonly id: string }>;
  readonly #readQueue: ReadQueue;
  readonly #log: Logger;
  readonly #ours = new Set<string>();
  #met: { readonly problem: string; readonly at: number } | null = null;

  /** `readQueue` tells the task queue of a workflow's run, by default its last; `null` where there is none. */
  constructor(installation: () => Promise<{ readonly id: string }>, readQueue: ReadQueue, log: Logger) {
    this.#installation = installation;
    this.#readQueue = readQueue;
    this.#log = log;
  }

  /** What was found of late; `null` for nothing. */
  get problem(): string | null {
    return this.#met !== null && performance.now() - this.#met.at < SPOKEN_OF_MS ? this.#met.problem : null;
  }

  /**
   * Starts a workflow by `next`. Only where its id is taken already is the server asked whose run has it. Throws a {@link Refusal}
   * that says whose it is, and what the start itself throws.
   */
  async start<Input extends Started, Result>(input: Input, next: (input: Input) => Promise<Result>): Promise<Result> {
    const { workflowId, workflowIdConflictPolicy } = input.options;
    const joins = workflowIdConflictPolicy === WorkflowIdConflictPolicy.USE_EXISTING;
    try {
      // A server that joins does not say whether it has.
      return await next(
        joins
          ? { ...input, options: { ...input.options, workflowIdConflictPolicy: WorkflowIdConflictPolicy.FAIL } }
          : input,
      );
    } catch (error) {
      if (!(error instanceof WorkflowExecutionAlreadyStartedError) || workflowId === undefined) throw error;
      const problem = await this.#examine(workflowId, await this.#readQueue(workflowId));
      // Not kept for a key: once the copy has a namespace of its own, the same call goes through.
      if (problem !== null) throw Refusal.unavailable(problem);
      if (!joins) throw error;
      return next(input);
    }
  }

  /** Looks, behind a signal that has gone to a run or begun one, whose it is; never throws, and asks once for each run. */
  async signalled(workflowId: string, runId: string): Promise<void> {
    if (this.#ours.has(runId)) return;
    const queue = await this.#readQueue(workflowId, runId).catch(() => null);
    const problem = queue === null ? null : await this.#examine(workflowId, queue).catch(() => null);
    if (queue === null || problem !== null) return;
    if (this.#ours.size >= KNOWN_RUNS) this.#ours.clear();
    this.#ours.add(runId);
  }

  /** Throws that there is no such run where one that was looked up is another installation's. */
  async described(workflowId: string, runId: string | undefined, queue: string): Promise<void> {
    const problem = await this.#examine(workflowId, queue);
    if (problem !== null) throw new WorkflowNotFoundError(problem, workflowId, runId);
  }

  async #examine(workflowId: string, queue: string | null): Promise<string | null> {
    const other = queue === null ? null : installationOf(queue);
    const { id } = await this.#installation();
    if (other === null || other === id) return null;
    const problem = describeForeignRun(workflowId, id, other);
    if (this.problem !== problem) this.#log.error({ workflow_id: workflowId, installation: other }, problem);
    this.#met = { problem, at: performance.now() };
    return problem;
  }
}

/** Says whose a run is, and what to do. */
export function describeForeignRun(workflowId: string, installation: string, other: string): string {
  return `the workflow ${workflowId} runs for another installation, ${other}, on the same Temporal namespace: its database and that of this one, ${installation}, share their ids, so one is a copy of the other. Nothing was done here: give the copy a namespace of its own (TEMPORAL_NAMESPACE)`;
}

/** What every call of a client's goes through, once it knows its queue. */
export function foreignRunInterceptor(runs: ForeignRuns): WorkflowClientInterceptor {
  return {
    startWithDetails: (input, next) => runs.start(input, next),
    signalWithStart: async (input, next) => {
      const runId = await next(input);
      const { workflowId } = input.options;
      // Nobody waits for it: a signal is sent time and again.
      if (workflowId !== undefined) void runs.signalled(workflowId, runId);
      return runId;
    },
    describe: async (input, next) => {
      const found = await next(input);
      const { workflowId, runId } = input.workflowExecution;
      const queue = found.executionConfig?.taskQueue?.name ?? found.workflowExecutionInfo?.taskQueue;
      await runs.described(workflowId ?? '', runId ?? undefined, queue ?? '');
      return found;
    },
  };
}
