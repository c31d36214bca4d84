/** All that a sled agent writes goes through its disk (`sled-agent/disk.ts`): else a full disk is a fault of its own there. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';

const ROOM = fileURLToPath(new URL('../../sled-agent', import.meta.url));

/** What may be imported of `node:fs` and `node:fs/promises` anywhere: it only reads, and leaves no file open. */
const READS: ReadonlySet<string> = new Set([
  ...['existsSync', 'readFileSync', 'readdirSync', 'readlinkSync', 'realpathSync', 'statSync'],
  ...['access', 'constants', 'readFile', 'readdir', 'stat'],
]);
/** Files that write to the cache of this machine, before an agent has anything to lose. */
const PREPARATION: ReadonlySet<string> = new Set(['qemu/guest-image.ts', 'qemu/prepare-qemu.ts']);

const files = readdirSync(ROOM, { recursive: true, encoding: 'utf8' }).filter((name) => name.endsWith('.ts'));

test.each(files.filter((name) => name !== 'disk.ts' && !PREPARATION.has(name)))('%s only reads', (name) => {
  const text = readFileSync(join(ROOM, name), 'utf8');
  const named = [...text.matchAll(/import (?:type )?([^']*?) from 'node:fs(?:\/promises)?'/gs)].flatMap(([, names]) =>
    (names ?? '').replace(/[{}]/g, '').split(','),
  );
  const imported = named.map((one) => one.trim()).filter((one) => one !== '');
  expect(imported.filter((one) => !READS.has(one))).toEqual([]);
  expect(text).not.toMatch(/import\('node:fs|require\('(node:)?fs|from 'fs|process\.binding/);
});

test('the folder is looked at', () => {
  expect(files).toContain('disk.ts');
  expect(files).toContain(join('qemu', 'vm-journal.ts'));
});
