/** The list of sabotages keeps pace with the code; that each is caught is shown by `npm run mutants`. */
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { applyEdit, MUTANTS, StaleMutant } from './mutants.ts';

const at = (file: string) => fileURLToPath(new URL(`../../${file}`, import.meta.url));

test.each(MUTANTS)('$name: has its place, and a test to catch it', async ({ name, edits, caughtBy }) => {
  const texts = new Map<string, string>();
  for (const edit of edits) {
    const before = texts.get(edit.file) ?? (await readFile(at(edit.file), 'utf8'));
    const after = applyEdit(before, edit, name);
    expect(after).not.toBe(before);
    texts.set(edit.file, after);
  }
  expect(caughtBy.length).toBeGreaterThan(0);
  for (const file of caughtBy) expect(existsSync(at(file)), file).toBe(true);
});

test('every sabotage has a name of its own', () => {
  expect(new Set(MUTANTS.map(({ name }) => name)).size).toBe(MUTANTS.length);
});

test('a sabotage whose text has gone, or stands there more often than it says, is refused', () => {
  const edit = { file: 'x', find: 'a', replace: 'b' };
  expect(() => applyEdit('c', edit, 'm')).toThrow(StaleMutant);
  expect(() => applyEdit('a a', edit, 'm')).toThrow(StaleMutant);
  expect(applyEdit('a a', { ...edit, times: 2 }, 'm')).toBe('b b');
});
