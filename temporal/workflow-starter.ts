import { type Client, WorkflowExecutionAlreadyStartedError } from '@temporalio/client';
import { WorkflowIdConflictPolicy, WorkflowIdReusePolicy, WorkflowNotFoundError } from '@temporalio/common';
import { Refusal } from '../model/refusal.ts';
import type { InstanceUpdateInput, MigrationWatchInput, UnwindInput, WorkflowTypes } from '../model/workflow-inputs.ts';
import { TASK_QUEUE, UPDATE_TASK_QUEUE, workflowIds } from '../model/workflow-names.ts';
import { namedSubject, type SubjectNames } from './subject-names.ts';

/** How long a call that nobody waits for may take, in milliseconds. */
const WATCH_CALL_MS = 2_000;

/**
 * Where another installation's run has the id, the client has said so: one instance's must not hold up a pass or an update, and
 * the scans come back to it.
 */
function leaveToScan(error: unknown): void {
  if (!(error instanceof Refusal)) throw error;
}

/**
 * Starts and signals the workflows that are nobody's call: each is a singleton by its id, so that to ask twice is to ask
 * once. Used by the API and by activities.
 */
export class WorkflowStarter {
  readonly #client: Client;

  constructor(client: Client) {
    this.#client = client;
  }

  /**
   * Has an instance's stored state looked at by its update workflow: begins that workflow, or signals it where it runs. A
   * caller that knows the instance's `names` saves them being read.
   */
  async signalUpdate(instanceId: string, names?: SubjectNames): Promise<void> {
    const options = {
      workflowId: workflowIds.update(instanceId),
      taskQueue: UPDATE_TASK_QUEUE,
      args: [{ instanceId }] as [InstanceUpdateInput],
      staticSummary: `bring the records of instance ${instanceId} in line`,
      typedSearchAttributes: namedSubject(instanceId, names),
    };
    const { workflow } = this.#client;
    try {
      // A run begins with a look: that of a signal would be one event more. It is seldom open already.
      await workflow.start<WorkflowTypes['instanceUpdate']>('instanceUpdate', {
        ...options,
        workflowIdConflictPolicy: WorkflowIdConflictPolicy.FAIL,
      });
    } catch (error) {
      if (!(error instanceof WorkflowExecutionAlreadyStartedError)) throw error;
      // With a start, since the run may close between the two calls.
      await workflow.signalWithStart<WorkflowTypes['instanceUpdate']>('instanceUpdate', {
        ...options,
        signal: 'updateNeeded',
      });
    }
  }

  /** Shows how far a migration is to who looks at Temporal's Web UI. One that was begun once is not begun again. */
  async watchMigration(watched: MigrationWatchInput): Promise<void> {
    try {
      // Nothing waits for it for long: a migration is as good without.
      await this.#client.withDeadline(Date.now() + WATCH_CALL_MS, () =>
        this.#client.workflow.start<WorkflowTypes['migrationWatch']>('migrationWatch', {
          workflowId: workflowIds.watchMigration(watched.migrationId),
          taskQueue: TASK_QUEUE,
          args: [watched],
          workflowIdConflictPolicy: WorkflowIdConflictPolicy.USE_EXISTING,
          workflowIdReusePolicy: WorkflowIdReusePolicy.REJECT_DUPLICATE,
          staticSummary: `show how far the migration of instance ${watched.instanceId} is`,
        }),
      );
    } catch (error) {
      if (!(error instanceof WorkflowExecutionAlreadyStartedError)) throw error;
    }
  }

  /** Carries a stop to whichever VMM has the guest. */
  async carryStop(instanceId: string): Promise<void> {
    const carried = this.#client.workflow.start<WorkflowTypes['instanceStop']>('instanceStop', {
      workflowId: workflowIds.stop(instanceId),
      taskQueue: TASK_QUEUE,
      args: [{ instanceId }],
      workflowIdConflictPolicy: WorkflowIdConflictPolicy.USE_EXISTING,
      staticSummary: `carry the stop to instance ${instanceId}`,
    });
    await carried.catch(leaveToScan);
  }

  /** Ends a living VMM that no instance names and that has no guest to lose. */
  async unregisterVmm(vmmId: string): Promise<void> {
    const unregistered = this.#client.workflow.start<WorkflowTypes['vmmUnregister']>('vmmUnregister', {
      workflowId: workflowIds.unregister(vmmId),
      taskQueue: TASK_QUEUE,
      args: [{ vmmId }],
      workflowIdConflictPolicy: WorkflowIdConflictPolicy.USE_EXISTING,
      staticSummary: `unregister leftover VMM ${vmmId}`,
    });
    await unregistered.catch(leaveToScan);
  }

  /** Unwinds a VMM whose saga is over without having ended it. */
  async unwindVmm(input: UnwindInput): Promise<void> {
    await this.#client.workflow.start<WorkflowTypes['vmmUnwind']>('vmmUnwind', {
      workflowId: workflowIds.unwind(input.vmmId),
      taskQueue: TASK_QUEUE,
      args: [input],
      workflowIdConflictPolicy: WorkflowIdConflictPolicy.USE_EXISTING,
      staticSummary: `unwind VMM ${input.vmmId}, whose ${input.kind} was cut off`,
    });
  }

  /** Begins the automatic start of an instance. Returns `false` when a start of it is on its way already. */
  async autoRestart(instanceId: string, name: string): Promise<boolean> {
    try {
      await this.#client.workflow.start<WorkflowTypes['instanceStart']>('instanceStart', {
        workflowId: workflowIds.start(instanceId),
        taskQueue: TASK_QUEUE,
        args: [{ instanceId, reason: 'auto_restart' }],
        workflowIdConflictPolicy: WorkflowIdConflictPolicy.FAIL,
        staticSummary: `start instance "${name}" again by itself`,
      });
      return true;
    } catch (error) {
      if (error instanceof WorkflowExecutionAlreadyStartedError || error instanceof Refusal) return false;
      throw error;
    }
  }

  /** Whether a start of an instance is under way, whoever asked for it and whether or not it has claimed anything yet. */
  async isStarting(instanceId: string): Promise<boolean> {
    return this.isOpen(workflowIds.start(instanceId));
  }

  /**
   * The run ids of the starts and migrations that are open and began more than `ageMs` milliseconds ago: of a run that old
   * Temporal's list, which lags behind by a moment, is complete.
   */
  async findOpenSagas(ageMs: number): Promise<string[]> {
    const before = new Date(Date.now() - ageMs).toISOString();
    const ids: string[] = [];
    // By what they are not: a run that is paused is open, and not every server knows that status by its name.
    const query = `WorkflowType IN ("instanceStart", "instanceMigrate") AND StartTime < "${before}" AND ExecutionStatus NOT IN ("Completed", "Failed", "Canceled", "Terminated", "ContinuedAsNew", "TimedOut")`;
    for await (const run of this.#client.workflow.list({ query })) ids.push(run.runId);
    return ids;
  }

  /** Whether a run of a workflow, by default the last one, is still open. A run that Temporal has forgotten is not. */
  async isOpen(workflowId: string, runId?: string): Promise<boolean> {
    try {
      const { status } = await this.#client.workflow.getHandle(workflowId, runId).describe();
      return status.name === 'RUNNING' || status.name === 'PAUSED';
    } catch (error) {
      if (error instanceof WorkflowNotFoundError) return false;
      throw error;
    }
  }
}
