/** `npm run cluster`: Mooring on a Temporal cluster of processes of its own. See `--help`. */
import { spawn } from 'node:child_process';
import { chmod, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Client } from '@temporalio/client';
import { Command, InvalidArgumentError } from 'commander';
import { colours } from '../../cli/format.ts';
import { connectClient } from '../../temporal/connection.ts';
import { SERVER_VERSION } from './cluster-binaries.ts';
import { TemporalCluster } from './temporal-cluster.ts';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const PARTS = ['demo', 'queries', 'bench', 'soak'] as const;
type Part = (typeof PARTS)[number];

interface Options {
  readonly only: readonly Part[];
  readonly minutes: number;
  readonly keep?: boolean;
}

/** Runs a program of ours to its end, and shows what it prints. Throws when it ends otherwise than with 0. */
async function run(args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<void> {
  console.log(colours.bold(`\n> ${args.join(' ')}`));
  const code = await new Promise<number | null>((resolve, reject) => {
    const child = spawn(process.execPath, ['--import', 'tsx', ...args], {
      cwd: ROOT,
      stdio: 'inherit',
      env: { ...process.env, ...env },
    });
    child.once('error', reject);
    child.once('close', resolve);
  });
  if (code !== 0) throw new Error(`${args[0]} ended with ${code}`);
}

/** Every query that docs/web-ui.md gives is one that the cluster's visibility understands. */
async function tryQueries(cluster: TemporalCluster): Promise<void> {
  const docs = await readFile(join(ROOT, 'docs/web-ui.md'), 'utf8');
  const queries = [...docs.matchAll(/workflows\?query=([^)]+)\)/g)].map(([, query = '']) => decodeURIComponent(query));
  if (queries.length === 0) throw new Error('docs/web-ui.md has no queries');
  const { connection, close } = await connectClient(cluster.settings.connection);
  try {
    const { workflow } = new Client({ connection, namespace: cluster.settings.namespace });
    for (const query of queries) {
      const { count } = await workflow.count(query);
      console.log(`${colours.green('✓')} ${String(count).padStart(4)}  ${query}`);
    }
    const starts = await workflow.count('WorkflowType = "instanceStart" AND MooringOutcome = "unwound"');
    if (starts.count === 0) throw new Error('the demo unwinds a start, and none is found by its outcome');
  } finally {
    await close();
  }
}

async function runParts({ only, minutes, keep }: Options): Promise<void> {
  const folder = await mkdtemp(join(process.platform === 'linux' ? '/var/tmp' : tmpdir(), 'mooring-cluster-'));
  await chmod(folder, 0o711);
  const print = (message: string) => console.log(`${colours.dim('·')} ${message}`);
  const cluster = await TemporalCluster.start({ folder, print });
  try {
    const { connection, namespace } = cluster.settings;
    const env = { TEMPORAL_ADDRESS: connection.address ?? '', TEMPORAL_NAMESPACE: namespace };
    if (only.includes('demo') || only.includes('queries')) await run(['cli/mooring.ts', 'demo'], env);
    if (only.includes('queries')) await tryQueries(cluster);
    if (only.includes('bench'))
      await run(
        [
          ...[
            'bench/run.ts',
            '--quick',
            '--no-counts',
            '--no-scale',
            '--only',
            'engine-minimum-external,mooring-external',
          ],
          ...['--temporal', env.TEMPORAL_ADDRESS, '--temporal-pids', cluster.pids.join()],
          ...['--json', join(folder, 'bench.json')],
        ],
        env,
      );
  } finally {
    await cluster.stop();
    if (keep) print(`data and logs are in ${folder}`);
    else await rm(folder, { recursive: true, force: true });
  }
  // It has a cluster of its own, whose processes it kills and freezes.
  if (only.includes('soak')) await run(['test/soak/main.ts', '--cluster', '--minutes', String(minutes)]);
}

await new Command('cluster')
  .description(
    `Runs Mooring on a cluster of Temporal Server ${SERVER_VERSION}: seven processes over a PostgreSQL. Go builds it where it is not there.`,
  )
  .option(
    '--only <parts>',
    `some of ${PARTS.join(', ')}, separated by commas`,
    (names): Part[] =>
      names.split(',').map((name) => {
        const part = PARTS.find((one) => one === name);
        if (part === undefined) throw new InvalidArgumentError(`"${name}" is none of ${PARTS.join(', ')}`);
        return part;
      }),
    [...PARTS],
  )
  .option('--minutes <n>', 'how long the soak lasts', Number, 10)
  .option('--keep', 'keep the cluster’s data and logs')
  .action(runParts)
  .parseAsync()
  .catch((error: unknown) => {
    console.error(`${colours.red('error:')} ${error instanceof Error ? error.message : error}`);
    process.exitCode = 1;
  });
