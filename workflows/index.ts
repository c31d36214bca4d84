/** What the worker bundles: every workflow type by its exported name. */
import { setWorkflowOptions } from '@temporalio/workflow';
import { SAGA_STEPS, type SagaSteps } from '../model/saga-steps.ts';
import * as workflows from './index.ts';

export { instanceMigrate } from './instance-migrate.ts';
export { instanceStart } from './instance-start.ts';
export { instanceStop } from './instance-stop.ts';
export { instanceUpdate } from './instance-update.ts';
export { autoRestart, reaper, updaterScan, watcher } from './reconcile.ts';
export { sledDrain } from './sled-drain.ts';
export { vmmUnregister } from './vmm-unregister.ts';
export { vmmUnwind } from './vmm-unwind.ts';

// A workflow that may last goes over to a new build with its next step; the others end on the build that began them,
// which is the worker's default (worker/worker.ts).
for (const [name, workflow] of Object.entries(workflows)) {
  const declared: SagaSteps | undefined = (SAGA_STEPS as Readonly<Record<string, SagaSteps>>)[name];
  if (!declared?.pinned) setWorkflowOptions({ versioningBehavior: 'AUTO_UPGRADE' }, workflow as () => Promise<unknown>);
}
