/** One PostgreSQL is initialised and migrated for all test files (global-setup.ts); each starts its own on a copy. */
import { execFile } from 'node:child_process';
import { chmod, mkdir, mkdtemp } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { migrateDatabase } from '../../db/connect.ts';
import { startEmbeddedPostgres } from '../../worker/embedded-postgres.ts';

/** Makes the template. Resolves with its folder, which is the caller's to remove. */
export async function makePostgresTemplate(): Promise<string> {
  // Below a folder that PostgreSQL's own user may enter, also where the tests run as root.
  const folder = await mkdtemp('/var/tmp/mooring-template-');
  await chmod(folder, 0o711);
  const dataDir = join(folder, 'postgres');
  const postgres = await startEmbeddedPostgres({ dataDir, durable: false });
  await migrateDatabase(postgres.url);
  await postgres.stop();
  return folder;
}

/** Copies the template to where a PostgreSQL will be started, owners included. Does nothing outside of vitest. */
export async function copyPostgresTemplate(dataDir: string): Promise<void> {
  const { MOORING_TEST_POSTGRES: template } = process.env;
  if (!template) return;
  await mkdir(dataDir, { recursive: true });
  await promisify(execFile)('cp', ['-a', join(template, 'postgres', '.'), dataDir]);
}
