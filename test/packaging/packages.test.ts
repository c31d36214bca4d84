/** The two packages as their users get them: packed, installed into an empty project, imported in every way, and run. */
import { execFile } from 'node:child_process';
import { realpathSync } from 'node:fs';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { gzipSync } from 'node:zlib';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { z } from 'zod';
import { buildClient, buildProgram } from '../../packaging/build.ts';
import { doubtful, writeBillOfMaterials } from '../../packaging/sbom.ts';
import { startProgram } from '../support/command.ts';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
/** Where they really lie, which a link may hide. */
const NODE_MODULES = realpathSync(join(ROOT, 'node_modules'));
const run = promisify(execFile);
const packed = z.tuple([z.object({ filename: z.string(), files: z.array(z.object({ path: z.string() })) })]);

let built: string;
let folder: string;
let project: string;
/** The files of each package. */
const files: Record<string, string[]> = {};

beforeAll(async () => {
  // Built where the program's source maps say how its sources lie to it, and installed far from them.
  await mkdir(join(ROOT, '.mooring'), { recursive: true });
  built = await mkdtemp(join(ROOT, '.mooring', 'packages-'));
  folder = await mkdtemp(join(tmpdir(), 'mooring-packages-'));
  project = join(folder, 'project');
  await mkdir(project);
  const builds = { mooring: buildProgram, client: buildClient };
  const tarballs = await Promise.all(
    Object.entries(builds).map(async ([name, build]) => {
      await build(join(built, name));
      const { stdout } = await run('npm', ['pack', '--json', '--pack-destination', folder], {
        cwd: join(built, name),
      });
      const [pack] = packed.parse(JSON.parse(stdout));
      files[name] = pack.files.map(({ path }) => path);
      return join(folder, pack.filename);
    }),
  );
  await writeFile(join(project, 'package.json'), JSON.stringify({ name: 'of-somebody-else', private: true }));
  const quick = ['--prefer-offline', '--no-audit', '--no-fund'];
  await run('npm', ['install', ...quick, ...tarballs], { cwd: project });
});
afterAll(async () => {
  for (const made of [built, folder]) await rm(made, { recursive: true, force: true });
});

test('hold what runs, and no test, no TypeScript, no path of the machine that built them', async () => {
  for (const [name, paths] of Object.entries(files)) {
    expect(
      paths.filter((path) => /(^|\/)(test|bench)\/|(?<!\.d)\.ts$/.test(path)),
      name,
    ).toEqual([]);
    expect(paths, name).toEqual(expect.arrayContaining(['LICENSE', 'README.md', 'CHANGELOG.md', 'package.json']));
    for (const path of paths) {
      const text = await readFile(join(built, name, path), 'utf8');
      const maps = [...text.matchAll(/sourceMappingURL=data:[^,]*;base64,([A-Za-z0-9+/=]+)/g)].map(([, encoded = '']) =>
        Buffer.from(encoded, 'base64').toString('utf8'),
      );
      for (const readable of [text, ...maps])
        for (const place of [ROOT, NODE_MODULES])
          expect(readable.includes(place), `${name}/${path}: ${place}`).toBe(false);
    }
  }
  // The client's is what a program of somebody else gets: nothing of Temporal, nothing of PostgreSQL.
  const client = z
    .object({ dependencies: z.record(z.string(), z.string()) })
    .parse(JSON.parse(await readFile(join(built, 'client', 'package.json'), 'utf8')));
  expect(Object.keys(client.dependencies)).toEqual(['zod']);
  const rooms = new Set(files.client?.map((path) => /^(?:esm|cjs)\/([^/.]+)\//.exec(path)?.[1] ?? '-'));
  expect([...rooms].sort()).toEqual(['-', 'client', 'model', 'wire']);
});

test('the console is small: what it takes to see the fleet, compressed, without the terminal and the API’s own page', async () => {
  const folder = join(built, 'mooring', 'console');
  const page = await readFile(join(folder, 'index.html'), 'utf8');
  // Nothing of it is in the page itself, and nothing is elsewhere.
  expect(page).not.toMatch(/<style|<script(?![^>]* src=)|https?:/);
  const scripts = new Set([...page.matchAll(/(?:src|href)="\/assets\/([^"]+\.js)"/g)].map(([, name = '']) => name));
  // What a script takes in as it is loaded is a part of it; what it loads later is not.
  for (const name of scripts)
    for (const [, imported = ''] of (await readFile(join(folder, 'assets', name), 'utf8')).matchAll(
      /(?:from|import)\s*["']\.\/([^"']+\.js)["']/g,
    ))
      scripts.add(imported);
  const sizes = await Promise.all(
    [...scripts].map(async (name) => gzipSync(await readFile(join(folder, 'assets', name))).length),
  );
  expect(sizes.length).toBeGreaterThan(0);
  expect(sizes.reduce((sum, size) => sum + size)).toBeLessThan(150_000);
});

test('everything in it is known by its hash, under a licence that asks no more than to be named', async () => {
  const components = await writeBillOfMaterials(join(built, 'mooring'));
  expect(components.map(({ name }) => name)).toEqual(expect.arrayContaining(['@temporalio/worker', 'pg', 'fastify']));
  expect(doubtful(components)).toEqual([]);
  // The lock file is that of this very package: npm would say otherwise.
  await run('npm', ['ci', '--dry-run', '--prefer-offline'], { cwd: join(built, 'mooring') });
  const [first] = components;
  const strange = [
    { ...first, licence: 'AGPL-3.0-only' },
    { ...first, licence: null },
    { ...first, isHashed: false },
  ] as typeof components;
  expect(doubtful(strange)).toHaveLength(3);
});

const USE = 'const client = new MooringClient({ url: "http://127.0.0.1:1" });';

describe('the client library', () => {
  test.each([
    [
      'an ES module',
      'use.mjs',
      `import { MooringClient } from '@mooring-vm/client'; ${USE} console.log(typeof client.startInstance);`,
    ],
    [
      'CommonJS',
      'use.cjs',
      `const { MooringClient } = require('@mooring-vm/client'); ${USE} console.log(typeof client.startInstance);`,
    ],
  ])('is imported by %s', async (_, name, code) => {
    await writeFile(join(project, name), code);
    expect((await run(process.execPath, [name], { cwd: project })).stdout).toBe('function\n');
  });

  test.each([
    ['an ES module', 'typed.mts', 'NodeNext', ''],
    ['CommonJS', 'typed.cts', 'NodeNext', ''],
    ['what a bundler reads', 'bundled.ts', 'ESNext', 'Bundler'],
  ])('has its types for %s, and they say what is wrong', async (_, name, module, resolution) => {
    await writeFile(
      join(project, name),
      `import { MooringClient } from '@mooring-vm/client';
       ${USE}
       export const state: Promise<string> = client.getInstance('a').then(({ run_state }) => run_state);
       // @ts-expect-error: an instance's state is no number
       export const wrong: Promise<number> = client.getInstance('a').then(({ run_state }) => run_state);`,
    );
    const options = ['--noEmit', '--strict', '--types', '', '--lib', 'ES2023,DOM', '--module', module];
    const said = await run(
      join(ROOT, 'node_modules/.bin/tsc'),
      [...options, ...(resolution === '' ? [] : ['--moduleResolution', resolution]), name],
      { cwd: project },
    ).then(
      () => '',
      (error: { stdout: string }) => error.stdout,
    );
    expect(said).toBe('');
  });
});

test('the installed program runs a stack, on which the installed client starts an instance', async () => {
  const program = join(project, 'node_modules/.bin/mooring');
  const version = JSON.parse((await run(program, ['--version', '--json'])).stdout);
  expect(version).toMatchObject({ version: expect.any(String), build_id: expect.stringContaining(version.version) });
  const stack = startProgram(program, ['up', '--json', '--api-port', '0']);
  try {
    const [line] = await stack.untilPrinted(/^\{.*"api_url".*\}$/m);
    const { api_url: url } = z.object({ api_url: z.string() }).parse(JSON.parse(line));
    await writeFile(
      join(project, 'start.mjs'),
      `import { MooringClient } from '@mooring-vm/client';
       const client = new MooringClient({ url: ${JSON.stringify(url)} });
       await client.createProject({ name: 'default', description: '' }).catch(() => {});
       const made = await client.createInstance({ name: 'web', hostname: 'web', description: '', ncpus: 1, memory: 2 ** 30, start: false }, { project: 'default' });
       const { operationId } = await client.startInstance(made.id);
       await client.waitForOperation(operationId);
       let state;
       while (state !== 'running' && state !== 'failed') state = (await client.getInstance(made.id)).run_state;
       console.log(state);`,
    );
    expect((await run(process.execPath, ['start.mjs'], { cwd: project })).stdout).toBe('running\n');
  } finally {
    await stack.stop();
  }
});
