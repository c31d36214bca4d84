/** A worker in a process of its own, to be killed in the middle of a step. Its plans come from the parent. */
import { createLog } from '../../platform/telemetry/log.ts';
import type { TemporalSettings } from '../../temporal/connection.ts';
import { startWorker } from '../../worker/worker.ts';
import {
  askSilentSleds,
  type Execution,
  FaultInjector,
  type FaultPlan,
  type Moment,
  silenceLateAttempts,
} from './fault-injector.ts';

export interface VictimOptions {
  readonly databaseUrl: string;
  readonly temporal: TemporalSettings;
}
export type ToVictim =
  | { readonly drop: string }
  | { readonly plan: FaultPlan }
  | { readonly release: string; readonly point: 'before' | 'after' };
export type ToParent =
  | { readonly ready: true }
  | { readonly planId: string; readonly moment: Moment; readonly execution: Execution };

const { databaseUrl, temporal } = JSON.parse(process.argv[2] ?? '{}') as VictimOptions;
askSilentSleds();
silenceLateAttempts();
const injector = new FaultInjector();
const send = (message: ToParent) => void process.send?.(message);
injector.onMoment((planId, moment) => send({ planId, moment, execution: injector.execution(planId) }));
process.on('message', (message: ToVictim) => {
  if ('plan' in message) injector.plan(message.plan);
  else if ('drop' in message) injector.drop(message.drop);
  else injector.release(message.release, message.point);
});
process.on('disconnect', () => process.exit(1));

await startWorker({
  databaseUrl,
  temporal,
  log: createLog('worker', 'error'),
  reconcileEveryMs: 0,
  testInterceptors: {
    activity: [injector.interceptors()],
    workflowModules: [new URL('./short-timeouts.ts', import.meta.url).pathname],
  },
});
send({ ready: true });
