/** Every package that package.json names is imported somewhere, and none of production's by tests alone. */
import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { z } from 'zod';

const root = fileURLToPath(new URL('../..', import.meta.url));
const packageFile = z.object({
  dependencies: z.record(z.string(), z.string()),
  optionalDependencies: z.record(z.string(), z.string()),
  devDependencies: z.record(z.string(), z.string()),
});

/** What nothing imports, and why it is named all the same. */
const NOT_IMPORTED: Readonly<Record<string, string>> = {
  protobufjs: 'so that npm lays out one copy for all parts of the Temporal SDK (ARCHITECTURE.md)',
  '@biomejs/biome': 'a command: lint and format',
  '@types/node': 'types of the platform',
  '@types/pg': 'types of pg',
  'dependency-cruiser': 'a command: the arrows between the rooms',
};

/** The packages that these files name in an import, a `resolve` or an option. */
async function namedIn(pathspecs: readonly string[]): Promise<Set<string>> {
  const { stdout } = await promisify(execFile)('git', ['ls-files', '--', ...pathspecs], { cwd: root });
  const named = new Set<string>();
  for (const file of stdout.split('\n').filter((name) => /\.(tsx?|js|mjs)$/.test(name))) {
    const text = await readFile(join(root, file), 'utf8');
    for (const [, name] of text.matchAll(/'((?:@[\w-]+\/)?[\w][\w.-]*)(?:\/[^']*)?'/g)) if (name) named.add(name);
  }
  return named;
}

test('no dependency is idle', async () => {
  const { dependencies, optionalDependencies, devDependencies } = packageFile.parse(
    JSON.parse(await readFile(join(root, 'package.json'), 'utf8')),
  );
  const named = await namedIn(['.', ':!test/rules/dependencies.test.ts']);
  const idle = Object.keys({ ...dependencies, ...optionalDependencies, ...devDependencies }).filter(
    (name) => !named.has(name),
  );
  expect(idle.sort()).toEqual(Object.keys(NOT_IMPORTED).sort());
});

test('what production installs, production imports', async () => {
  const { dependencies, optionalDependencies } = packageFile.parse(
    JSON.parse(await readFile(join(root, 'package.json'), 'utf8')),
  );
  const named = await namedIn(['.', ':!test', ':!bench', ':!deploy', ':!console']);
  expect(
    Object.keys({ ...dependencies, ...optionalDependencies }).filter(
      (name) => !named.has(name) && NOT_IMPORTED[name] === undefined,
    ),
  ).toEqual([]);
});
