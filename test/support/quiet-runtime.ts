/** The SDK's logging where tests lose tasks on purpose. */
import { DefaultLogger, Runtime } from '@temporalio/worker';

/** The SDK warns of every task that is lost: here they are what is wanted. Before the first worker of a process. */
export function silenceLostTasks(): void {
  Runtime.install({
    logger: new DefaultLogger('ERROR'),
    telemetryOptions: { logging: { forward: {}, filter: 'ERROR' } },
    shutdownSignals: [],
  });
}
