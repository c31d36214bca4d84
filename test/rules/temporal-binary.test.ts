/** How the Temporal CLI is found, and what may not keep a process waiting for it. */
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { findTemporalBinary, runTool } from '../../stack/temporal-binary.ts';
import { startTemporalServer } from '../../stack/temporal-server.ts';

let root: string;
beforeAll(() => {
  root = mkdtempSync(join(tmpdir(), 'mooring-find-'));
  mkdirSync(join(root, 'folder', 'temporal'), { recursive: true });
  mkdirSync(join(root, 'plain'));
  writeFileSync(join(root, 'plain', 'temporal'), '', { mode: 0o644 });
  mkdirSync(join(root, 'program'));
  writeFileSync(join(root, 'program', 'temporal'), '#!/bin/sh\n');
  chmodSync(join(root, 'program', 'temporal'), 0o755);
});
afterAll(() => rmSync(root, { recursive: true, force: true }));

const NO_PROGRAMS = ['folder', 'plain', 'none'];

test.each(NO_PROGRAMS)('what is called temporal on PATH and is no program (%s) is passed over', async (name) => {
  const PATH = [join(root, name), join(root, 'program')].join(delimiter);
  expect(await findTemporalBinary({ PATH })).toEqual({ path: join(root, 'program', 'temporal'), source: 'PATH' });
});

test.each(NO_PROGRAMS)('MOORING_TEMPORAL_BINARY must name a program (%s)', async (name) => {
  const MOORING_TEMPORAL_BINARY = join(root, name, 'temporal');
  await expect(findTemporalBinary({ MOORING_TEMPORAL_BINARY })).rejects.toThrow(/is not a program that can be run/);
});

test('a tool that does not end is ended, though what it began lives on', async () => {
  await expect(runTool('sh', ['-c', 'sleep 5 & sleep 600'], 50)).rejects.toThrow('sh was not done within 0.05 s');
  await expect(runTool('sh', ['-c', 'echo some words >&2; exit 3'])).rejects.toThrow('sh failed: some words');
  await expect(runTool(join(root, 'none'), [])).rejects.toThrow(/can't be run/);
  await expect(runTool('true', [])).resolves.toBeUndefined();
});

test.each([true, false])(
  'one that ends at once is named, with what it printed and what to set (its log in a file: %s)',
  async (logged) => {
    const binary = join(root, 'old-temporal');
    writeFileSync(binary, '#!/bin/sh\necho "unknown flag: --dynamic-config-value" >&2\nexit 3\n', { mode: 0o755 });
    const logFile = join(root, 'temporal.log');
    writeFileSync(logFile, 'of a former run\n');
    await expect(startTemporalServer({ binary, ...(logged ? { logFile } : {}) })).rejects.toThrow(
      `the Temporal server of ${binary} did not start: it ended with exit code 3, and printed: unknown flag: --dynamic-config-value; MOORING_TEMPORAL_BINARY names`,
    );
  },
);

test('a cache that can’t be written is named, with what to set', async () => {
  const MOORING_CACHE = join(root, 'program', 'temporal', 'cache');
  await expect(findTemporalBinary({ PATH: '', MOORING_CACHE, MOORING_OFFLINE: '1' })).rejects.toThrow(
    new RegExp(`the cache \\(${MOORING_CACHE}.*: none; MOORING_CACHE names another`),
  );
});
