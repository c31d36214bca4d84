/**
 * Before every run of the tests: what each test file would make for itself is made once, the workflows' bundle and an
 * initialised PostgreSQL.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { writeTestBundle } from './bundle.ts';
import { makePostgresTemplate } from './postgres-template.ts';

/** Found by vitest under this name; what it returns is run when all tests have. The processes of test files have its environment. */
export async function setup(): Promise<() => Promise<void>> {
  const folder = await mkdtemp(join(tmpdir(), 'mooring-bundle-'));
  const file = join(folder, 'workflows.json');
  const [template] = await Promise.all([makePostgresTemplate(), writeTestBundle(file)]);
  process.env.MOORING_TEST_BUNDLE = file;
  process.env.MOORING_TEST_POSTGRES = template;
  return async () => {
    for (const made of [folder, template]) await rm(made, { recursive: true, force: true });
  };
}
