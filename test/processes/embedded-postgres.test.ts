/** The embedded PostgreSQL as a part of other processes. */
import { spawnSync } from 'node:child_process';
import { chmod, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';

const root = fileURLToPath(new URL('../..', import.meta.url));

test('a process that does nothing else can wait for PostgreSQL to stop', async () => {
  const directory = await mkdtemp(join(process.platform === 'linux' ? '/var/tmp' : tmpdir(), 'mooring-test-'));
  await chmod(directory, 0o711);
  try {
    const program = `
      import { startEmbeddedPostgres } from './stack/embedded-postgres.ts';
      const postgres = await startEmbeddedPostgres({ dataDir: ${JSON.stringify(directory)}, durable: false });
      await postgres.stop();
      console.log('stopped');`;
    const { status, stdout } = spawnSync(
      process.execPath,
      ['--import', 'tsx', '--input-type=module', '--eval', program],
      { cwd: root, encoding: 'utf8' },
    );
    expect({ status, stdout: stdout.trim() }).toEqual({ status: 0, stdout: 'stopped' });
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
});
