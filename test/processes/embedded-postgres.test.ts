/** The embedded PostgreSQL as a part of other processes. */
import { spawnSync } from 'node:child_process';
import { chmod, mkdir, mkdtemp, readlink, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { linkLibraries } from '../../stack/embedded-postgres.ts';

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

test('libraries that were installed without scripts get their links, and keep those that they have', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'mooring-test-'));
  const native = join(folder, 'native');
  try {
    await mkdir(join(native, 'lib'), { recursive: true });
    const names = ['libicuuc.so', 'libicuuc.so.60'];
    const list = names.map((name) => ({ source: 'native/lib/libicuuc.so.60.2', target: `native/lib/${name}` }));
    await writeFile(join(native, 'pg-symlinks.json'), JSON.stringify(list));
    await writeFile(join(native, 'lib/libicuuc.so.60.2'), '');
    for (let time = 1; time <= 2; time++) {
      await linkLibraries(native);
      for (const name of names) expect(await readlink(join(native, 'lib', name))).toBe('libicuuc.so.60.2');
    }
    await rm(join(native, 'lib'), { recursive: true });
    await expect(linkLibraries(native)).rejects.toThrow(/without their links.*ENOENT.*npm rebuild.*DATABASE_URL/);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
});
