/**
 * The steps of the sagas: each one effect on one system, idempotent, and thin. The database's rules live in `db/`, the
 * protocol's in `sled-client.ts`, what an error means in `failures.ts`.
 */
import type { ActivityContext, SagaContext } from './context.ts';
import { migrateActivities } from './instance-migrate.ts';
import { startActivities } from './instance-start.ts';
import { stopActivities } from './instance-stop.ts';
import { updateActivities } from './instance-update.ts';
import { instrumented } from './instrumented.ts';
import { registerActivities } from './register-vmm.ts';
import { StepSleds } from './step-sleds.ts';
import { unregisterActivities } from './unregister-leftover.ts';
import { unwindActivities } from './unwind.ts';

export type SagaActivities = ReturnType<typeof createSagaActivities>;

/** Makes the activities of the sagas over one database, one set of sleds and one Temporal client. */
export function createSagaActivities({ sleds, ...shared }: ActivityContext) {
  const context: SagaContext = { ...shared, sleds: new StepSleds(sleds) };
  return instrumented(context.metrics, {
    ...startActivities(context),
    ...migrateActivities(context),
    ...registerActivities(context),
    ...unwindActivities(context),
    ...updateActivities(context),
    ...stopActivities(context),
    ...unregisterActivities(context),
  });
}
