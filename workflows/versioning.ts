/**
 * Bundled with the workflows where workers are versioned: a workflow that may last goes over to a new build with its next
 * step; the others end on the build that began them, which is the worker's default (worker/worker.ts). A worker that is
 * not versioned must not have it: the server refuses a versioning behaviour from one.
 */
import { setWorkflowOptions, type WorkflowInterceptors } from '@temporalio/workflow';
import { declaredSteps } from '../model/saga-steps.ts';
import * as workflows from './index.ts';

for (const [name, workflow] of Object.entries(workflows)) {
  if (!declaredSteps(name)?.pinned)
    setWorkflowOptions({ versioningBehavior: 'AUTO_UPGRADE' }, workflow as () => Promise<unknown>);
}

export function interceptors(): WorkflowInterceptors {
  return {};
}
