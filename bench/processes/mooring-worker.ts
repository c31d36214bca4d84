/** One of Mooring's worker processes, as `mooring worker` runs it, without the reconciling loops: they cost per pass, not per saga. */

import { createLog } from '../../platform/telemetry/log.ts';
import { plainTemporal } from '../../temporal/connection.ts';
import { startWorker } from '../../worker/worker.ts';
import type { PartInput, PartReady } from '../peers/steps.ts';
import { runPart } from '../system/child.ts';

await runPart<PartInput, PartReady>(async ({ databaseUrl, temporalAddress, temporalNamespace }) => {
  const worker = await startWorker({
    databaseUrl,
    temporal: plainTemporal(temporalAddress, temporalNamespace),
    log: createLog('worker', 'error'),
    reconcileEveryMs: 0,
  });
  return { ready: { url: '' }, stop: () => worker.stop() };
});
