/**
 * How a call becomes a run of a saga and gets its outcome: two calls that are one operation join one workflow and get one
 * outcome; a call that would wait too long gets the operation to follow instead.
 */
import { setTimeout as pause } from 'node:timers/promises';
import {
  type Client,
  WorkflowExecutionAlreadyStartedError,
  WorkflowFailedError,
  type WorkflowHandle,
  WorkflowNotFoundError,
} from '@temporalio/client';
import { ApplicationFailure, defaultPayloadConverter, WorkflowIdConflictPolicy } from '@temporalio/common';
import type { z } from 'zod';
import type { Database } from '../db/connect.ts';
import { readOperation } from '../db/queries/read-operation.ts';
import { recordOperation } from '../db/transactions/record-operation.ts';
import { settleKey } from '../db/transactions/settle-key.ts';
import { takeKey } from '../db/transactions/take-key.ts';
import { errorBody, type OperationError } from '../model/failures.ts';
import { Refusal } from '../model/refusal.ts';
import type { KeyedCall, OperationKind } from '../model/states.ts';
import type { InstanceMigrateInput, InstanceStartInput, WorkflowTypes } from '../model/workflow-inputs.ts';
import { TASK_QUEUE, workflowIds } from '../model/workflow-names.ts';
import type { RequestAudit } from './audit.ts';
import { within } from './time-limit.ts';

/** The outcome of an operation that failed, as its caller gets it. */
export class OperationFailed extends Error {
  override readonly name = 'OperationFailed';
  readonly body: OperationError;

  constructor(body: OperationError) {
    super(body.message);
    this.body = body;
  }
}

/** What a call asks for: a run of a saga on an instance. */
export type OperationRequest = Saga & {
  /** What the Temporal Web UI shows of the run, in one line. */
  readonly summary: string;
  /** How long the call waits for the outcome, in milliseconds. */
  readonly waitMs: number;
  /** The client's key for this call: see {@link Operations.repeated}. */
  readonly key?: { readonly value: string; readonly call: KeyedCall } | undefined;
  /** Which open run may be joined by this call: one with such an input. The call is refused beside any other. Default: any. */
  readonly joinable?: { readonly input: z.ZodType; readonly refusal: string };
  /** The audit record of the call: it is written before anything is begun. */
  readonly audit?: RequestAudit | null | undefined;
};

type Saga =
  | { readonly kind: 'start'; readonly input: InstanceStartInput }
  | { readonly kind: 'migrate'; readonly input: InstanceMigrateInput };

export interface OperationAnswer {
  readonly operationId: string;
  /** Whether it has succeeded; otherwise it is under way. */
  readonly done: boolean;
}

/** An open run of a saga. */
interface OpenRun {
  readonly handle: WorkflowHandle;
  readonly runId: string;
  /** Whether it was begun by an earlier call. */
  readonly joined: boolean;
}

/** How long until a Temporal server that did not answer is asked again, in milliseconds. */
const ASK_AGAIN_MS = 250;
/** How often a run that was over already is waited out before a new one begins. */
const MAX_STALE_RUNS = 5;

/** Begins or joins operations. */
export class Operations {
  readonly #client: Client;
  readonly #db: Database;

  constructor(client: Client, db: Database) {
    this.#client = client;
    this.#db = db;
  }

  /**
   * Takes the key of a call; where an earlier call took it, waits for that one's outcome: the same call again, after its
   * answer was lost, is the same operation. `null` when nothing was begun under it yet. Throws {@link OperationFailed} with
   * the operation's error, and a {@link Refusal} for a key of another call.
   */
  async repeated(request: OperationRequest): Promise<OperationAnswer | null> {
    const { key, audit, input } = request;
    if (key === undefined) {
      await audit?.begin();
      return null;
    }
    const begun = audit?.begun() ?? null;
    const taken = await takeKey(this.#db, { key: key.value, call: key.call, instanceId: input.instanceId }, begun);
    if (begun !== null) audit?.noted(begun);
    if (taken.fresh) return null;
    const operationId = taken.operationId ?? (await this.#findByKey(workflowIdOf(request), key.value));
    if (operationId === null) return null;
    if (taken.operationId === null) await settleKey(this.#db, key.value, operationId);
    const row = await readOperation(this.#db, operationId);
    if (row?.error) throw new OperationFailed(row.error);
    if (row?.succeeded) return { operationId, done: true };
    const handle = this.#client.workflow.getHandle(workflowIdOf(request), operationId);
    return { operationId, done: await this.#wait(handle, request, operationId, performance.now() + request.waitMs) };
  }

  /** Finds the run that an API began under a key and could not record: it ended between the two. */
  async #findByKey(workflowId: string, key: string): Promise<string | null> {
    for await (const run of this.#client.workflow.list({ query: `WorkflowId = "${workflowId}"` })) {
      if (run.memo?.idempotencyKey === key) return run.runId;
    }
    const latest = await this.#client.workflow
      .getHandle(workflowId)
      .describe()
      .catch(() => null);
    return latest?.memo?.idempotencyKey === key ? latest.runId : null;
  }

  /**
   * Begins an operation, or joins the one that is open, and waits for its outcome. Throws {@link OperationFailed} with the
   * saga's error, and a {@link Refusal} beside an open run that it may not join.
   */
  async run(request: OperationRequest): Promise<OperationAnswer> {
    const deadline = performance.now() + request.waitMs;
    for (let stale = 0; ; stale++) {
      const { handle, runId, joined } = await this.#startOrJoin(request, deadline);
      if (request.key !== undefined) await settleKey(this.#db, request.key.value, runId, request.audit?.id);
      const before = joined ? await readOperation(this.#db, runId) : null;
      // A run whose outcome was known before this call asked is not this call's: it was only closing.
      const isStale = before?.timeEnded != null && stale < MAX_STALE_RUNS;
      try {
        const done = await this.#wait(handle, request, runId, deadline);
        if (!(done && isStale)) return { operationId: runId, done };
      } catch (error) {
        if (!(error instanceof OperationFailed && isStale)) throw error;
      }
    }
  }

  /** Joins the open run of a workflow, if there is one. Returns `null` when there is none. */
  async joinOpen(request: OperationRequest): Promise<OperationAnswer | null> {
    const workflowId = workflowIdOf(request);
    const operationId = await this.#openRunId(workflowId).catch((error: unknown) => {
      if (error instanceof WorkflowNotFoundError) return null;
      throw error;
    });
    if (operationId === null) return null;
    const handle = this.#client.workflow.getHandle(workflowId, operationId);
    return { operationId, done: await this.#wait(handle, request, operationId, performance.now() + request.waitMs) };
  }

  /** The run of a workflow that is open; `null` when its last one has closed. Throws when there never was one. */
  async #openRunId(workflowId: string): Promise<string | null> {
    const { status, runId } = await this.#client.workflow.getHandle(workflowId).describe();
    return status.name === 'RUNNING' ? runId : null;
  }

  async #startOrJoin(request: OperationRequest, deadline: number): Promise<OpenRun> {
    const workflowId = workflowIdOf(request);
    for (;;) {
      try {
        const handle = await this.#start(request);
        return { handle, runId: handle.firstExecutionRunId, joined: false };
      } catch (error) {
        if (!(error instanceof WorkflowExecutionAlreadyStartedError)) throw error;
      }
      const runId = await this.#openRunId(workflowId);
      // It closed between the two calls: begin anew.
      if (runId === null) continue;
      const { joinable } = request;
      if (joinable !== undefined && !joinable.input.safeParse(await this.#inputOf(workflowId, runId)).success) {
        // Its outcome is known: it is only closing, and stands in nobody's way.
        const { timeEnded } = (await readOperation(this.#db, runId)) ?? {};
        if (timeEnded && (await this.#closes(workflowId, runId, deadline))) continue;
        throw Refusal.conflict(joinable.refusal);
      }
      return { handle: this.#client.workflow.getHandle(workflowId, runId), runId, joined: true };
    }
  }

  #start(request: OperationRequest) {
    const options = {
      workflowId: workflowIdOf(request),
      taskQueue: TASK_QUEUE,
      workflowIdConflictPolicy: WorkflowIdConflictPolicy.FAIL,
      staticSummary: request.summary,
      ...(request.key === undefined ? {} : { memo: { idempotencyKey: request.key.value } }),
    };
    const { workflow } = this.#client;
    return request.kind === 'start'
      ? workflow.start<WorkflowTypes['instanceStart']>('instanceStart', { ...options, args: [request.input] })
      : workflow.start<WorkflowTypes['instanceMigrate']>('instanceMigrate', { ...options, args: [request.input] });
  }

  /** What a run was started with; `null` when its history doesn't show it. */
  async #inputOf(workflowId: string, runId: string): Promise<unknown> {
    const { events } = await this.#client.workflow.getHandle(workflowId, runId).fetchHistory();
    const payload = events?.[0]?.workflowExecutionStartedEventAttributes?.input?.payloads?.[0];
    return payload == null ? null : defaultPayloadConverter.fromPayload(payload);
  }

  /** Waits until a run has closed; `false` when the deadline came first. */
  async #closes(workflowId: string, runId: string, deadline: number): Promise<boolean> {
    const closed = this.#client.workflow
      .getHandle(workflowId, runId, { followRuns: false })
      .result()
      .catch((error: unknown) => {
        if (!(error instanceof WorkflowFailedError)) throw error;
      });
    return (await within(deadline - performance.now(), closed)) !== 'late';
  }

  /**
   * Waits for a run's outcome until the deadline; `false` when it is still open then. A Temporal server that is away leaves
   * the outcome open: it is asked again, and the operation's own row is looked at meanwhile.
   */
  async #wait(
    handle: WorkflowHandle,
    request: OperationRequest,
    operationId: string,
    deadline: number,
  ): Promise<boolean> {
    const answered = new AbortController();
    const outcome = async () => {
      for (;;) {
        if (await this.#hasSucceeded(handle, request, operationId, answered.signal)) return 'done';
        await pause(ASK_AGAIN_MS, undefined, { signal: answered.signal });
      }
    };
    try {
      if ((await within(deadline - performance.now(), outcome())) === 'done') return true;
    } finally {
      // A poll that nobody waits for would outlive the call, and meet a closed connection when the API stops.
      answered.abort();
    }
    // Whoever is sent to an operation must find it, even if its claim has not run yet.
    await recordOperation(this.#db, {
      id: operationId,
      kind: request.kind,
      instanceId: request.input.instanceId,
      workflowId: workflowIdOf(request),
    });
    return false;
  }

  /**
   * Whether a run has succeeded; `false` when Temporal could not be asked and the operation's row has no outcome. Throws
   * {@link OperationFailed} when it has failed.
   */
  async #hasSucceeded(
    handle: WorkflowHandle,
    request: OperationRequest,
    operationId: string,
    signal: AbortSignal,
  ): Promise<boolean> {
    try {
      await this.#client.withAbortSignal(signal, () => handle.result());
      return true;
    } catch (error) {
      if (error instanceof WorkflowFailedError) throw failureOf(error, request.kind);
      if (signal.aborted) return false;
      const row = await readOperation(this.#db, operationId).catch(() => null);
      if (row?.error) throw new OperationFailed(row.error);
      return row?.succeeded === true;
    }
  }
}

function workflowIdOf({ kind, input }: Saga): string {
  return workflowIds[kind](input.instanceId);
}

function failureOf(error: WorkflowFailedError, kind: OperationKind): OperationFailed {
  const { cause } = error;
  const body = cause instanceof ApplicationFailure ? (cause.details?.[0] as OperationError | undefined) : undefined;
  if (body !== undefined) return new OperationFailed(body);
  const message = `the ${kind} was ended by an operator (${error.message}); what it left is being undone: try again in a moment`;
  return new OperationFailed(errorBody('Conflict', message));
}
