import type { Client } from '@temporalio/client';
import { readHistory } from '../../db/queries/read-history.ts';
import { describeMigration } from '../../model/migration-progress.ts';
import { Refusal } from '../../model/refusal.ts';
import { declaredSteps } from '../../model/saga-steps.ts';
import { type TimelineFacts, timeline } from '../../model/timeline.ts';
import type { WorkflowTypes } from '../../model/workflow-inputs.ts';
import { workflowIds } from '../../model/workflow-names.ts';
import { RunLister } from '../../temporal/run-lister.ts';
import { historyView } from '../../wire/operator-api/history.ts';
import { isUuid } from '../../wire/operator-api/names.ts';
import type { ApiApp, ApiContext } from '../context.ts';
import { errors } from '../errors.ts';
import { findInstance, instanceRoute } from '../find-instance.ts';

/** How many runs of workflows a history shows: the newest. */
const MOST_RUNS = 200;
/** Of how many VMMs, the newest, the workflows are looked up: Temporal's queries have a limit of length. */
const MOST_VMMS = 20;

/** Adds the endpoint of an instance's history. */
export function addHistoryRoutes(app: ApiApp, context: ApiContext): void {
  const lister = new RunLister(context.temporal);
  app.get(
    '/v1/instances/:instance/history',
    {
      schema: { ...instanceRoute, response: { 200: historyView, ...errors } },
    },
    async (request) => {
      const named = request.params.instance;
      // By its id, a deleted instance's history can still be read.
      const id = isUuid(named) ? named : (await findInstance(context.db, named, request.query.project)).instance.id;
      const stored = await readHistory(context.db, id);
      if (stored === null) throw Refusal.notFound('instance', named);
      const vmmIds = stored.vmms.slice(0, MOST_VMMS).map((vmm) => vmm.id);
      const migrationIds = stored.migrations.slice(0, MOST_VMMS).map((migration) => migration.id);
      const runs = await readRuns(context.temporal, lister, id, vmmIds, migrationIds).catch((error: unknown) => {
        context.log.warn({ err: error, instance_id: id }, 'a history is answered without its workflows');
        return null;
      });
      const events = timeline({ ...stored, runs: runs ?? [] });
      return {
        instance_id: id,
        complete: runs !== null,
        items: events.map(({ time, kind, text, workflow }) => ({
          time: time.toISOString(),
          kind,
          text,
          workflow_id: workflow?.workflowId ?? null,
          web_ui: workflow === null ? null : context.webUiLink(workflow.workflowId, workflow.runId),
        })),
      };
    },
  );
}

/** The runs of an instance's workflows that are no operations; Temporal keeps them for its namespace's retention. */
async function readRuns(
  temporal: Client,
  lister: RunLister,
  instanceId: string,
  vmmIds: string[],
  migrationIds: string[],
): Promise<TimelineFacts['runs']> {
  const ofVmms = vmmIds.flatMap((id) => [workflowIds.unwind(id), workflowIds.unregister(id)]);
  const watches = migrationIds.map((id) => workflowIds.watchMigration(id));
  const ids = [workflowIds.update(instanceId), workflowIds.stop(instanceId), ...ofVmms, ...watches];
  const runs: TimelineFacts['runs'][number][] = [];
  for (const run of await lister.list(ids, MOST_RUNS)) {
    const watch = watches.includes(run.workflowId);
    runs.push({
      workflowId: run.workflowId,
      runId: run.runId,
      title: watch ? 'migration' : (declaredSteps(run.type)?.steps[0]?.title ?? run.type),
      result: watch && run.status.name === 'COMPLETED' ? await readFigures(temporal, run) : null,
      status: run.status.name,
      timeStarted: run.startTime,
      timeEnded: run.closeTime ?? null,
    });
  }
  return runs;
}

/** What a migration's watch saw last: how much was sent, and how long the guest stood still. `null` where it saw nothing. */
async function readFigures(temporal: Client, run: { workflowId: string; runId: string }): Promise<string | null> {
  const seen = await temporal.workflow.getHandle<WorkflowTypes['migrationWatch']>(run.workflowId, run.runId).result();
  return 'sourceState' in seen ? describeMigration(seen) : null;
}
