import { type WorkflowExecutionDescription, WorkflowNotFoundError } from '@temporalio/client';
import { WorkflowIdConflictPolicy } from '@temporalio/common';
import { z } from 'zod';
import { readSled } from '../../db/queries/read-sled.ts';
import { setSledPolicy } from '../../db/transactions/set-sled-policy.ts';
import type { DrainProgress } from '../../model/drain.ts';
import { Refusal } from '../../model/refusal.ts';
import type { WorkflowTypes } from '../../model/workflow-inputs.ts';
import { TASK_QUEUE, workflowIds } from '../../model/workflow-names.ts';
import { type DrainView, drainBegin, drainView } from '../../wire/operator-api/drains.ts';
import { uuid } from '../../wire/uuid.ts';
import { changing } from '../audit.ts';
import type { ApiApp, ApiContext } from '../context.ts';
import { errors } from '../errors.ts';
import { viewDrain } from '../views/drain.ts';

const DEFAULT_PARALLEL = 4;
/**
 * How long a worker may take to answer how far a drain has come, in milliseconds: first the one that has the drain in its
 * memory, then any.
 */
const FIRST_QUERY_MS = 5_000;
const QUERY_MS = 15_000;

/** Adds the endpoints by which a sled is drained. */
export function addDrainRoutes(app: ApiApp, context: ApiContext): void {
  const { db, temporal } = context;
  const path = '/v1/system/hardware/sleds/:sled_id/drain';
  const route = { tags: ['system'], params: z.object({ sled_id: uuid }) };

  app.post(
    path,
    { schema: { ...route, body: drainBegin.nullish(), response: { 202: drainView, ...errors } } },
    async (request, reply) => {
      const { sled_id: sledId } = request.params;
      const found = await readSled(db, sledId);
      if (found === null) throw Refusal.notFound('sled', sledId);
      if (found.policy === 'expunged' || found.expungingSince !== null)
        throw Refusal.conflict(`sled "${found.name}" was expunged: there is nothing on it to move`);
      // Before the answer, so that nothing is placed there from then on.
      await setSledPolicy(changing(request, db), sledId, 'no_provision');
      const parallel = request.body?.parallel ?? DEFAULT_PARALLEL;
      await temporal.workflow.start<WorkflowTypes['sledDrain']>('sledDrain', {
        workflowId: workflowIds.drain(sledId),
        taskQueue: TASK_QUEUE,
        args: [{ sledId, sledName: found.name, parallel }],
        workflowIdConflictPolicy: WorkflowIdConflictPolicy.USE_EXISTING,
        staticSummary: `drain sled "${found.name}"`,
      });
      return reply.status(202).send(await show(sledId));
    },
  );
  app.get(path, { schema: { ...route, response: { 200: drainView, ...errors } } }, async (request) =>
    show(request.params.sled_id),
  );
  app.delete(path, { schema: { ...route, response: { 202: drainView, ...errors } } }, async (request, reply) => {
    const { sled_id: sledId } = request.params;
    const handle = temporal.workflow.getHandle(workflowIds.drain(sledId));
    // One that has ended has nothing to stop.
    if ((await describe(sledId)).status.name === 'RUNNING') {
      await handle.signal('stopDrain').catch((error: unknown) => {
        if (!(error instanceof WorkflowNotFoundError)) throw error;
      });
    }
    return reply.status(202).send(await show(sledId));
  });

  async function describe(sledId: string): Promise<WorkflowExecutionDescription> {
    try {
      return await temporal.workflow.getHandle(workflowIds.drain(sledId)).describe();
    } catch (error) {
      if (error instanceof WorkflowNotFoundError) throw Refusal.notFound('drain of the sled', sledId);
      throw error;
    }
  }

  /** Asks the drain itself. Throws when no worker answers. */
  async function ask(workflowId: string, runId: string): Promise<DrainProgress> {
    const handle = temporal.workflow.getHandle<WorkflowTypes['sledDrain']>(workflowId);
    const query = (ms: number) =>
      temporal.withDeadline(Date.now() + ms, () => handle.query<DrainProgress, []>('drainProgress'));
    try {
      return await query(FIRST_QUERY_MS);
    } catch (error) {
      context.log.info({ err: error, workflow_id: workflowId }, 'a drain did not answer; any worker is asked');
      // The worker that had it last may be gone: the server goes on asking that one for as long as it doesn't know.
      await temporal.workflowService.resetStickyTaskQueue({
        namespace: temporal.options.namespace,
        execution: { workflowId, runId },
      });
      return query(QUERY_MS);
    }
  }

  async function show(sledId: string): Promise<DrainView> {
    const run = await describe(sledId);
    const handle = temporal.workflow.getHandle<WorkflowTypes['sledDrain']>(workflowIds.drain(sledId));
    let progress: DrainProgress;
    try {
      progress = run.status.name === 'COMPLETED' ? await handle.result() : await ask(run.workflowId, run.runId);
    } catch (error) {
      context.log.warn({ err: error, sled_id: sledId }, 'a drain could not be asked');
      throw Refusal.unavailable('no worker says how far the drain has come: it goes on when one does; ask again');
    }
    const over = run.status.name !== 'RUNNING';
    // Terminated by hand, it can't report that itself.
    const externalState: DrainProgress =
      over && progress.state === 'running' ? { ...progress, state: 'stopped', stopReason: 'by hand' } : progress;
    return viewDrain(externalState, {
      begun: run.startTime,
      ended: over ? (run.closeTime ?? null) : null,
      webUi: context.webUiLink(run.workflowId, run.runId),
    });
  }
}
