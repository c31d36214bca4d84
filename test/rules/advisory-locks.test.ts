/** Two things that take the same advisory lock wait for each other: every lock has a number of its own, from one place. */
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { ADVISORY_LOCKS } from '../../db/advisory-locks.ts';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
const ELSEWHERE = ['node_modules', 'test', 'bench', 'docs'];

async function sources(): Promise<string[]> {
  const rooms = (await readdir(ROOT, { withFileTypes: true })).filter(
    (entry) => entry.isDirectory() && !entry.name.startsWith('.') && !ELSEWHERE.includes(entry.name),
  );
  const files = await Promise.all(rooms.map(({ name }) => readdir(join(ROOT, name), { recursive: true })));
  return rooms.flatMap(({ name }, index) => (files[index] ?? []).map((file) => join(ROOT, name, file)));
}

test('the numbers differ', () => {
  expect(new Set(Object.values(ADVISORY_LOCKS)).size).toBe(Object.keys(ADVISORY_LOCKS).length);
});

test('nobody takes an advisory lock by a number of his own', async () => {
  const taken: string[] = [];
  for (const file of await sources()) {
    if (!/\.(ts|sql)$/.test(file)) continue;
    for (const [, lock] of (await readFile(file, 'utf8')).matchAll(/pg_(?:try_)?advisory_\w*lock\w*\(([^)]*)\)/g))
      taken.push(lock ?? '');
  }
  expect(taken.sort()).toEqual(
    Object.keys(ADVISORY_LOCKS)
      .sort()
      .map((name) => `\${ADVISORY_LOCKS.${name}}`),
  );
});

test('nobody takes a lock of a session: behind a pooler the next statement has another one, and the lock stays', async () => {
  for (const file of await sources())
    if (/\.(ts|sql)$/.test(file))
      expect(await readFile(file, 'utf8'), file).not.toMatch(/pg_(?:try_)?advisory_(?:un)?lock/);
});
