import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vitest/config';
import { BaseSequencer, type TestSpecification } from 'vitest/node';

/**
 * What takes longest goes first, so that no worker is still at it when the others have nothing left. Neighbours take turns:
 * what keeps the cores busy stands beside what waits (for leases, for guests that boot).
 */
const LONGEST = [
  'test/matrix/matrix.test.ts',
  'test/sled-agent/qemu-faults.test.ts',
  'test/soak/soak.test.ts',
  'test/upgrade/upgrade.test.ts',
  'test/sled-agent/qemu-protocol.test.ts',
  'test/lifecycle/drain.test.ts',
  'test/sagas/lost-task.test.ts',
  'test/trust/outages.test.ts',
  'test/trust/authority-rotation.test.ts',
  'test/trust/random-fencing.test.ts',
  'test/e2e/web-ui.test.ts',
  'test/console/console.test.ts',
  'test/trust/qemu-fencing.test.ts',
  'test/trust/fuzz.test.ts',
  'test/lifecycle/reconcilers.test.ts',
  'test/trust/fencing.test.ts',
  'test/sagas/silent-sleds.test.ts',
].map((file) => {
  const path = fileURLToPath(new URL(file, import.meta.url));
  if (!existsSync(path)) throw new Error(`vitest.config.ts puts ${file} first, which is not there: correct its list`);
  return path;
});

class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const rank = ({ moduleId }: TestSpecification) => LONGEST.indexOf(moduleId);
    const first = files.filter(({ moduleId }) => LONGEST.includes(moduleId)).sort((a, b) => rank(a) - rank(b));
    const others = files.filter(({ moduleId }) => !LONGEST.includes(moduleId));
    return [...first, ...(await super.sort(others))];
  }
}

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // Real servers on two cores: a time-out here means "stuck", not "slow", also where others keep the machine busy. Each
    // wait inside has a limit of its own, which says what was waited for (test/support/wait.ts).
    testTimeout: 400_000,
    hookTimeout: 400_000,
    // Much of it waits: for leases to lapse, for time-outs, for processes to come up. Two cores are busy with three.
    maxWorkers: 3,
    pool: 'forks',
    globalSetup: 'test/support/global-setup.ts',
    sequence: { sequencer: LongestFirst },
  },
});
