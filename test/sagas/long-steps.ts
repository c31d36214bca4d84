/** Bundled with the workflows where steps are held in the middle of a workflow task: a step that waits there is not given up. */
import type { WorkflowInterceptors } from '@temporalio/workflow';

/** Found by the SDK under this name. */
export const interceptors = (): WorkflowInterceptors => ({
  outbound: [
    {
      scheduleLocalActivity: (input, next) =>
        next({ ...input, options: { ...input.options, startToCloseTimeout: '5m' } }),
    },
  ],
});
