/**
 * How a call becomes a run of a saga and hears its word: two calls that are one operation join one workflow and get one
 * outcome; a call that would wait too long gets the operation to follow instead.
 */
import { setTimeout as pause } from 'node:timers/promises';
import {
  type Client,
  WorkflowExecutionAlreadyStartedError,
  WorkflowFailedError,
  type WorkflowHandle,
} from '@temporalio/client';
import { ApplicationFailure, WorkflowIdConflictPolicy } from '@temporalio/common';
import { eq } from 'drizzle-orm';
import type { Database } from '../db/connect.ts';
import { operation } from '../db/schema.ts';
import { settleKey, takeKey } from '../db/transactions/idempotency-key.ts';
import type { OperationError } from '../model/failures.ts';
import { Refusal } from '../model/refusal.ts';
import { SAGA_STEPS, type SagaSteps } from '../model/saga-steps.ts';
import type { KeyedCall, OperationKind } from '../model/states.ts';
import { TASK_QUEUE } from '../model/workflow-names.ts';
import { CALL_TIMEOUT_MS as TEMPORAL_CALL_MS } from '../temporal/connection.ts';
import type { OperationProgress } from '../wire/operator-api/operations.ts';
import type { RequestAudit } from './audit.ts';

/** The outcome of an operation that failed, as its caller gets it. */
export class OperationFailed extends Error {
  override readonly name = 'OperationFailed';
  readonly body: OperationError;

  constructor(body: OperationError) {
    super(body.message);
    this.body = body;
  }
}

export interface OperationRequest {
  readonly kind: OperationKind;
  readonly instanceId: string;
  readonly workflowId: string;
  readonly workflowType: 'instanceStart' | 'instanceMigrate';
  readonly args: [unknown];
  readonly summary: string;
  readonly waitMs: number;
  /** The client's key for this call: see {@link Operations.repeated}. */
  readonly key?: { readonly value: string; readonly call: KeyedCall } | undefined;
  /** Whether a run that is open, with its input, may be joined by this call; otherwise it is a conflict. Default: yes. */
  readonly mayJoin?: (input: unknown) => boolean;
  /** The way of the call onto the audit log: it is on record before anything is begun. */
  readonly audit?: RequestAudit | null | undefined;
}

export interface OperationAnswer {
  readonly operationId: string;
  readonly done: boolean;
}

/** How long until a Temporal server that did not answer is asked again, in milliseconds. */
const ASK_AGAIN_MS = 250;
/** How often a run that was over already is waited out before a new one begins. */
const MAX_STALE_RUNS = 5;

/** Begins or joins operations. */
export class Operations {
  readonly #client: Client;
  readonly #db: Database;
  readonly #callMs: number;

  /** `callMs` bounds each call to Temporal, in milliseconds, the wait for a saga's word aside. */
  constructor(client: Client, db: Database, callMs = TEMPORAL_CALL_MS) {
    this.#client = client;
    this.#db = db;
    this.#callMs = callMs;
  }

  #call<Result>(call: () => Promise<Result>): Promise<Result> {
    return this.#client.withDeadline(Date.now() + this.#callMs, call);
  }

  /**
   * Takes the key of a call; where an earlier call took it, hears that one's outcome: the same call again, after its
   * answer was lost, is the same operation. `null` when nothing was begun under it yet. Throws {@link OperationFailed} with
   * the operation's error, and a {@link Refusal} for a key of another call.
   */
  async repeated(request: OperationRequest): Promise<OperationAnswer | null> {
    const { key, instanceId, workflowId, audit } = request;
    if (key === undefined) {
      await audit?.begin();
      return null;
    }
    const begun = audit?.begun() ?? null;
    const taken = await takeKey(this.#db, { key: key.value, call: key.call, instanceId }, begun);
    if (begun !== null) audit?.noted(begun);
    if (taken.fresh) return null;
    const operationId = taken.operationId ?? (await this.#findByKey(workflowId, key.value));
    if (operationId === null) return null;
    if (taken.operationId === null) await settleKey(this.#db, key.value, operationId);
    const row = await this.#read(operationId);
    if (row?.error) throw new OperationFailed(row.error);
    if (row?.succeeded) return { operationId, done: true };
    const handle = this.#client.workflow.getHandle(workflowId, operationId);
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
   * Begins an operation, or joins the one that is open, and waits for its word. Throws {@link OperationFailed} with the
   * saga's error.
   */
  async run(request: OperationRequest): Promise<OperationAnswer> {
    const deadline = performance.now() + request.waitMs;
    for (let stale = 0; ; stale++) {
      const handle = await this.#startOrJoin(request, deadline);
      const operationId = handle.runId;
      if (request.key !== undefined) await settleKey(this.#db, request.key.value, operationId, request.audit?.id);
      const before = handle.joined ? await this.#read(operationId) : null;
      const done = await this.#wait(handle.handle, request, operationId, deadline).catch((error: unknown) => {
        // A run whose outcome was known before this call asked is not this call's: it was only closing.
        if (before?.timeEnded && stale < MAX_STALE_RUNS && error instanceof OperationFailed) return 'stale' as const;
        throw error;
      });
      if (done === true && before?.timeEnded && stale < MAX_STALE_RUNS) continue;
      if (done === 'stale') continue;
      return { operationId, done };
    }
  }

  /** Joins the open run of a workflow, if there is one. Returns `null` when there is none. */
  async joinOpen(request: OperationRequest): Promise<OperationAnswer | null> {
    const handle = this.#client.workflow.getHandle(request.workflowId);
    const description = await this.#call(() => handle.describe()).catch((error: unknown) => {
      if (error instanceof Error && error.name === 'WorkflowNotFoundError') return null;
      throw error;
    });
    if (description?.status.name !== 'RUNNING') return null;
    const operationId = description.runId;
    const done = await this.#wait(
      this.#client.workflow.getHandle(request.workflowId, operationId),
      request,
      operationId,
      performance.now() + request.waitMs,
    );
    return { operationId, done };
  }

  async #startOrJoin(
    request: OperationRequest,
    deadline: number,
  ): Promise<{ handle: WorkflowHandle; runId: string; joined: boolean }> {
    for (;;) {
      try {
        const handle = await this.#call(() =>
          this.#client.workflow.start(request.workflowType, {
            workflowId: request.workflowId,
            taskQueue: TASK_QUEUE,
            args: request.args,
            workflowIdConflictPolicy: WorkflowIdConflictPolicy.FAIL,
            staticSummary: request.summary,
            ...(request.key === undefined ? {} : { memo: { idempotencyKey: request.key.value } }),
          }),
        );
        return { handle, runId: handle.firstExecutionRunId, joined: false };
      } catch (error) {
        if (!(error instanceof WorkflowExecutionAlreadyStartedError)) throw error;
      }
      const open = this.#client.workflow.getHandle(request.workflowId);
      const description = await this.#call(() => open.describe());
      // It closed between the two calls: begin anew.
      if (description.status.name !== 'RUNNING') continue;
      const { runId } = description;
      if (!(await this.#joinable(request, runId))) {
        // Its outcome is known: it is only closing, and stands in nobody's way.
        if ((await this.#read(runId))?.timeEnded && (await this.#closes(request.workflowId, runId, deadline))) continue;
        throw Refusal.conflict('another migration of this instance is on its way: wait until it is over');
      }
      return { handle: this.#client.workflow.getHandle(request.workflowId, runId), runId, joined: true };
    }
  }

  async #joinable(request: OperationRequest, runId: string): Promise<boolean> {
    if (request.mayJoin === undefined) return true;
    const handle = this.#client.workflow.getHandle(request.workflowId, runId);
    const { events } = await this.#call(() => handle.fetchHistory());
    const payload = events?.[0]?.workflowExecutionStartedEventAttributes?.input?.payloads?.[0]?.data;
    const input: unknown = payload ? JSON.parse(Buffer.from(payload).toString('utf8')) : null;
    return request.mayJoin(input);
  }

  /** Waits until a run has closed; `false` when the deadline came first. */
  async #closes(workflowId: string, runId: string, deadline: number): Promise<boolean> {
    const handle = this.#client.workflow.getHandle(workflowId, runId, { followRuns: false });
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<false>((resolve) => {
      timer = setTimeout(() => resolve(false), Math.max(0, deadline - performance.now()));
    });
    const closed = handle.result().then(
      () => true,
      (error: unknown) => {
        if (error instanceof WorkflowFailedError) return true;
        throw error;
      },
    );
    try {
      return await Promise.race([closed, late]);
    } finally {
      clearTimeout(timer);
    }
  }

  /**
   * Waits for a run's outcome until the deadline; `false` when it is still open then. A Temporal server that is away says
   * nothing about the outcome: it is asked again, and the operation's own row is looked at meanwhile.
   */
  async #wait(
    handle: WorkflowHandle,
    request: OperationRequest,
    operationId: string,
    deadline: number,
  ): Promise<boolean> {
    let timer: NodeJS.Timeout | undefined;
    const answered = new AbortController();
    const late = new Promise<'late'>((resolve) => {
      timer = setTimeout(() => resolve('late'), Math.max(0, deadline - performance.now()));
    });
    try {
      for (;;) {
        const outcome = await Promise.race([this.#outcome(handle, request, operationId, answered.signal), late]);
        if (outcome === 'done') return true;
        if (outcome === 'late') break;
        if ((await Promise.race([pause(ASK_AGAIN_MS), late])) === 'late') break;
      }
    } finally {
      clearTimeout(timer);
      // A poll that nobody waits for would outlive the call, and meet a closed connection when the API stops.
      answered.abort();
    }
    // Whoever is sent to an operation must find it, even if its claim has not run yet.
    await this.#db
      .insert(operation)
      .values({ id: operationId, kind: request.kind, instanceId: request.instanceId, workflowId: request.workflowId })
      .onConflictDoNothing();
    return false;
  }

  /** A run's outcome: `done`, {@link OperationFailed}, or `unknown` when Temporal could not be asked and no row says it. */
  async #outcome(
    handle: WorkflowHandle,
    request: OperationRequest,
    operationId: string,
    signal: AbortSignal,
  ): Promise<'done' | 'unknown'> {
    try {
      await this.#client.withAbortSignal(signal, () => handle.result());
      return 'done';
    } catch (error) {
      if (error instanceof WorkflowFailedError) throw failureOf(error, request);
      if (signal.aborted) return 'unknown';
      const row = await this.#read(operationId).catch(() => null);
      if (row?.error) throw new OperationFailed(row.error);
      return row?.succeeded ? 'done' : 'unknown';
    }
  }

  async #read(operationId: string) {
    const [row] = await this.#db.select().from(operation).where(eq(operation.id, operationId));
    return row ?? null;
  }

  /** The step that an open operation's saga is at, from Temporal; `null` between two steps, or when Temporal is away. */
  async progress(row: typeof operation.$inferSelect): Promise<OperationProgress | null> {
    const description = await this.#client.workflow
      .getHandle(row.workflowId, row.id)
      .describe()
      .catch(() => null);
    const [pending] = description?.raw.pendingActivities ?? [];
    const step = pending?.activityType?.name;
    if (pending == null || step == null) return null;
    const { title, undoing } = declaredStep(row.kind, step);
    return {
      phase: undoing ? 'undoing' : 'doing',
      step,
      title,
      attempt: pending.attempt ?? 1,
      last_failure: pending.lastFailure?.message ?? null,
    };
  }

  /** Reads an operation; one whose workflow was ended by hand has failed, whatever its row says. `null`: unknown. */
  async read(operationId: string): Promise<typeof operation.$inferSelect | null> {
    const row = await this.#read(operationId);
    if (row === null || row.timeEnded !== null) return row;
    const handle = this.#client.workflow.getHandle(row.workflowId, operationId);
    const description = await this.#call(() => handle.describe()).catch(() => null);
    if (description === null || description.status.name === 'RUNNING') return row;
    const again = await this.#read(operationId);
    if (again === null || again.timeEnded !== null) return again;
    if (description.status.name === 'COMPLETED')
      return { ...again, succeeded: true, timeEnded: description.closeTime ?? new Date() };
    return again;
  }
}

/** The declared step of an activity, and whether it undoes. */
function declaredStep(kind: OperationKind, activity: string): { title: string; undoing: boolean } {
  const { steps, compensations }: SagaSteps = SAGA_STEPS[kind === 'start' ? 'instanceStart' : 'instanceMigrate'];
  const compensation = compensations.find((step) => step.activity === activity);
  const title = (compensation ?? steps.find((step) => step.activity === activity))?.title ?? activity;
  return { title, undoing: compensation !== undefined };
}

function failureOf(error: WorkflowFailedError, request: OperationRequest): Error {
  const { cause } = error;
  const body = cause instanceof ApplicationFailure ? (cause.details?.[0] as OperationError | undefined) : undefined;
  if (body !== undefined) return new OperationFailed(body);
  return new OperationFailed({
    status: 409,
    error_code: 'Conflict',
    message: `the ${request.kind} was ended by an operator (${error.message}); what it left is being undone: try again in a moment`,
  });
}
