/**
 * Bundled with the workflows while histories are recorded: a workflow that is about to end says so, and its completion is not
 * sent before the worker's process has got it (the SDK waits for a sink's call).
 */
import { proxySinks, type Sinks, type WorkflowInterceptors } from '@temporalio/workflow';

export interface RecorderSinks extends Sinks {
  recorder: { completes(): void };
}

/** Found by the SDK under this name. */
export const interceptors = (): WorkflowInterceptors => ({
  inbound: [
    {
      async execute(input, next) {
        try {
          return await next(input);
        } finally {
          proxySinks<RecorderSinks>().recorder.completes();
        }
      },
    },
  ],
});
