/**
 * The worker evaluates the workflows' modules once and shares them between all workflows (`preloadModules`): a module that
 * kept something between calls would leak it from one workflow into another, and break replay.
 */
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';

const root = fileURLToPath(new URL('../..', import.meta.url));

/** Every file that ends up in the bundle: the workflows, and what they import of the rules. */
async function bundled(): Promise<string[]> {
  const files = (await readdir(join(root, 'workflows'))).map((name) => join(root, 'workflows', name));
  for (const file of files) {
    const text = await readFile(file, 'utf8');
    for (const [, path = ''] of text.matchAll(/^(?:import|export) (?!type)[^;]*? from '(\.[^']+)';/gm)) {
      const imported = join(file, '..', path);
      if (!files.includes(imported)) files.push(imported);
    }
  }
  return files;
}

test('the workflows hold themselves and the rules: of every other room they take types alone', async () => {
  for (const file of await bundled()) expect(file.slice(root.length)).toMatch(/^(workflows|model)\//);
});

/** What could keep something: a variable that can change, or a collection that can. */
const KEEPS = /^(?:export )?(?:let|var) |^(?:export )?const [^=]*=\s*(?:new (?!Set\b)|\[\];|\{\};)/m;
const MUTABLE_SET = /^(?:export )?const \w+ = new Set/m;

test('no module of the workflows, nor of what they import, keeps anything between calls', async () => {
  const files = await bundled();
  expect(files.map((file) => file.slice(root.length))).toEqual(
    expect.arrayContaining(['workflows/instance-start.ts', 'workflows/interceptors.ts', 'model/saga-story.ts']),
  );
  for (const file of files) {
    const text = await readFile(file, 'utf8');
    expect(text, file).not.toMatch(KEEPS);
    expect(text, file).not.toMatch(MUTABLE_SET);
  }
});

test.each([
  'let count = 0;',
  'export let last: string | null = null;',
  'const seen = new Map<string, number>();',
  'const all: string[] = [];',
  'const seen = new Set();',
])('such a module would be found: %s', (line) => {
  expect(KEEPS.test(`\n${line}\n`) || MUTABLE_SET.test(`\n${line}\n`)).toBe(true);
});
