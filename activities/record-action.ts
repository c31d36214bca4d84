import { activityInfo } from '@temporalio/activity';
import { type AuditOutcome, type AutomaticAction, automaticRecord } from '../db/audit-record.ts';
import type { Queryable } from '../db/connect.ts';
import { writeAudit } from '../db/transactions/write-audit.ts';

/** Who acts by itself, as the audit log has it: the run of the workflow that the activity is a part of. */
export function automaticActor(actorName: string): Pick<AutomaticAction, 'actorName' | 'runId' | 'workflowId'> {
  const { workflowExecution } = activityInfo();
  return { actorName, runId: workflowExecution?.runId ?? '', workflowId: workflowExecution?.workflowId ?? '' };
}

/**
 * Does something that is no transaction of the database, nobody having asked for it: it is on the audit log before it is
 * begun, and how it ended after. Throws what the work threw.
 */
export async function recordAction<T>(db: Queryable, action: AutomaticAction, work: () => Promise<T>): Promise<T> {
  const begun = automaticRecord(action, null);
  const startedMs = performance.now();
  const end = (outcome: AuditOutcome) =>
    writeAudit(db, { ...begun, elapsedMs: performance.now() - startedMs, outcome });
  await writeAudit(db, begun);
  let result: T;
  try {
    result = await work();
  } catch (error) {
    // The caller must get the work's own error, not the audit log's; a record that stays open is completed as `unknown`.
    await end({
      result: 'error',
      httpStatus: null,
      errorCode: error instanceof Error ? error.name : null,
      errorMessage: error instanceof Error ? error.message : String(error),
    }).catch(() => {});
    throw error;
  }
  await end({ result: 'success', httpStatus: null });
  return result;
}
