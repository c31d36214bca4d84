/** The program on every Node that `engines` lets in, beside the one that runs these tests; and what an older one is told. */
import { readFile } from 'node:fs/promises';
import { expect, test } from 'vitest';
import { MOORING, startProgram } from '../support/command.ts';
import { findNode } from '../support/find-node.ts';

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
