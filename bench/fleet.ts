/**
 * `npm run bench:fleet`: what a fleet costs that is at rest. Worker, API, PostgreSQL and Temporal, as an operator runs them, with so
 * many sleds and running instances: the CPU of each while nobody asks for anything, and their memory. The sleds are real agents with
 * simulated VMs, some hundred in a process.
 */
import { randomInt } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { Command, InvalidArgumentError } from 'commander';
import { table } from '../cli/output.ts';
import { MooringClient } from '../client/mooring-client.ts';
import { freePort, waitUntil } from '../platform/host/child-process.ts';
import { findTemporalBinary } from '../stack/temporal-binary.ts';
import { startTemporalServer } from '../stack/temporal-server.ts';
import { startProgram } from '../test/support/command.ts';
import { inParallel } from './measure/start.ts';
import type { SledAgentsInput, SledAgentsReady } from './processes/sled-agents.ts';
import { Arena } from './system/arena.ts';
import { startProcess } from './system/child.ts';
import { cpuMs, familyResidentBytes } from './system/usage.ts';

const PROGRAM = fileURLToPath(new URL('../dist/mooring/cli/mooring.js', import.meta.url));
const SLEDS_A_PROCESS = 250;
const THREADS = 128;
const MEMORY_BYTES = 512 * 1024 ** 3;
const GIBIBYTE = 1024 ** 3;
const AT_ONCE = 16;
const STUCK_MS = 600_000;

interface Options {
  readonly sleds: readonly number[];
  readonly instances: number;
  readonly seconds: number;
  readonly json?: string;
}

interface Row {
  readonly sleds: number;
  readonly instances: number;
  readonly part: string;
  /** Of one core. */
  readonly cpu_percent: number;
  readonly resident_mb: number;
}

async function measureFleet(
  sleds: number,
  { instances, seconds }: Options,
  print: (line: string) => void,
): Promise<Row[]> {
  const arena = await Arena.open(undefined);
  const ends: (() => Promise<unknown>)[] = [() => arena.close()];
  try {
    const [one, other] = [randomInt(1, 255), randomInt(0, 128)];
    const ips = Array.from(
      { length: sleds },
      (_, at) => `127.${one}.${other + Math.floor(at / 250)}.${(at % 250) + 1}`,
    );
    const port = await freePort(ips[0]);
    const places = ips.map((ip) => `${ip}:${port}`);
    const databaseUrl = await arena.newDatabase(places, { threads: THREADS, memoryBytes: MEMORY_BYTES });
    const temporal = await startTemporalServer({ binary: (await findTemporalBinary()).path, uiPort: null });
    ends.unshift(() => temporal.stop());
    const env = { DATABASE_URL: databaseUrl, TEMPORAL_ADDRESS: temporal.address, MOORING_LOG_LEVEL: 'error' };
    const worker = startProgram(process.execPath, [PROGRAM, 'worker'], { env });
    ends.unshift(() => worker.stop());
    const apiPort = await freePort();
    const api = startProgram(
      process.execPath,
      [PROGRAM, 'api', '--authentication', 'open', '--insecure-sleds', '--port', String(apiPort)],
      { env },
    );
    ends.unshift(() => api.stop());
    await Promise.all([worker.untilPrinted(/worker: running/), api.untilPrinted(/API: http/)]);
    const url = `http://127.0.0.1:${apiPort}`;
    for (let from = 0; from < places.length; from += SLEDS_A_PROCESS) {
      const agents = await startProcess<SledAgentsReady>('sled agents', 'processes/sled-agents.ts', {
        controlPlaneUrl: url,
        addresses: places.slice(from, from + SLEDS_A_PROCESS),
        threads: THREADS,
        memoryBytes: MEMORY_BYTES,
        transitionMs: 10,
        networkPollMs: 1_000,
      } satisfies SledAgentsInput);
      ends.unshift(() => agents.stop());
    }
    print(`${places.length} sleds`);
    const client = new MooringClient({ url });
    const names = Array.from({ length: instances }, (_, index) => `vm-${index}`);
    const beganMs = performance.now();
    await inParallel(names, AT_ONCE, async (name) => {
      await client.createInstance(
        { name, hostname: name, description: '', ncpus: 1, memory: GIBIBYTE },
        { project: 'bench' },
      );
    });
    await waitUntil(
      async () => {
        for await (const { run_state } of client.listInstances({ project: 'bench' }))
          if (run_state !== 'running') return false;
        return true;
      },
      'not every instance came to run',
      STUCK_MS,
      2_000,
    );
    print(`${instances} instances, ${(instances / ((performance.now() - beganMs) / 1000)).toFixed(1)} a second`);
    const parts = {
      worker: worker.child.pid,
      API: api.child.pid,
      PostgreSQL: arena.postgres.pid,
      Temporal: temporal.pid,
    };
    const used = async () =>
      Object.fromEntries(
        await Promise.all(Object.entries(parts).map(async ([name, pid]) => [name, await cpuMs(pid ?? 0)])),
      );
    // What the starts have left is over.
    await pause(15_000);
    const before = await used();
    await pause(seconds * 1_000);
    const after = await used();
    return Promise.all(
      Object.entries(parts).map(async ([part, pid]) => ({
        sleds: places.length,
        instances,
        part,
        cpu_percent: (after[part] - before[part]) / (seconds * 10),
        resident_mb: (await familyResidentBytes(pid ?? 0)) / 1e6,
      })),
    );
  } finally {
    for (const end of ends) await end().catch(() => {});
  }
}

const numbers = (text: string) =>
  text.split(',').map((part) => {
    const number = Number(part);
    if (!Number.isInteger(number) || number < 1)
      throw new InvalidArgumentError('numbers above 0, separated by commas, are needed');
    return number;
  });

await new Command('fleet')
  .description('measures what a fleet costs that is at rest')
  .option('--sleds <numbers>', 'how many sleds, one fleet after the other', numbers, [10, 100, 1_000])
  .option('--instances <n>', 'how many instances run on each fleet', Number, 1_000)
  .option('--seconds <n>', 'how long it is watched', Number, 60)
  .option('--json <file>', 'write the figures there')
  .action(async (options: Options) => {
    const rows: Row[] = [];
    for (const sleds of options.sleds)
      rows.push(...(await measureFleet(sleds, options, (line) => console.error(line))));
    console.log(
      table(
        ['SLEDS', 'INSTANCES', 'PART', 'CPU (% OF A CORE)', 'MEMORY (MB)'],
        rows.map((row) => [
          ...[String(row.sleds), String(row.instances), row.part],
          ...[row.cpu_percent.toFixed(1), row.resident_mb.toFixed(0)],
        ]),
      ),
    );
    if (options.json !== undefined) await writeFile(options.json, `${JSON.stringify(rows, null, 2)}\n`);
  })
  .parseAsync();
