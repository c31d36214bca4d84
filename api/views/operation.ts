import type { ListedOperation } from '../../db/queries/list-operations.ts';
import type { OperationRow } from '../../db/queries/read-operation.ts';
import type { OperationProgress, OperationView } from '../../wire/operator-api/operations.ts';

/** An operation as the API answers it. */
export function viewOperation(
  row: OperationRow,
  progress: OperationProgress | null,
  webUi: string | null,
): OperationView {
  return {
    id: row.id,
    kind: row.kind,
    instance_id: row.instanceId,
    state: row.timeEnded === null ? 'running' : 'done',
    outcome: row.succeeded === null ? null : row.succeeded ? 'succeeded' : 'failed',
    error: row.error === null ? null : { ...row.error },
    progress,
    time_started: row.timeStarted.toISOString(),
    time_ended: row.timeEnded?.toISOString() ?? null,
    web_ui: webUi,
  };
}

/** An operation as lists and events show it: without its step, which Temporal is asked for one by one. */
export function viewListedOperation(
  { operation, instanceName, projectId }: ListedOperation,
  webUi: string | null,
): OperationView {
  return { ...viewOperation(operation, null, webUi), instance_name: instanceName, project_id: projectId };
}
