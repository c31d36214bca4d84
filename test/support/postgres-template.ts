/** One PostgreSQL is initialised and migrated for all test files (global-setup.ts); each starts its own on a copy. */
import { execFile } from 'node:child_process';
import { chmod, mkdir, mkdtemp } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { migrateDatabase } from '../../db/migrate.ts';
import { type EmbeddedPostgres, startEmbeddedPostgres } from '../../stack/embedded-postgres.ts';

/** Starts a PostgreSQL of its own, with the schema, in a new folder that is the caller's to remove. */
export async function startTestPostgres(): Promise<{ directory: string; postgres: EmbeddedPostgres }> {
  // Below a folder that PostgreSQL's own user may enter, also where the tests run as root.
  const directory = await mkdtemp('/var/tmp/mooring-test-');
  await chmod(directory, 0o711);
  const dataDir = join(directory, 'postgres');
  await copyPostgresTemplate(dataDir);
  const postgres = await startEmbeddedPostgres({ dataDir, durable: false });
  await migrateDatabase(postgres.url);
  return { directory, postgres };
}

/** Makes the template. Resolves with its folder, which is the caller's to remove. */
export async function makePostgresTemplate(): Promise<string> {
  const { directory, postgres } = await startTestPostgres();
  await postgres.stop();
  return directory;
}

/** Copies the template to where a PostgreSQL will be started, owners included. Does nothing where none was made. */
export async function copyPostgresTemplate(dataDir: string): Promise<void> {
  const { MOORING_TEST_POSTGRES: template } = process.env;
  if (!template) return;
  await mkdir(dataDir, { recursive: true });
  await promisify(execFile)('cp', ['-a', join(template, 'postgres', '.'), dataDir]);
}
