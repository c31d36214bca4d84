/**
 * The steps of the sagas: each one effect on one system, idempotent, and thin. The database's rules live in `db/`, the
 * protocol's in `sled-client.ts`, what an error means in `failures.ts`.
 */
import { SledCircuitBreaker } from './circuit-breaker.ts';
import type { ActivityContext } from './context.ts';
import { migrateActivities } from './instance-migrate.ts';
import { startActivities } from './instance-start.ts';
import { stopActivities } from './instance-stop.ts';
import { updateActivities } from './instance-update.ts';
import { instrumented } from './instrumented.ts';
import { registerActivities } from './register-vmm.ts';
import { unregisterActivities } from './unregister-leftover.ts';
import { unwindActivities } from './unwind.ts';

export type SagaActivities = ReturnType<typeof createSagaActivities>;

/** Makes the activities of the sagas over one database, one set of sleds and one Temporal client. */
export function createSagaActivities(context: ActivityContext) {
  return instrumented(context.metrics, {
    ...startActivities(context),
    ...migrateActivities(context),
    ...registerActivities(context, new SledCircuitBreaker()),
    ...unwindActivities(context),
    ...updateActivities(context),
    ...stopActivities(context),
    ...unregisterActivities(context),
  });
}
