/**
 * Bundled with the workflows in the fault matrix alone: no step may take long, so that hundreds of time-outs take
 * seconds. Nothing else is changed: what a history records of a step is its name. What a step may take within its workflow
 * task is short as it is.
 */
import type { WorkflowInterceptors } from '@temporalio/workflow';

/** What a step may take here that may take so long, or longer, in milliseconds. A pass of a loop has much to do. */
const SHORTER = [
  { fromMs: 60_000, ms: 20_000 },
  { fromMs: 10_000, ms: 4_000 },
] as const;
const SHORT_HEARTBEAT_MS = 6_000;

/** Found by the SDK under this name. */
export const interceptors = (): WorkflowInterceptors => ({
  outbound: [
    {
      scheduleActivity(input, next) {
        const { startToCloseTimeout, heartbeatTimeout, ...options } = input.options;
        return next({
          ...input,
          options: {
            ...options,
            ...(startToCloseTimeout === undefined ? {} : { startToCloseTimeout: shortened(startToCloseTimeout) }),
            ...(heartbeatTimeout === undefined ? {} : { heartbeatTimeout: SHORT_HEARTBEAT_MS }),
          },
        });
      },
    },
  ],
});

/** The workflows give their time-outs in milliseconds or as "10s" and "2m". */
function shortened(timeout: string | number): number {
  const [, amount, unit] = /^(\d+)(ms|s|m)?$/.exec(String(timeout)) ?? [];
  const ms = Number(amount) * (unit === 'm' ? 60_000 : unit === 's' ? 1_000 : 1);
  return SHORTER.find(({ fromMs }) => ms >= fromMs)?.ms ?? ms;
}
