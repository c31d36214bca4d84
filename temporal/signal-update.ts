import type { Database } from '../db/connect.ts';
import { readSnapshot } from '../db/queries/read-snapshot.ts';
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
