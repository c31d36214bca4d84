/** Where an operation stands: by its row, and by its workflow where the row doesn't show it. */
import type { Client } from '@temporalio/client';
import type { Database } from '../db/connect.ts';
import { type OperationRow, readOperation } from '../db/queries/read-operation.ts';
import { SAGA_STEPS, type SagaSteps } from '../model/saga-steps.ts';
import type { OperationKind } from '../model/states.ts';
import type { OperationProgress } from '../wire/operator-api/operations.ts';

/** Reads an operation; one whose workflow has completed has succeeded, whatever its row shows. `null`: there is none. */
export async function readCurrentOperation(
  db: Database,
  temporal: Client,
  operationId: string,
): Promise<OperationRow | null> {
  const row = await readOperation(db, operationId);
  if (row === null || row.timeEnded !== null) return row;
  const run = await temporal.workflow
    .getHandle(row.workflowId, operationId)
    .describe()
    .catch(() => null);
  if (run === null || run.status.name === 'RUNNING') return row;
  const again = await readOperation(db, operationId);
  if (again === null || again.timeEnded !== null || run.status.name !== 'COMPLETED') return again;
  return { ...again, succeeded: true, timeEnded: run.closeTime ?? new Date() };
}

/** The step that an open operation's saga is at, from Temporal; `null` between two steps, or when Temporal is away. */
export async function readProgress(temporal: Client, row: OperationRow): Promise<OperationProgress | null> {
  const run = await temporal.workflow
    .getHandle(row.workflowId, row.id)
    .describe()
    .catch(() => null);
  const [pending] = run?.raw.pendingActivities ?? [];
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

/** The declared step of an activity, and whether it undoes. */
function declaredStep(kind: OperationKind, activity: string): { title: string; undoing: boolean } {
  const { steps, compensations }: SagaSteps = SAGA_STEPS[kind === 'start' ? 'instanceStart' : 'instanceMigrate'];
  const compensation = compensations.find((step) => step.activity === activity);
  const title = (compensation ?? steps.find((step) => step.activity === activity))?.title ?? activity;
  return { title, undoing: compensation !== undefined };
}
