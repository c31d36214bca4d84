/** docs/install.md can be played: `npm run three-servers` does; here only that each of its steps is understood. */
import { readFile } from 'node:fs/promises';
import { expect, test } from 'vitest';
import { readPage } from './page.ts';

test('every step of docs/install.md is one that can be done', async () => {
  const steps = readPage(await readFile(new URL('../../docs/install.md', import.meta.url), 'utf8'));
  const kinds = new Set(steps.map(({ kind }) => kind));
  expect([...kinds].sort()).toEqual(['back', 'copy', 'off', 'run']);
  const servers = steps.flatMap((step) => (step.kind === 'run' ? step.on : []));
  expect([...new Set(servers)].sort()).toEqual([1, 2, 3]);
});

test('blocks without a word on servers are for readers', () => {
  expect(readPage('# Page\n```sh on=1,3\ntrue\nfalse\n```\n\n```\nnothing\n```\n')).toEqual([
    { heading: 'Page', line: 2, kind: 'run', on: [1, 3], script: 'true\nfalse\n' },
  ]);
  expect(readPage('```sh copy\nscp -r mooring-1:/a mooring-1:/b mooring-2:/c/\n```')).toMatchObject([
    { copies: [{ from: { server: 1, paths: ['/a', '/b'] }, to: { server: 2, path: '/c/' } }] },
  ]);
});

test.each([
  '```sh on=4\n```',
  '```sh on=\n```',
  '```sh elsewhere\n```',
  '```sh on=1\n',
  '```sh off\nserver-1\n```',
  '```sh copy\nrsync mooring-1:/a mooring-2:/b\n```',
  '```sh copy\nscp mooring-1:/a /b\n```',
  '```sh copy\nscp mooring-1:/a mooring-2:/b mooring-3:/c\n```',
])('%j is refused, with its line', (text) => {
  expect(() => readPage(text)).toThrow(/^line 1: /);
});
