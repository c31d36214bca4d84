/** `MOORING_OFFLINE`: whatever may have to be fetched is looked for here, and fetched from nowhere. */
import { execFile } from 'node:child_process';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { makeGuestImage } from '../../sled-agent/qemu/guest-image.ts';
import { findTemporalBinary } from '../../stack/temporal-binary.ts';

let cache: string;
beforeAll(async () => {
  cache = await mkdtemp(join(tmpdir(), 'mooring-offline-'));
});
afterAll(() => rm(cache, { recursive: true, force: true }));

/** Whoever fetches something, by the file that does it. */
const FETCHERS: Readonly<Record<string, (env: NodeJS.ProcessEnv) => Promise<unknown>>> = {
  'sled-agent/qemu/guest-image.ts': (env) => makeGuestImage(cache, env),
  'stack/temporal-binary.ts': (env) => findTemporalBinary(env),
};

test.each(Object.entries(FETCHERS))('%s fetches nothing, and says what to do', async (_, fetchIt) => {
  const env = { MOORING_OFFLINE: '1', MOORING_CACHE: cache, PATH: '' };
  await expect(fetchIt(env)).rejects.toThrow(
    /nothing is fetched while MOORING_OFFLINE is set.*(--kernel|MOORING_TEMPORAL_BINARY)/,
  );
  expect(await readdir(cache)).toEqual([]);
});

test('nobody else runs a program that fetches', async () => {
  const root = fileURLToPath(new URL('../..', import.meta.url));
  const rooms = ['activities', 'api', 'cli', 'client', 'db', 'doctor', 'model', 'platform', 'sled-agent', 'stack'];
  const programs = "'(apt|apt-get|pip[0-9]?|npm|npx|go|cargo|curl|wget)'";
  const { stdout } = await promisify(execFile)(
    'grep',
    ['-rlE', '--include=*.ts', programs, ...rooms, 'temporal', 'wire', 'worker', 'workflows'],
    { cwd: root },
  );
  expect(stdout.trim().split('\n').sort()).toEqual(Object.keys(FETCHERS).sort());
});
