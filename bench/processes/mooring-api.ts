/** Mooring's API process, as `mooring api` runs it; without its lease beats, which cost per second, where sagas are counted. */
import { startApi } from '../../api/server.ts';
import { createLog } from '../../platform/telemetry/log.ts';
import { plainTemporal } from '../../temporal/connection.ts';
import type { PartInput, PartReady } from '../peers/steps.ts';
import { runPart } from '../system/child.ts';

await runPart<PartInput, PartReady>(async ({ databaseUrl, temporalAddress, temporalNamespace, port, loopsOff }) => {
  const api = await startApi({
    databaseUrl,
    temporal: plainTemporal(temporalAddress, temporalNamespace),
    host: '127.0.0.1',
    authentication: 'open',
    plainSleds: true,
    port,
    log: createLog('api', 'error'),
    ...(loopsOff ? { leaseBeatMs: 0 } : {}),
  });
  return { ready: { url: api.url }, stop: () => api.stop() };
});
