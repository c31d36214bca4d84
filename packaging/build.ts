/**
 * Makes what is installed out of the working tree (`npm run build`): `dist/mooring`, the program, and `dist/client`, the client
 * library. Both are packages, ready for `npm pack`. TypeScript's own compiler makes them, file by file: what runs is what one
 * reads, its stack traces need no map, and each command loads only the files that it uses.
 */
import { execFile } from 'node:child_process';
import { realpathSync } from 'node:fs';
import { chmod, cp, mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { z } from 'zod';
import { BUILD_FILE, type BuildInfo } from '../platform/host/build-info.ts';
import { makeBuildId } from '../worker/build-id.ts';
import { BUILT_BUNDLES, BUNDLE_FOLDER, workflowBundle } from '../worker/workflow-bundle.ts';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const PROGRAM = '@mooring-vm/mooring';
const CLIENT = '@mooring-vm/client';
/** Files beside the code. */
const ASSETS = [
  ...['db/migrations', 'cli/demo.yaml'],
  // For whoever installs it (docs/install.md).
  ...['deploy/systemd', 'deploy/prometheus/mooring-rules.yaml', 'deploy/grafana-dashboard.json'],
];
/** What every package holds for people. */
const PAPERS = ['LICENSE', 'CHANGELOG.md'];

const versions = z.record(z.string(), z.string());
const rootPackage = z.object({
  version: z.string(),
  description: z.string(),
  license: z.string(),
  engines: z.object({ node: z.string() }),
  dependencies: versions,
  optionalDependencies: versions.optional(),
  overrides: z.record(z.string(), z.union([z.string(), versions])),
  // Nothing that is installed runs a script of its own.
  allowScripts: z.record(z.string(), z.literal(false)),
});
type RootPackage = z.infer<typeof rootPackage>;

/**
 * Builds the program into a folder, which is emptied first. It must lie within the working tree, by whose `node_modules` the
 * program runs there. Throws, with what the compiler says, when the code does not compile.
 */
export async function buildProgram(folder: string): Promise<void> {
  await rm(folder, { recursive: true, force: true });
  await mkdir(join(folder, BUNDLE_FOLDER), { recursive: true });
  const { dependencies, optionalDependencies, overrides, allowScripts, ...common } = await readRootPackage();
  const manifest = {
    name: PROGRAM,
    ...common,
    type: 'module',
    bin: { mooring: 'cli/mooring.js' },
    // It has no door for other programs: those use the client library.
    exports: {},
    dependencies,
    optionalDependencies,
    overrides,
    allowScripts,
  };
  await Promise.all([
    compile('tsconfig.build.json', '--outDir', folder),
    ...Object.entries(BUILT_BUNDLES).map(async ([name, modules]) => {
      const { code } = await workflowBundle(modules);
      await writeFile(join(folder, BUNDLE_FOLDER, name), withoutPlace(code));
    }),
    ...[...ASSETS, ...PAPERS, 'README.md'].map((path) => cp(join(ROOT, path), join(folder, path), { recursive: true })),
    buildConsole(join(folder, 'console')),
    writeBuildInfo(folder),
    writePackage(folder, manifest),
    writeLock(folder, manifest),
  ]);
  await chmod(join(folder, 'cli/mooring.js'), 0o755);
}

/** The oldest Node that Vite runs on. What it built is served by any that the program runs on. */
const VITE_NEEDS = [20, 19] as const;

/** Builds the console's pages into a folder. On a Node that is too old for that it says so, and there is none. Throws what Vite throws. */
export async function buildConsole(folder: string): Promise<void> {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number);
  if (major < VITE_NEEDS[0] || (major === VITE_NEEDS[0] && minor < VITE_NEEDS[1])) {
    console.warn(`the console is left out: Node ${VITE_NEEDS.join('.')} builds it, and this is ${process.version}`);
    return;
  }
  const manifest = createRequire(import.meta.url).resolve('vite/package.json');
  const { bin } = z.object({ bin: z.object({ vite: z.string() }) }).parse(JSON.parse(await readFile(manifest, 'utf8')));
  const config = join(ROOT, 'console/vite.config.ts');
  // A process of its own: by the environment of tests Vite would build what developers see, with the places of its sources.
  await promisify(execFile)(
    process.execPath,
    [join(dirname(manifest), bin.vite), 'build', '--config', config, '--outDir', folder, '--emptyOutDir'],
    { cwd: ROOT, env: { ...process.env, NODE_ENV: 'production' } },
  );
}

/**
 * Builds the client library into a folder, which is emptied first: as ES modules and as CommonJS, each with its types. Throws as
 * {@link buildProgram} does.
 */
export async function buildClient(folder: string): Promise<void> {
  await rm(folder, { recursive: true, force: true });
  const { version, license, engines, dependencies } = await readRootPackage();
  const zod = dependencies.zod;
  if (zod === undefined) throw new Error('package.json: "zod" is not among the dependencies; the client needs it');
  const kinds = { esm: 'ESNext', cjs: 'CommonJS' } as const;
  await Promise.all(
    Object.entries(kinds).map(async ([kind, module]) => {
      await compile('packaging/tsconfig.client.json', '--module', module, '--outDir', join(folder, kind));
      await writePackage(join(folder, kind), { type: kind === 'esm' ? 'module' : 'commonjs' });
    }),
  );
  const door = (kind: string) => ({
    types: `./${kind}/client/mooring-client.d.ts`,
    default: `./${kind}/client/mooring-client.js`,
  });
  await Promise.all([
    writePackage(folder, {
      ...{ name: CLIENT, version, license, engines },
      description: 'The typed client of Mooring, a control plane that keeps virtual machines tied to physical servers.',
      type: 'module',
      sideEffects: false,
      exports: { '.': { import: door('esm'), require: door('cjs') } },
      main: './cjs/client/mooring-client.js',
      types: './cjs/client/mooring-client.d.ts',
      dependencies: { zod },
    }),
    cp(join(ROOT, 'docs/client.md'), join(folder, 'README.md')),
    ...PAPERS.map((path) => cp(join(ROOT, path), join(folder, path))),
  ]);
}

const INLINE_MAP = /(\/\/# sourceMappingURL=data:application\/json;charset=utf-8;base64,)([A-Za-z0-9+/=]+)/;

/** A bundle that says, also in its source map, where its sources lie in the package, not where they lay on this machine. */
function withoutPlace(code: string): string {
  const modules = `${realpathSync(join(ROOT, 'node_modules'))}/`;
  const strip = (text: string) => text.replaceAll(modules, 'node_modules/').replaceAll(ROOT, '');
  return strip(code).replace(INLINE_MAP, (_, prefix: string, encoded: string) => {
    const map = strip(Buffer.from(encoded, 'base64').toString('utf8'));
    return prefix + Buffer.from(map).toString('base64');
  });
}

async function readRootPackage(): Promise<RootPackage> {
  return rootPackage.parse(JSON.parse(await readFile(join(ROOT, 'package.json'), 'utf8')));
}

async function writePackage(folder: string, content: object): Promise<void> {
  await mkdir(folder, { recursive: true });
  await writeFile(join(folder, 'package.json'), `${JSON.stringify(content, null, 2)}\n`);
}

const lockFile = z.looseObject({
  lockfileVersion: z.number(),
  packages: z.record(z.string(), z.looseObject({ dev: z.boolean().optional() })),
});

/**
 * What the program was tested with, by versions and hashes: whoever installs it gets the same
 * (https://docs.npmjs.com/cli/configuring-npm/npm-shrinkwrap-json).
 */
async function writeLock(folder: string, manifest: { name: string; version: string }): Promise<void> {
  const { lockfileVersion, packages } = lockFile.parse(
    JSON.parse(await readFile(join(ROOT, 'package-lock.json'), 'utf8')),
  );
  const { name, version } = manifest;
  const needed = Object.entries(packages).filter(([path, { dev }]) => path !== '' && dev !== true);
  await writeFile(
    join(folder, 'npm-shrinkwrap.json'),
    `${JSON.stringify(
      { name, version, lockfileVersion, requires: true, packages: { '': manifest, ...Object.fromEntries(needed) } },
      null,
      2,
    )}\n`,
  );
}

async function writeBuildInfo(folder: string): Promise<void> {
  const { code } = await workflowBundle(BUILT_BUNDLES['versioned.js']);
  const info: BuildInfo = { commit: await readCommit(), build_id: await makeBuildId(code) };
  await writeFile(join(folder, BUILD_FILE), `${JSON.stringify(info)}\n`);
}

/** The commit that `MOORING_BUILD_COMMIT` names (an image's), else the one that is checked out; `null` without a repository. */
async function readCommit(): Promise<string | null> {
  const { MOORING_BUILD_COMMIT: named } = process.env;
  if (named) return named;
  try {
    const { stdout } = await promisify(execFile)('git', ['-C', ROOT, 'rev-parse', 'HEAD'], { timeout: 5_000 });
    return stdout.trim();
  } catch {
    return null;
  }
}

async function compile(project: string, ...options: string[]): Promise<void> {
  const manifest = createRequire(import.meta.url).resolve('typescript/package.json');
  const { bin } = z.object({ bin: z.object({ tsc: z.string() }) }).parse(JSON.parse(await readFile(manifest, 'utf8')));
  try {
    await promisify(execFile)(
      process.execPath,
      [join(dirname(manifest), bin.tsc), '--project', join(ROOT, project), ...options],
      { cwd: ROOT },
    );
  } catch (error) {
    const { stdout = '' } = error as { stdout?: string };
    throw new Error(`${project} does not compile:\n${stdout === '' ? error : stdout}`);
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await buildProgram(join(ROOT, 'dist/mooring'));
  await buildClient(join(ROOT, 'dist/client'));
  console.log('dist/mooring: the program; dist/client: the client library');
}
