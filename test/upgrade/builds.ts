/** Programs of several versions, each built into a folder of its own as it would be installed. */
import { execFile } from 'node:child_process';
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { promisify } from 'node:util';
import { z } from 'zod';
import type { MooringClient } from '../../client/mooring-client.ts';
import { copyTree, ROOT, shareInstalled } from '../support/tree-copy.ts';
import { plantChanges } from './planted-changes.ts';

/** The commits of what was released, the newest last: an installation of it must be able to go over to the working tree. */
export const RELEASES: Readonly<Record<string, string>> = { '0.2.0': 'adb4af7dec52e5bda08dfe34251247c4d72983c7' };

const run = promisify(execFile);

/** A version that can be run. */
export interface Build {
  /** Its build id, for the worker deployment. */
  readonly id: string;
  /** What Node is called with to run its `mooring`. */
  readonly program: string;
  /** Its workflows, as its workers run them. */
  readonly bundle: { readonly code: string; readonly sourceMap: string };
  readonly Client: typeof MooringClient;
}

/** Whether this copy has its history: a part of it, or none, has no releases. */
export async function hasHistory(): Promise<boolean> {
  return run('git', ['-C', ROOT, 'rev-parse', '--is-shallow-repository']).then(
    ({ stdout }) => stdout.trim() === 'false',
    () => false,
  );
}

/** Builds a release in an empty folder. Throws what git, npm or the build says. */
export async function buildRelease(version: string, folder: string): Promise<Build> {
  await mkdir(folder, { recursive: true });
  const archive = join(folder, 'tree.tar');
  await run('git', ['-C', ROOT, 'archive', '--output', archive, RELEASES[version] ?? version]);
  await run('tar', ['-xf', archive, '-C', folder]);
  if (await needsTheSame(folder)) await shareInstalled(folder);
  else await run('npm', ['ci', '--ignore-scripts', '--no-audit', '--no-fund'], { cwd: folder });
  return build(version, folder);
}

/** Builds the working tree in an empty folder, with the changes that a next version may bring, or as it is. */
export async function buildWorkingTree(id: string, folder: string, { planted = false } = {}): Promise<Build> {
  await copyTree(folder);
  if (planted) await plantChanges(folder);
  return build(id, folder);
}

const rootPackage = z.object({ dependencies: z.record(z.string(), z.string()) });
const lockFile = z.object({ packages: z.record(z.string(), z.object({ version: z.string().optional() })) });

/** Whether everything that a tree's program imports is installed here in the version that it was released with. */
async function needsTheSame(folder: string): Promise<boolean> {
  const read = async (tree: string, file: string): Promise<unknown> =>
    JSON.parse(await readFile(join(tree, file), 'utf8'));
  const { dependencies } = rootPackage.parse(await read(folder, 'package.json'));
  const [there, here] = await Promise.all(
    [folder, ROOT].map(async (tree) => lockFile.parse(await read(tree, 'package-lock.json')).packages),
  );
  return Object.keys(dependencies)
    .map((name) => `node_modules/${name}`)
    .every((path) => there?.[path]?.version === here?.[path]?.version);
}

async function build(id: string, folder: string): Promise<Build> {
  await run('npm', ['run', 'build'], { cwd: folder, env: { ...process.env, MOORING_TEST_PROGRAM: '' } });
  const program = join(folder, 'dist/mooring');
  const client = pathToFileURL(join(folder, 'dist/client/esm/client/mooring-client.js')).href;
  return {
    id,
    program: join(program, 'cli/mooring.js'),
    bundle: { code: await readFile(join(program, 'workflow-bundles/versioned.js'), 'utf8'), sourceMap: '' },
    Client: ((await import(client)) as { MooringClient: typeof MooringClient }).MooringClient,
  };
}
