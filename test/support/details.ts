import type { Client, WorkflowHandle } from '@temporalio/client';
import { z } from 'zod';
import { workflowIds } from '../../model/workflow-names.ts';
import { waitUntil } from '../../platform/host/child-process.ts';

/** Source: temporal/api/sdk/v1/workflow_metadata.proto. */
const metadata = z.looseObject({ currentDetails: z.string().nullish() });

/** A workflow's current details, in Markdown, as the Web UI asks for them: by the SDK's own query. */
export async function currentDetails(handle: WorkflowHandle): Promise<string> {
  return metadata.parse(await handle.query('__temporal_workflow_metadata')).currentDetails ?? '';
}

/**
 * The workflow that shows how far a migration is, when it has begun: that is beside the answer of who asked for the migration, and
 * may be a little later.
 */
export async function migrationWatchOf(client: Client, migrationId: string): Promise<WorkflowHandle> {
  const watch = client.workflow.getHandle(workflowIds.watchMigration(migrationId));
  await waitUntil(
    () =>
      watch.describe().then(
        () => true,
        () => false,
      ),
    `the migration ${migrationId} is not watched`,
    60_000,
    20,
  );
  return watch;
}
