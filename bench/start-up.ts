/**
 * `npm run bench:start-up`: what it takes to start each process, by the program that `npm run build` has made and by the TypeScript
 * as it is, one after the other on the same machine: time until it says that it is ready, CPU until then, memory a little later.
 */
import { spawn } from 'node:child_process';
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { Command } from 'commander';
import { table } from '../cli/output.ts';
import { migrateDatabase } from '../db/migrate.ts';
import { buildProgram } from '../packaging/build.ts';
import { freePort } from '../platform/host/child-process.ts';
import { startEmbeddedPostgres } from '../stack/embedded-postgres.ts';
import { findTemporalBinary } from '../stack/temporal-binary.ts';
import { startTemporalServer } from '../stack/temporal-server.ts';
import { median } from './report/statistics.ts';
import { cpuMs, familyResidentBytes } from './system/usage.ts';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
/** How long after it is ready memory is read, in milliseconds. */
const SETTLED_MS = 3_000;

interface Measured {
  readonly readyMs: number;
  readonly cpuMs: number;
  readonly residentBytes: number;
}

interface Measurable {
  readonly title: string;
  args(): Promise<string[]>;
  /** What it prints when it is ready; `null`: when it ends. */
  readonly ready: RegExp | null;
}

const PROCESSES: readonly Measurable[] = [
  { title: 'mooring --help', args: async () => ['--help'], ready: null },
  { title: 'mooring worker', args: async () => ['worker'], ready: /worker: running/ },
  {
    title: 'mooring api',
    args: async () => ['api', '--authentication', 'open', '--port', String(await freePort())],
    ready: /API: http/,
  },
  {
    title: 'mooring sled-agent (simulated)',
    args: async () => [
      ...['sled-agent', '--name', 'measured', '--address', `127.0.0.1:${await freePort()}`],
      ...['--network-poll-ms', '0'],
    ],
    ready: /sled agent "measured"/,
  },
];

/** Starts a process, measures it, and ends it. Throws with what it printed when it ends before it is ready. */
async function measure(
  node: readonly string[],
  { args, ready }: Measurable,
  env: NodeJS.ProcessEnv,
): Promise<Measured> {
  const beganMs = performance.now();
  const child = spawn(process.execPath, [...node, ...(await args())], {
    cwd: ROOT,
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let output = '';
  let isOver = false;
  const ended = new Promise<void>((resolve) =>
    child.once('close', () => {
      isOver = true;
      resolve();
    }),
  );
  const isReady = new Promise<void>((resolve) => {
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding('utf8').on('data', (text: string) => {
        output += text;
        if (ready?.test(output)) resolve();
      });
  });
  await Promise.race([isReady, ended]);
  const readyMs = performance.now() - beganMs;
  if (ready === null) return { readyMs, cpuMs: Number.NaN, residentBytes: Number.NaN };
  if (isOver) throw new Error(`it ended: ${output}`);
  const { pid } = child;
  if (pid === undefined) throw new Error('it has no process');
  const used = await cpuMs(pid);
  await pause(SETTLED_MS);
  const residentBytes = await familyResidentBytes(pid);
  child.kill('SIGTERM');
  await ended;
  return { readyMs, cpuMs: used, residentBytes };
}

async function run({ rounds, json }: { rounds: number; json?: string }): Promise<void> {
  const folder = await mkdtemp('/var/tmp/mooring-start-up-');
  await chmod(folder, 0o711);
  const postgres = await startEmbeddedPostgres({ dataDir: join(folder, 'postgres') });
  const temporal = await startTemporalServer({ binary: (await findTemporalBinary()).path, uiPort: null });
  try {
    await migrateDatabase(postgres.url);
    const program = join(ROOT, '.mooring', 'start-up');
    await buildProgram(program);
    const ways = {
      built: [join(program, 'cli/mooring.js')],
      'from TypeScript': ['--import', 'tsx', join(ROOT, 'cli/mooring.ts')],
    };
    const env = {
      ...process.env,
      DATABASE_URL: postgres.url,
      TEMPORAL_ADDRESS: temporal.address,
      MOORING_LOG_LEVEL: 'error',
      MOORING_WORKER_VERSIONING: 'off',
    };
    const rows: { process: string; way: string; ready_ms: number; cpu_ms: number; resident_mb: number }[] = [];
    for (const what of PROCESSES)
      for (const [way, node] of Object.entries(ways)) {
        const found: Measured[] = [];
        for (let round = 0; round < rounds; round++) found.push(await measure(node, what, env));
        const of = (take: (one: Measured) => number) => median(found.map(take));
        rows.push({
          process: what.title,
          way,
          ready_ms: of((one) => one.readyMs),
          cpu_ms: of((one) => one.cpuMs),
          resident_mb: of((one) => one.residentBytes) / 1e6,
        });
      }
    const shown = (value: number) => (Number.isNaN(value) ? '–' : value.toFixed(0));
    console.log(
      table(
        ['PROCESS', 'PROGRAM', 'READY AFTER (MS)', 'CPU (MS)', 'MEMORY (MB)'],
        rows.map(({ process: title, way, ...row }) => [
          ...[title, way, shown(row.ready_ms), shown(row.cpu_ms), shown(row.resident_mb)],
        ]),
      ),
    );
    if (json !== undefined) await writeFile(json, `${JSON.stringify(rows, null, 2)}\n`);
    await rm(program, { recursive: true, force: true });
  } finally {
    await temporal.stop();
    await postgres.stop();
    await rm(folder, { recursive: true, force: true });
  }
}

await new Command('start-up')
  .description('measures what it takes to start each process, built and from TypeScript')
  .option('--rounds <n>', 'how often each is started', Number, 5)
  .option('--json <file>', 'write the medians there')
  .action(run)
  .parseAsync();
