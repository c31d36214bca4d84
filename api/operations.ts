/**
 * How a call becomes a run of a saga and gets its outcome: two calls that are one operation join one workflow and get one
 * outcome; a call that would wait too long gets the operation to follow instead.
 */
import { randomUUID } from 'node:crypto';
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
import type { OutcomeListener } from '../db/operation-outcomes.ts';
import { readOperation } from '../db/queries/read-operation.ts';
import { giveKeyBack } from '../db/transactions/give-key-back.ts';
import { recordFailedOperation, recordOperation } from '../db/transactions/record-operation.ts';
import { settleKey } from '../db/transactions/settle-key.ts';
import { KEY_TURN_MS, type RequestKey, type TakenKey, takeKey } from '../db/transactions/take-key.ts';
import { errorBody, type OperationError } from '../model/failures.ts';
import { Refusal } from '../model/refusal.ts';
import type { OperationKind } from '../model/states.ts';
import type { InstanceMigrateInput, InstanceStartInput, WorkflowTypes } from '../model/workflow-inputs.ts';
import { TASK_QUEUE, workflowIds } from '../model/workflow-names.ts';
import { within } from '../platform/host/with-limit.ts';
import { namedSubject, type SubjectNames } from '../temporal/subject-names.ts';
import type { RequestAudit } from './audit.ts';
import { beginWithin } from './begin-within.ts';

/** The outcome of an operation that failed, as its caller gets it. */
export class OperationFailed extends Error {
  override readonly name = 'OperationFailed';
  readonly body: OperationError;
  readonly operationId: string;

  constructor(body: OperationError, operationId: string) {
    super(body.message);
    this.body = body;
    this.operationId = operationId;
  }
}

/** What a call asks for: a run of a saga on an instance. */
export type OperationRequest = Saga & {
  /** What the Temporal Web UI shows of the run, in one line. */
  readonly summary: string;
  /** The names that the caller has read; those that it needs and are not here are read once more. */
  readonly names?: SubjectNames | undefined;
  /** How long the call waits for the outcome, in milliseconds. */
  readonly waitMs: number;
  /** The client's key for this call, which it has taken: see {@link Operations.once}. */
  readonly key?: RequestKey | undefined;
  /** Which open run may be joined by this call: one with such an input. The call is refused beside any other. Default: any. */
  readonly joinable?: { readonly input: z.ZodType; readonly refusal: string };
  /** The audit record of the call, which is written already: it gets the operation. */
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
}

/** How long until a Temporal server that did not answer is asked again, in milliseconds. */
const ASK_AGAIN_MS = 250;
/** How long until it is looked again whether another sending of the same request has begun its saga, in milliseconds: at first, and at most. */
const LOOK_AGAIN_MS = 100;
const MAX_LOOK_AGAIN_MS = 1_000;
/**
 * How long an outcome is only listened for before Temporal is asked too, in milliseconds: most are there by then, and a call
 * less is held open.
 */
const LISTEN_FIRST_MS = 1_000;
/**
 * How long an earlier run whose outcome is known may take to close, in milliseconds, even where the call would wait for less:
 * longer than the server takes to notice that a worker has died with the run's last task (10 s).
 */
const CLOSING_MS = 12_000;

/** For where nobody listens: every outcome comes from Temporal. */
const NOBODY_LISTENS: OutcomeListener = {
  hears: false,
  heard: () => new Promise(() => {}),
  whileItHears: async () => {},
};

/** Begins or joins operations. */
export class Operations {
  readonly #client: Client;
  readonly #db: Database;
  readonly #outcomes: OutcomeListener;

  constructor(client: Client, db: Database, outcomes: OutcomeListener = NOBODY_LISTENS) {
    this.#client = client;
    this.#db = db;
    this.#outcomes = outcomes;
  }

  /**
   * Answers a request once, however often it is sent under its key: with what `begin` does, by {@link run} or
   * {@link joinOpen}, or with the outcome of the operation that another sending of it began, or its final refusal. Of two at once, one begins, and
   * the other waits to hear what; where nothing was begun, it has the turn. Throws what `begin` throws, and
   * {@link OperationFailed} with the operation's error.
   */
  async once<Answer extends OperationAnswer | null>(
    request: OperationRequest,
    taken: TakenKey | null,
    begin: () => Promise<Answer>,
  ): Promise<Answer | OperationAnswer> {
    const { key } = request;
    if (key === undefined || taken === null) return begin();
    const repeated = await this.#repeated(request, key, taken);
    if (repeated !== null) return repeated;
    const giveBack = (refused: Refusal | null = null) =>
      // Where the database is away, the turn is over in a while.
      giveKeyBack(this.#db, key, refused?.kept).catch(() => {});
    try {
      const begun = await begin();
      if (begun === null) await giveBack();
      return begun;
    } catch (error) {
      // After any other error a saga may have begun.
      if (error instanceof Refusal) await giveBack(error);
      throw error;
    }
  }

  /**
   * The outcome of the operation that an earlier sending of a request began; `null` when it is this one's turn to begin.
   * Throws a {@link Refusal} when another one is at it for longer than it may.
   */
  async #repeated(request: OperationRequest, key: RequestKey, taken: TakenKey): Promise<OperationAnswer | null> {
    const begunMs = performance.now();
    const deadline = begunMs + request.waitMs;
    let known = taken;
    for (let lookMs = LOOK_AGAIN_MS; !known.fresh; lookMs = Math.min(2 * lookMs, MAX_LOOK_AGAIN_MS)) {
      if (known.refusal !== null) throw new Refusal(known.refusal.code, known.refusal.message);
      const operationId =
        known.operationId ?? (await this.#beginning(deadline, () => this.#findByKey(workflowIdOf(request), key.value)));
      if (operationId !== null) {
        if (known.operationId === null) await settleKey(this.#db, key.value, operationId);
        return this.#follow(request, operationId, deadline);
      }
      if (known.mine) return null;
      if (performance.now() > Math.max(deadline, begunMs + 2 * KEY_TURN_MS)) throw stillAtIt(request.kind);
      await pause(lookMs);
      known = await takeKey(this.#db, key, request.input.instanceId);
    }
    return null;
  }

  /** Finds the run that an API began under a key and could not record: it ended between the two. */
  async #findByKey(workflowId: string, key: string): Promise<string | null> {
    for await (const run of this.#client.workflow.list({ query: `WorkflowId = "${workflowId}"` })) {
      // Of another installation that shares its ids, what was begun under this key is none of ours: the look-up below knows.
      if (run.memo?.idempotencyKey === key && (await this.#isOurs(workflowId, run.runId))) return run.runId;
    }
    const latest = await this.#client.workflow
      .getHandle(workflowId)
      .describe()
      .catch(() => null);
    return latest?.memo?.idempotencyKey === key ? latest.runId : null;
  }

  /** Whether a run can be looked up: another installation's can't. */
  async #isOurs(workflowId: string, runId: string): Promise<boolean> {
    try {
      await this.#client.workflow.getHandle(workflowId, runId).describe();
      return true;
    } catch (error) {
      if (error instanceof WorkflowNotFoundError) return false;
      throw error;
    }
  }

  /**
   * Begins an operation, or joins the one that is open, and waits for its outcome. Throws {@link OperationFailed} with the
   * saga's error, and a {@link Refusal} beside an open run that it may not join, or that is over and does not close.
   */
  async run(request: OperationRequest): Promise<OperationAnswer> {
    const deadline = performance.now() + request.waitMs;
    const { handle, runId } = await this.#startOrJoin(request, deadline);
    if (request.key !== undefined) await settleKey(this.#db, request.key.value, runId, request.audit?.id);
    return { operationId: runId, done: await this.#wait(handle, request, runId, deadline) };
  }

  /**
   * Records that a request's saga could not be begun, and why, as an operation that has failed, since it has no run that could
   * say so. Returns its id.
   */
  async recordNotBegun(request: OperationRequest, error: OperationError): Promise<string> {
    const id = randomUUID();
    const { kind, input } = request;
    await recordFailedOperation(
      this.#db,
      { id, kind, instanceId: input.instanceId, workflowId: workflowIdOf(request) },
      error,
    );
    return id;
  }

  /** Joins the open run of a workflow, if there is one that it may join. Returns `null` when there is none. */
  async joinOpen(request: OperationRequest): Promise<OperationAnswer | null> {
    const deadline = performance.now() + request.waitMs;
    const workflowId = workflowIdOf(request);
    const open = await this.#beginning(deadline, async () => {
      const operationId = await this.#openRunId(workflowId).catch((error: unknown) => {
        if (error instanceof WorkflowNotFoundError) return null;
        throw error;
      });
      return operationId !== null && (await this.#mayJoin(request, operationId)) ? operationId : null;
    });
    if (open === null) return null;
    const { key, audit } = request;
    if (key !== undefined) await settleKey(this.#db, key.value, open, audit?.id);
    return this.#follow(request, open, deadline);
  }

  /** The answer of an operation that an earlier call began; its workflow may be over already, and only closing. */
  async #follow(request: OperationRequest, operationId: string, deadline: number): Promise<OperationAnswer> {
    const recorded = await this.#recorded(operationId);
    if (recorded instanceof OperationFailed) throw recorded;
    if (recorded === 'succeeded') return { operationId, done: true };
    const handle = this.#client.workflow.getHandle(workflowIdOf(request), operationId);
    return { operationId, done: await this.#wait(handle, request, operationId, deadline) };
  }

  /** The outcome of an operation that is on record; `null` when none is. */
  async #recorded(operationId: string): Promise<Outcome | null> {
    const row = await readOperation(this.#db, operationId);
    if (row?.error) return new OperationFailed(row.error, operationId);
    return row?.succeeded ? 'succeeded' : null;
  }

  /** The run of a workflow that is open, if only paused; `null` when its last one has closed. Throws when there never was one. */
  async #openRunId(workflowId: string): Promise<string | null> {
    const { status, runId } = await this.#client.workflow.getHandle(workflowId).describe();
    return status.name === 'RUNNING' || status.name === 'PAUSED' ? runId : null;
  }

  async #startOrJoin(request: OperationRequest, deadline: number): Promise<OpenRun> {
    const workflowId = workflowIdOf(request);
    const closingDeadline = Math.max(deadline, performance.now() + CLOSING_MS);
    for (;;) {
      try {
        return await this.#beginning(deadline, () => this.#start(request));
      } catch (error) {
        if (!(error instanceof WorkflowExecutionAlreadyStartedError)) throw error;
      }
      const runId = await this.#beginning(deadline, () => this.#openRunId(workflowId));
      // It closed between the two calls: begin anew.
      if (runId === null) {
        const other = await this.#begunElsewhere(request);
        if (other !== null) return other;
        if (performance.now() < closingDeadline) continue;
        throw Refusal.unavailable(`gave way to other requests to ${request.kind} this instance: try again in a moment`);
      }
      // One whose outcome is known is an earlier call's: it is only closing, and stands in nobody's way.
      if ((await readOperation(this.#db, runId))?.timeEnded != null) {
        if (await this.#closes(workflowId, runId, closingDeadline)) {
          const other = await this.#begunElsewhere(request);
          if (other !== null) return other;
          continue;
        }
        throw Refusal.unavailable(
          `the last ${request.kind} of this instance is over, but its workflow has not closed yet: try again in a moment`,
        );
      }
      if (!(await this.#beginning(deadline, () => this.#mayJoin(request, runId))))
        throw Refusal.conflict(request.joinable?.refusal ?? '');
      return { handle: this.#client.workflow.getHandle(workflowId, runId), runId };
    }
  }

  /**
   * Before a saga is begun that could not be begun at once: whether the turn has passed to another sending of the same request,
   * which has begun it. `null`: it is this one's turn still. Throws a {@link Refusal} where the other has not begun it yet.
   */
  async #begunElsewhere(request: OperationRequest): Promise<OpenRun | null> {
    const { key, input, kind } = request;
    if (key === undefined) return null;
    const { mine, operationId } = await takeKey(this.#db, key, input.instanceId);
    if (operationId !== null) {
      const handle = this.#client.workflow.getHandle(workflowIdOf(request), operationId);
      return { handle, runId: operationId };
    }
    if (mine) return null;
    throw stillAtIt(kind);
  }

  async #start(request: OperationRequest): Promise<OpenRun> {
    const options = {
      workflowId: workflowIdOf(request),
      taskQueue: TASK_QUEUE,
      workflowIdConflictPolicy: WorkflowIdConflictPolicy.FAIL,
      staticSummary: request.summary,
      typedSearchAttributes: namedSubject(request.input.instanceId, request.names),
      ...(request.key === undefined ? {} : { memo: { idempotencyKey: request.key.value } }),
    };
    const { workflow } = this.#client;
    const handle =
      request.kind === 'start'
        ? await workflow.start<WorkflowTypes['instanceStart']>('instanceStart', { ...options, args: [request.input] })
        : await workflow.start<WorkflowTypes['instanceMigrate']>('instanceMigrate', {
            ...options,
            args: [request.input],
          });
    return { handle, runId: handle.firstExecutionRunId };
  }

  /** Calls to Temporal that come before the wait for an outcome until `deadline`. */
  #beginning<Result>(deadline: number, call: () => Promise<Result>): Promise<Result> {
    return beginWithin(this.#client, deadline - performance.now(), call);
  }

  /** Whether a request may join an open run. */
  async #mayJoin({ joinable, ...request }: OperationRequest, runId: string): Promise<boolean> {
    return (
      joinable === undefined || joinable.input.safeParse(await this.#inputOf(workflowIdOf(request), runId)).success
    );
  }

  /** What a run was started with; `null` when its history doesn't show it. */
  async #inputOf(workflowId: string, runId: string): Promise<unknown> {
    const { events } = await this.#client.workflow.getHandle(workflowId, runId).fetchHistory();
    const payload = events?.[0]?.workflowExecutionStartedEventAttributes?.input?.payloads?.[0];
    return payload == null ? null : defaultPayloadConverter.fromPayload(payload);
  }

  /** Waits until a run has closed; `false` when the deadline came first. */
  async #closes(workflowId: string, runId: string, deadline: number): Promise<boolean> {
    const answered = new AbortController();
    const { workflow } = this.#client;
    const closed = this.#client
      .withAbortSignal(answered.signal, () => workflow.getHandle(workflowId, runId, { followRuns: false }).result())
      .catch((error: unknown) => {
        if (!(error instanceof WorkflowFailedError)) throw error;
      });
    try {
      return (await within(deadline - performance.now(), closed, () => 'late' as const)) !== 'late';
    } finally {
      answered.abort();
    }
  }

  /**
   * Waits for a run's outcome until the deadline; `false` when it is still open then. It is listened for, and Temporal is
   * asked for the run's own result: whichever is first. Throws {@link OperationFailed} when it has failed.
   */
  async #wait(
    handle: WorkflowHandle,
    request: OperationRequest,
    operationId: string,
    deadline: number,
  ): Promise<boolean> {
    const answered = new AbortController();
    const { signal } = answered;
    try {
      const outcome = await within(
        deadline - performance.now(),
        // What is heard and can't be read is left to Temporal.
        Promise.any([this.#heard(operationId, signal), this.#asked(handle, request, operationId, signal)]),
        () => 'late' as const,
      );
      if (outcome instanceof OperationFailed) throw outcome;
      if (outcome === 'succeeded') return true;
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

  /** The outcome of an operation, as soon as it is committed and heard. Rejects where its row can't be read. */
  async #heard(operationId: string, signal: AbortSignal): Promise<Outcome> {
    if (await this.#outcomes.heard(operationId, signal)) return 'succeeded';
    const recorded = await this.#recorded(operationId);
    if (recorded !== null) return recorded;
    throw new Error(`operation ${operationId} has failed, and no error is on record`);
  }

  /**
   * The outcome of a run, as Temporal has it; where someone listens, it is asked only after a while. A Temporal server that is
   * away leaves the outcome open: it is asked again, and the operation's own row is looked at meanwhile.
   */
  async #asked(
    handle: WorkflowHandle,
    request: OperationRequest,
    operationId: string,
    signal: AbortSignal,
  ): Promise<Outcome> {
    await this.#outcomes.whileItHears(LISTEN_FIRST_MS, signal);
    let ended: WorkflowFailedError | null = null;
    for (;;) {
      try {
        await this.#client.withAbortSignal(signal, () => handle.result());
        return 'succeeded';
      } catch (error) {
        if (error instanceof WorkflowFailedError) {
          const body = bodyOf(error);
          if (body !== null) return new OperationFailed(body, operationId);
          ended = error;
        }
        signal.throwIfAborted();
      }
      // A workflow that somebody ended may have recorded its outcome before.
      const recorded = await this.#recorded(operationId).catch(() => 'unknown' as const);
      if (recorded !== null && recorded !== 'unknown') return recorded;
      if (ended !== null && recorded === null) return endedByOperator(ended, request.kind, operationId);
      await pause(ASK_AGAIN_MS, undefined, { signal });
    }
  }
}

type Outcome = 'succeeded' | OperationFailed;

function stillAtIt(kind: OperationKind): Refusal {
  return Refusal.unavailable(
    `another request with the same Idempotency-Key is about to ${kind} this instance: try again in a moment`,
  );
}

function workflowIdOf({ kind, input }: Saga): string {
  return workflowIds[kind](input.instanceId);
}

/** The error that a saga has closed its workflow with; `null` when it was ended otherwise. */
function bodyOf({ cause }: WorkflowFailedError): OperationError | null {
  return cause instanceof ApplicationFailure ? ((cause.details?.[0] as OperationError | undefined) ?? null) : null;
}

function endedByOperator(error: WorkflowFailedError, kind: OperationKind, operationId: string): OperationFailed {
  const message = `the ${kind} was ended by an operator (${error.message}); what it left is being undone: try again in a moment`;
  return new OperationFailed(errorBody('Conflict', message), operationId);
}
