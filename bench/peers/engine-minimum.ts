/**
 * The engine's own minimum: an empty workflow with one activity that does nothing, behind the same front, on the same
 * server, by a worker with the same settings as Mooring's.
 */
import { fileURLToPath } from 'node:url';
import { Client, Connection } from '@temporalio/client';
import { NativeConnection, Worker } from '@temporalio/worker';
import { createLog } from '../../platform/telemetry/log.ts';
import { installRuntime } from '../../worker/worker.ts';
import { runPart } from '../system/child.ts';
import { startFront } from './front.ts';
import type { PartInput, PartReady } from './steps.ts';

const TASK_QUEUE = 'engine-minimum';

await runPart<PartInput, PartReady>(async ({ port, temporalAddress, temporalNamespace: namespace }) => {
  installRuntime(createLog('engine-minimum', 'error'));
  const native = await NativeConnection.connect({ address: temporalAddress });
  const worker = await Worker.create({
    connection: native,
    namespace,
    taskQueue: TASK_QUEUE,
    workflowsPath: fileURLToPath(new URL('./engine-minimum-workflow.ts', import.meta.url)),
    activities: { async nothing() {} },
    maxConcurrentActivityTaskExecutions: 200,
    maxConcurrentWorkflowTaskExecutions: 100,
  });
  const running = worker.run();
  const connection = await Connection.connect({ address: temporalAddress });
  const client = new Client({ connection, namespace });
  const front = await startFront({
    db: null,
    port,
    async start(instanceId) {
      await client.workflow.execute('engineMinimum', {
        workflowId: `engine-minimum/${instanceId}`,
        workflowIdConflictPolicy: 'USE_EXISTING',
        taskQueue: TASK_QUEUE,
      });
    },
  });
  return {
    ready: { url: front.url },
    async stop() {
      await front.stop();
      worker.shutdown();
      await running;
      await Promise.allSettled([native.close(), connection.close()]);
    },
  };
});
