/**
 * How a call becomes a run of a saga and hears its word: two calls that are one operation join one workflow and get one
 * outcome; a call that would wait too long gets the operation to follow instead.
 */
import {
  type Client,
  WorkflowExecutionAlreadyStartedError,
  WorkflowFailedError,
  type WorkflowHandle,
} from '@temporalio/client';
import { ApplicationFailure, WorkflowIdConflictPolicy } from '@temporalio/common';
import { eq } from 'drizzle-orm';
import type { Database } from '../db/connect.ts';
import { type OperationError, operation } from '../db/schema.ts';
import { Refusal } from '../model/refusal.ts';
import type { OperationKind } from '../model/states.ts';
import { TASK_QUEUE } from '../model/workflow-names.ts';

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
  /** Whether a run that is open, with its input, may be joined by this call; otherwise it is a conflict. Default: yes. */
  readonly mayJoin?: (input: unknown) => boolean;
}

export interface OperationAnswer {
  readonly operationId: string;
  readonly done: boolean;
}

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
   * Begins an operation, or joins the one that is open, and waits for its word. Throws {@link OperationFailed} with the
   * saga's error.
   */
  async run(request: OperationRequest): Promise<OperationAnswer> {
    const deadline = performance.now() + request.waitMs;
    for (let stale = 0; ; stale++) {
      const handle = await this.#startOrJoin(request, deadline);
      const operationId = handle.runId;
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
    const description = await handle.describe().catch((error: unknown) => {
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
        const handle = await this.#client.workflow.start(request.workflowType, {
          workflowId: request.workflowId,
          taskQueue: TASK_QUEUE,
          args: request.args,
          workflowIdConflictPolicy: WorkflowIdConflictPolicy.FAIL,
          staticSummary: request.summary,
        });
        return { handle, runId: handle.firstExecutionRunId, joined: false };
      } catch (error) {
        if (!(error instanceof WorkflowExecutionAlreadyStartedError)) throw error;
      }
      const open = this.#client.workflow.getHandle(request.workflowId);
      const description = await open.describe();
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
    const { events } = await handle.fetchHistory();
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

  async #wait(
    handle: WorkflowHandle,
    request: OperationRequest,
    operationId: string,
    deadline: number,
  ): Promise<boolean> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<'late'>((resolve) => {
      timer = setTimeout(() => resolve('late'), Math.max(0, deadline - performance.now()));
    });
    try {
      const first = await Promise.race([handle.result().then(() => 'done' as const), late]);
      if (first === 'done') return true;
      // Whoever is sent to an operation must find it, even if its claim has not run yet.
      await this.#db
        .insert(operation)
        .values({ id: operationId, kind: request.kind, instanceId: request.instanceId, workflowId: request.workflowId })
        .onConflictDoNothing();
      return false;
    } catch (error) {
      throw error instanceof WorkflowFailedError ? failureOf(error, request) : error;
    } finally {
      clearTimeout(timer);
    }
  }

  async #read(operationId: string) {
    const [row] = await this.#db.select().from(operation).where(eq(operation.id, operationId));
    return row ?? null;
  }

  /** Reads an operation; one whose workflow was ended by hand has failed, whatever its row says. `null`: unknown. */
  async read(operationId: string): Promise<typeof operation.$inferSelect | null> {
    const row = await this.#read(operationId);
    if (row === null || row.timeEnded !== null) return row;
    const description = await this.#client.workflow
      .getHandle(row.workflowId, operationId)
      .describe()
      .catch(() => null);
    if (description === null || description.status.name === 'RUNNING') return row;
    const again = await this.#read(operationId);
    if (again === null || again.timeEnded !== null) return again;
    if (description.status.name === 'COMPLETED')
      return { ...again, succeeded: true, timeEnded: description.closeTime ?? new Date() };
    return again;
  }
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
