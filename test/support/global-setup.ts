/** Before every run of the tests: the workflows are bundled once, instead of by each test file that has a worker. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { workflowBundle } from '../../worker/worker.ts';

/** Found by vitest under this name; what it returns is run when all tests have. The processes of test files have its environment. */
export async function setup(): Promise<() => Promise<void>> {
  const folder = await mkdtemp(join(tmpdir(), 'mooring-bundle-'));
  const file = join(folder, 'workflows.json');
  await writeFile(file, JSON.stringify(await workflowBundle()));
  process.env.MOORING_TEST_BUNDLE = file;
  return () => rm(folder, { recursive: true, force: true });
}
