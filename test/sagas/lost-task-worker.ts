/**
 * A worker in a process of its own that comes to chosen points of workflow tasks and waits there: to be killed, or frozen,
 * or to be late with what it goes on to do.
 */
import { readFile } from 'node:fs/promises';
import { z } from 'zod';
import { createLog } from '../../platform/telemetry/log.ts';
import type { TemporalSettings } from '../../temporal/connection.ts';
import { startWorker } from '../../worker/worker.ts';
import {
  type Execution,
  FaultInjector,
  type FaultPlan,
  type Moment,
  silenceLateAttempts,
} from '../matrix/fault-injector.ts';

export interface VictimOptions {
  readonly databaseUrl: string;
  readonly temporal: TemporalSettings;
  /** Where the workflows' bundle is. */
  readonly bundleFile: string;
}
export type ToVictim =
  | { readonly plan: FaultPlan }
  | { readonly release: string; readonly point: 'before' | 'after' }
  /** Takes work from now on. */
  | { readonly work: true }
  /** Ends, when what it has begun is done. */
  | { readonly end: true };
export type ToParent =
  | { readonly state: 'up' | 'works' }
  | { readonly planId: string; readonly moment: Moment; readonly execution: Execution };

const { databaseUrl, temporal, bundleFile } = JSON.parse(process.argv[2] ?? '{}') as VictimOptions;
silenceLateAttempts();
const injector = new FaultInjector();
const send = (message: ToParent) => void process.send?.(message);
injector.onMoment((planId, moment) => send({ planId, moment, execution: injector.execution(planId) }));
const bundle = z
  .object({ code: z.string(), sourceMap: z.string() })
  .parse(JSON.parse(await readFile(bundleFile, 'utf8')));

let worker: ReturnType<typeof startWorker> | null = null;
process.on('message', (message: ToVictim) => {
  if ('plan' in message) injector.plan(message.plan);
  else if ('release' in message) injector.release(message.release, message.point);
  else if ('work' in message) {
    worker = startWorker({
      databaseUrl,
      temporal,
      bundle,
      alone: true,
      reconcileEveryMs: 0,
      log: createLog('victim', 'silent'),
      testInterceptors: { activity: [injector.interceptors()] },
    });
    void worker.then(() => send({ state: 'works' }));
  } else void worker?.then((running) => running.stop()).then(() => process.exit(0));
});
process.on('disconnect', () => process.exit(1));
send({ state: 'up' });
