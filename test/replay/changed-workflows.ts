/** The workflows of a build that was changed without care: its start waits before it claims. For the tests of a roll-out. */
import { setWorkflowOptions, sleep } from '@temporalio/workflow';
import type { InstanceStartInput } from '../../model/workflow-inputs.ts';
import { instanceStart as original } from '../../workflows/instance-start.ts';

export {
  autoRestart,
  fencing,
  instanceMigrate,
  instanceStop,
  instanceUpdate,
  migrationWatch,
  reaper,
  sledDrain,
  updaterScan,
  vmmUnregister,
  vmmUnwind,
  watcher,
} from '../../workflows/index.ts';

export async function instanceStart(input: InstanceStartInput) {
  await sleep(1);
  return original(input);
}
setWorkflowOptions({ versioningBehavior: 'PINNED' }, instanceStart);
