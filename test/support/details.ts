import type { WorkflowHandle } from '@temporalio/client';
import { z } from 'zod';

/** Source: temporal/api/sdk/v1/workflow_metadata.proto. */
const metadata = z.looseObject({ currentDetails: z.string().nullish() });

/** A workflow's current details, in Markdown, as the Web UI asks for them: by the SDK's own query. */
export async function currentDetails(handle: WorkflowHandle): Promise<string> {
  return metadata.parse(await handle.query('__temporal_workflow_metadata')).currentDetails ?? '';
}
