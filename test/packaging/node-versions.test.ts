/** The program on every Node that `engines` lets in, beside the one that runs these tests; and what an older one is told. */
import { execFile } from 'node:child_process';
import { access, mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { cacheDirectory } from '../../stack/temporal-binary.ts';
import { MOORING, startProgram } from '../support/command.ts';

const run = promisify(execFile);
/** npm has Node's own builds, by platform. */
const PACKAGE = `node-${process.platform}-${process.arch}`;

/** A Node of a major version: kept from an earlier run, or fetched from the registry. */
async function findNode(major: number): Promise<string> {
  const folder = join(cacheDirectory(), `node-${major}`);
  const program = join(folder, 'node_modules', PACKAGE, 'bin/node');
  const isThere = await access(program).then(
    () => true,
    () => false,
  );
  if (isThere) return program;
  await mkdir(folder, { recursive: true });
  const quiet = ['--no-save', '--no-audit', '--no-fund', '--prefix', folder];
  await run('npm', ['install', ...quiet, `${PACKAGE}@${major}`]);
  return program;
}

test.each([22, 24])('plays the demo on Node %i', async (major) => {
  const node = await findNode(major);
  const { code, stdout, stderr } = await startProgram(node, [...MOORING, 'demo']).done;
  expect([code, stderr]).toEqual([0, expect.not.stringMatching(/Warning|error/)]);
  expect(stdout).toMatch(/Every step ended as the scenario says\./);
});

test('tells an older Node what it needs, in one line', async () => {
  const node = await findNode(18);
  const { code, stdout, stderr } = await startProgram(node, [...MOORING.slice(-1), 'instance', 'list']).done;
  // One that can't even read TypeScript fails by itself, where nothing was built.
  if (!process.env.MOORING_TEST_PROGRAM) return;
  expect([code, stdout]).toEqual([1, '']);
  expect(stderr).toMatch(/^error: mooring needs Node 20\.\d+ or later, and this is v18\.\S+: install a newer one\n$/);
});

test('engines says what the program asks for', async () => {
  const { engines } = JSON.parse(await readFile(new URL('../../package.json', import.meta.url), 'utf8'));
  const program = await readFile(new URL('../../cli/mooring.ts', import.meta.url), 'utf8');
  const [, needed = ''] = /const NEEDED = \[([\d, ]+)\]/.exec(program) ?? [];
  expect(engines.node).toBe(`>=${needed.replace(', ', '.')}`);
});
