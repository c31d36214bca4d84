import type { Database } from '../db/connect.ts';
import { readSnapshot } from '../db/queries/read-snapshot.ts';
import type { AppliedReport } from '../db/transactions/apply-report.ts';
import { needsUpdate } from '../model/update-decision.ts';
import type { WorkflowStarter } from './workflow-starter.ts';

/**
 * Signals an instance's update saga when its stored state needs an update. Judged by what is stored, never by what this
 * caller changed, so that whoever comes later makes up for a signal that was lost.
 */
export async function signalIfNeeded(
  { db, workflows }: { readonly db: Database; readonly workflows: WorkflowStarter },
  instanceId: string,
): Promise<void> {
  const snapshot = await readSnapshot(db, instanceId);
  if (snapshot !== null && needsUpdate(snapshot)) await workflows.signalUpdate(instanceId, snapshot.names);
}

/** The same after a report was applied: without another look where the report's own statement has said whether it is needed. */
export async function signalAfterReport(
  { db, workflows }: { readonly db: Database; readonly workflows: WorkflowStarter },
  { instanceId, needsUpdate: needed, names }: AppliedReport,
): Promise<void> {
  if (needed === null) await signalIfNeeded({ db, workflows }, instanceId);
  else if (needed) await workflows.signalUpdate(instanceId, names);
}
