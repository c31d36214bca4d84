/**
 * `npm run bench`: measures Mooring, its floor and its peers on this machine, in one go.
 *
 * Each round runs every contender once, in another order, each on a fresh database and a fresh server, so that what the
 * machine does meanwhile falls on all of them. `--quick` does one short round and ends with an error when a count that
 * does not depend on the machine is over its limit.
 */
import { existsSync } from 'node:fs';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { cpus, loadavg, platform, release, totalmem } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Command } from 'commander';
import { workflowIds } from '../model/workflow-names.ts';
import { CONTENDERS, OTHER_ENGINES } from './contenders.ts';
import { type CountedSaga, countSagas, type SagaCounts } from './measure/counts.ts';
import {
  acceptedMigration,
  makeRunning,
  migrations,
  reportEnded,
  restAll,
  unwoundStarts,
  updates,
} from './measure/other-sagas.ts';
import { inParallel, type LoadResult, load, ROLES, readMemory, starter } from './measure/start.ts';
import { measureMemory } from './memory.ts';
import { checkTargets } from './report/checks.ts';
import { plots } from './report/plots.ts';
import { type ContenderResult, holds, type LevelResult, type Results } from './report/results.ts';
import { median, quantile, type Spread, spread } from './report/statistics.ts';
import { asCount, asMarkdown, asText, tables } from './report/tables.ts';
import { measureScale, SCALE_SIZES } from './scale.ts';
import { Arena, type Contender, type ExternalTemporal, settle } from './system/arena.ts';

interface Plan {
  readonly rounds: number;
  /** Starts before anything is measured: until the code is compiled, a worker takes twice the CPU. */
  readonly warmUp: number;
  /** Starts at concurrency 1. */
  readonly single: number;
  readonly levels: readonly { concurrency: number; sagas: number }[];
  /** How long each level begins sagas, in milliseconds: a contender that is slow does fewer of them. */
  readonly levelMs: number;
  /** Of each other saga, in every round. */
  readonly others: number;
  /** Sagas of each kind that are counted, one at a time. */
  readonly counted: number;
  /** The contenders whose counts are read; every one when absent. */
  readonly countsOf?: readonly string[];
  readonly scale: { instances: readonly number[]; sleds: readonly number[] };
}

const FULL: Plan = {
  rounds: 3,
  warmUp: 240,
  single: 150,
  levels: [
    { concurrency: 16, sagas: 320 },
    { concurrency: 64, sagas: 512 },
    { concurrency: 256, sagas: 768 },
  ],
  levelMs: 12_000,
  others: 30,
  counted: 10,
  scale: SCALE_SIZES,
};

const QUICK: Plan = {
  rounds: 1,
  warmUp: 60,
  single: 40,
  levels: [
    { concurrency: 16, sagas: 96 },
    { concurrency: 64, sagas: 128 },
  ],
  levelMs: 3_000,
  others: 8,
  counted: 5,
  countsOf: ['mooring'],
  scale: { instances: [1_000, 5_000], sleds: [10, 100] },
};

interface Options {
  readonly quick?: boolean;
  readonly only?: string;
  readonly temporal?: string;
  readonly temporalPids?: string;
  readonly rounds?: string;
  readonly json?: string;
  readonly docs?: string;
  readonly scale?: boolean;
  readonly times?: boolean;
  readonly counts?: boolean;
  readonly memory?: string | true;
}

const options = new Command('bench')
  .description('measures Mooring beside its floor and its peers')
  .option('--quick', 'one short round: under five minutes; checks the counts that do not depend on the machine')
  .option('--only <ids>', 'these contenders only, separated by commas')
  .option(
    '--temporal <address>',
    'also on the Temporal server there (in the namespace that TEMPORAL_NAMESPACE names), for example one that keeps its data in PostgreSQL',
  )
  .option(
    '--temporal-pids <ids>',
    'the process ids of that server, and of its database, separated by commas: whose CPU is its',
  )
  .option('--rounds <n>', 'how many rounds')
  .option('--json <file>', 'write the results there', '.mooring/bench.json')
  .option('--docs <folder>', 'write tables and plots there')
  .option('--no-scale', 'without the growth of the queries')
  .option('--no-times', 'without times: counts only')
  .option('--no-counts', 'without the counts')
  .option('--memory [sagas]', 'only the memory of a worker, over 100,000 sagas or as many as named')
  .parse()
  .opts<Options>();

const plan: Plan = { ...(options.quick ? QUICK : FULL), ...(options.rounds ? { rounds: Number(options.rounds) } : {}) };
const print = (line: string) => console.error(line);

function chosen(): Contender[] {
  const wanted = options.only?.split(',');
  const unknown = wanted?.filter((id) => !CONTENDERS.some((contender) => contender.id === id)) ?? [];
  if (unknown.length > 0)
    throw new Error(
      `--only: there is no contender "${unknown[0]}"; there are ${CONTENDERS.map(({ id }) => id).join(', ')}`,
    );
  const missing = existsSync(new URL(`${OTHER_ENGINES}/node_modules`, import.meta.url))
    ? []
    : CONTENDERS.filter(needsOtherEngines);
  const lacked = missing.filter(({ id }) => wanted?.includes(id));
  const install = `npm ci --prefix bench/${OTHER_ENGINES}`;
  if (lacked.length > 0)
    throw new Error(`--only: ${lacked.map(({ id }) => id).join(' and ')} must be installed: ${install}`);
  if (missing.length > 0 && wanted === undefined)
    print(`without ${missing.map(({ title }) => title).join(' and ')}, which are not installed: ${install}`);
  return CONTENDERS.filter((contender) => !missing.includes(contender)).filter(
    ({ id, temporal, workers }) =>
      (wanted?.includes(id) ?? !(options.quick && (workers?.count ?? 0) > 1)) &&
      (temporal !== 'external' || options.temporal !== undefined),
  );
}

const needsOtherEngines = ({ front }: Contender) => front.startsWith(`${OTHER_ENGINES}/`);

/** Starts before anything is counted. */
const WARM_UP_COUNTS = 6;
/** How long a peer is watched for what it asks by itself, in milliseconds. */
const IDLE_WATCH_MS = 6_000;

const isMooring = (contender: Contender) => contender.front === 'processes/mooring-api.ts';

/** Counts what each kind of saga costs a contender, with one saga at a time. */
async function measureCounts(arena: Arena, contender: Contender): Promise<Record<string, SagaCounts>> {
  const { counted } = plan;
  const running = await arena.start(contender, { instances: WARM_UP_COUNTS + 5 * (counted + 1), counting: true });
  const found: Record<string, SagaCounts> = {};
  const count = async (kind: string, sagaOf: (instanceId: string) => CountedSaga) => {
    const instances = running.take(counted + 1).map(sagaOf);
    // The first of a kind opens connections and fills caches.
    await countSagas(running, instances.slice(0, 1));
    const counts = await countSagas(running, instances.slice(1));
    found[kind] = counts;
    const { roundTrips, historyEvents, workflowTasks } = counts;
    print(
      `  ${kind}: ${asCount(roundTrips)} round trips, ${asCount(historyEvents)} events, ${asCount(workflowTasks)} workflow tasks`,
    );
  };
  const start = starter(running);
  const run = async (instanceId: string) => {
    await start(instanceId);
    await settle(running);
  };
  try {
    await inParallel(running.take(WARM_UP_COUNTS), 2, start);
    await settle(running);
    // Mooring's own loops are off; a peer's library may poll.
    if (!isMooring(contender)) {
      const learn = running.proxy?.learnIdleTraffic();
      await new Promise((resolve) => setTimeout(resolve, IDLE_WATCH_MS));
      learn?.();
    }
    const workflowId = contender.workflowId ?? (() => null);
    await count('start', (id) => ({ act: () => run(id), workflowId: workflowId(id) }));
    if (contender.hasDatabase)
      await count('unwound start', (id) => ({
        async act() {
          await unwoundStarts(running, [id]);
          if (isMooring(contender)) await restAll(running);
        },
        workflowId: workflowId(id),
      }));
    if (isMooring(contender)) {
      await count('migration, until accepted', (id) => {
        const { prepare, act, after } = acceptedMigration(running, id);
        return {
          async prepare() {
            await run(id);
            await prepare();
          },
          act,
          after,
          workflowId: workflowIds.migrate(id),
        };
      });
      await count('migration, until moved', (id) => ({
        prepare: () => run(id),
        async act() {
          await migrations(running, [id]);
          await restAll(running);
        },
        workflowId: workflowIds.migrate(id),
      }));
      await count('update', (id) => {
        let forget = async () => {};
        return {
          prepare: () => run(id),
          async act() {
            forget = await reportEnded(running, id);
            await restAll(running);
          },
          after: () => forget(),
          workflowId: workflowIds.update(id),
        };
      });
    }
    return found;
  } finally {
    await running.stop();
  }
}

interface Round {
  readonly single: LoadResult;
  readonly levels: readonly LoadResult[];
  readonly memory: Awaited<ReturnType<typeof readMemory>>;
  readonly others: Readonly<Record<string, readonly number[]>>;
}

async function measureRound(arena: Arena, contender: Contender): Promise<Round> {
  const sagas = plan.warmUp + plan.single + plan.levels.reduce((sum, level) => sum + level.sagas, 0);
  const running = await arena.start(contender, { instances: sagas + 4 * plan.others });
  try {
    const measured = async (concurrency: number, sagas: number) => {
      const result = await load(running, concurrency, sagas, plan.levelMs);
      print(
        `  ${concurrency} at a time: ${result.perSecond.toFixed(1)} a second, median ${quantile(result.latenciesMs, 0.5).toFixed(1)} ms; CPU ms a saga: ${ROLES.map((role) => `${role} ${result.cpuMsPerSaga[role].toFixed(1)}`).join(', ')}`,
      );
      return result;
    };
    await load(running, 8, plan.warmUp, 2 * plan.levelMs);
    const single = await measured(1, plan.single);
    const others: Record<string, readonly number[]> = {};
    if (contender.hasDatabase) others['unwound start'] = await unwoundStarts(running, running.take(plan.others));
    if (isMooring(contender)) {
      const { acceptedMs, movedMs } = await migrations(running, await makeRunning(running, plan.others));
      others['migration, until accepted'] = acceptedMs;
      others['migration, until moved'] = movedMs;
      await restAll(running);
      others['update, report to cleared id'] = await updates(running, await makeRunning(running, plan.others));
    }
    const levels: LoadResult[] = [];
    for (const { concurrency, sagas: count } of plan.levels) levels.push(await measured(concurrency, count));
    return { single, levels, memory: await readMemory(running), others };
  } finally {
    await running.stop();
  }
}

function summarize(
  contender: Contender,
  rounds: readonly Round[],
  counts: Record<string, SagaCounts>,
): ContenderResult {
  const over = (take: (round: Round) => number): Spread =>
    spread(rounds.map(take)) ?? { median: Number.NaN, least: Number.NaN, greatest: Number.NaN };
  const at = (q: number) => over((round) => quantile(round.single.latenciesMs, q));
  const level = (pick: (round: Round) => LoadResult | undefined): LevelResult => {
    const cpuMsPerSaga = { front: 0, worker: 0, server: 0, postgres: 0, sleds: 0 };
    for (const role of ROLES)
      cpuMsPerSaga[role] = median(rounds.map((round) => pick(round)?.cpuMsPerSaga[role] ?? Number.NaN));
    return {
      concurrency: pick(rounds[0] as Round)?.concurrency ?? 0,
      perSecond: over((round) => pick(round)?.perSecond ?? Number.NaN),
      p50Ms: over((round) => quantile(pick(round)?.latenciesMs ?? [], 0.5)),
      cpuMsPerSaga,
    };
  };
  const otherSagas: Record<string, { p50: number; p95: number; p99: number }> = {};
  for (const kind of Object.keys(rounds[0]?.others ?? {})) {
    const all = rounds.flatMap((round) => round.others[kind] ?? []);
    otherSagas[kind] = { p50: quantile(all, 0.5), p95: quantile(all, 0.95), p99: quantile(all, 0.99) };
  }
  const memory = (role: 'front' | 'worker' | 'server' | 'sleds') => median(rounds.map((round) => round.memory[role]));
  return {
    id: contender.id,
    title: contender.title,
    durability: contender.durability,
    latency: rounds.length === 0 ? null : { p50: at(0.5), p95: at(0.95), p99: at(0.99) },
    levels:
      rounds.length === 0
        ? []
        : [level((round) => round.single), ...plan.levels.map((_, index) => level((round) => round.levels[index]))],
    memoryBytes:
      rounds.length === 0
        ? null
        : { front: memory('front'), worker: memory('worker'), server: memory('server'), sleds: memory('sleds') },
    counts,
    otherSagas,
  };
}

async function writeDocs(folder: string, results: Results): Promise<void> {
  await mkdir(join(folder, 'plots'), { recursive: true });
  const drawn = plots(results);
  for (const [name, content] of Object.entries(drawn)) await writeFile(join(folder, 'plots', name), content);
  const { machine } = results;
  const parts = [
    `# Figures of one run of the benchmark`,
    `Written by \`npm run bench -- --docs\`; what they mean, and what was done for them, is in [performance.md](performance.md).`,
    `${results.when}, ${results.mode}: ${machine.cpus} × ${machine.model}, ${Math.round(machine.memoryBytes / 2 ** 30)} GiB, Node ${machine.node}, ${machine.platform}; load before it began ${machine.loadBefore.toFixed(1)}.`,
    ...Object.keys(drawn).map((name) => `![${name.replace('.svg', '')}](plots/${name})`),
    ...tables(results).map(asMarkdown),
    `**What is safe on disk when a call returns**`,
    results.contenders.map((one) => `- ${one.title}: ${one.durability}.`).join('\n'),
    ...((results.failures ?? []).length === 0
      ? []
      : ['**Rounds that failed**', (results.failures ?? []).map((one) => `- ${one}`).join('\n')]),
    ...(results.scale === null
      ? []
      : [
          '**Query plans at the largest size**',
          ...Object.entries(results.scale.plans).map(
            ([name, planText]) => `<details><summary>${name}</summary>\n\n\`\`\`\n${planText}\n\`\`\`\n\n</details>`,
          ),
        ]),
  ];
  await writeFile(join(folder, 'performance-figures.md'), `${parts.join('\n\n')}\n`);
}

/** The results of an earlier run of another mode, to be kept beside this one's. */
async function earlier(file: string): Promise<Partial<Results>> {
  const text = await readFile(file, 'utf8').catch(() => '{}');
  return JSON.parse(text) as Partial<Results>;
}

const jsonFile = options.json ?? '.mooring/bench.json';
const before = await earlier(jsonFile);
const machine = {
  cpus: cpus().length,
  model: cpus()[0]?.model ?? 'unknown',
  memoryBytes: totalmem(),
  loadBefore: loadavg()[0] ?? 0,
  node: process.version,
  platform: `${platform()} ${release()}`,
};
if (machine.loadBefore > 0.5)
  print(`the machine is not quiet (load ${machine.loadBefore.toFixed(1)}): take times as noise, counts as they are`);

/** The server that the options and the environment name. */
function externalTemporal(): ExternalTemporal | undefined {
  const { temporal: address, temporalPids } = options;
  if (address === undefined) return undefined;
  const pids = temporalPids?.split(',').map(Number) ?? [];
  if (pids.some((pid) => !Number.isInteger(pid) || pid <= 0))
    throw new Error(`--temporal-pids: "${temporalPids}" is no list of process ids`);
  return { address, namespace: process.env.TEMPORAL_NAMESPACE || 'default', pids };
}

const arena = await Arena.open(externalTemporal());
let ended: Promise<void> | undefined;
const end = () => {
  ended ??= arena.close();
  return ended;
};
const endAtOnce = () => void end().then(() => process.exit(130));
const enough = new AbortController();
process.once('SIGTERM', endAtOnce);
process.once('SIGINT', () => {
  if (options.memory === undefined) return endAtOnce();
  // An hour's points are worth keeping: a second signal ends it at once.
  enough.abort();
  print('ending after this turn, with what was measured');
  process.once('SIGINT', endAtOnce);
});
try {
  let results: Results;
  if (options.memory !== undefined) {
    const memory = await measureMemory(
      arena,
      options.memory === true ? 100_000 : Number(options.memory),
      print,
      enough.signal,
    );
    results = {
      contenders: [],
      checks: [],
      scale: null,
      settings: {},
      ...before,
      when: new Date().toISOString(),
      mode: before.mode ?? 'memory',
      machine,
      memory,
    };
  } else {
    const contenders = chosen();
    const counts = new Map<string, Record<string, SagaCounts>>();
    if (options.counts !== false) {
      for (const contender of contenders) {
        if (contender.temporal === 'external' || (contender.workers?.count ?? 0) > 1) continue;
        if (plan.countsOf?.includes(contender.id) === false) continue;
        print(`counts: ${contender.id}`);
        counts.set(contender.id, await measureCounts(arena, contender));
      }
    }
    const failures: string[] = [];
    const rounds = new Map<string, Round[]>(contenders.map(({ id }) => [id, []]));
    for (let round = 0; options.times !== false && round < plan.rounds; round++) {
      // Another one begins each round.
      const order = contenders.map((_, index) => contenders[(index + round) % contenders.length] as Contender);
      for (const contender of order) {
        print(`round ${round + 1} of ${plan.rounds}: ${contender.id}`);
        try {
          rounds.get(contender.id)?.push(await measureRound(arena, contender));
        } catch (error) {
          // One contender's trouble must not cost the others an hour of measuring; the figures name the round.
          failures.push(`${contender.id}, round ${round + 1}: ${error instanceof Error ? error.message : error}`);
          print(`FAILED: ${failures.at(-1)}`);
        }
      }
    }
    const scale = options.scale === false ? null : await measureScale(arena, plan.scale, print);
    const summaries = contenders.map((contender) =>
      summarize(contender, rounds.get(contender.id) ?? [], counts.get(contender.id) ?? {}),
    );
    results = {
      when: new Date().toISOString(),
      mode: options.quick ? 'quick' : 'full',
      machine,
      settings: { plan, sleds: 8, transitionMs: 2 },
      failures,
      contenders: summaries,
      checks: checkTargets(summaries, before.memory ?? null),
      scale,
      memory: before.memory ?? null,
    };
  }
  console.log(`\n${tables(results).map(asText).join('\n\n')}`);
  await mkdir(dirname(jsonFile), { recursive: true });
  await writeFile(jsonFile, `${JSON.stringify(results, null, 1)}\n`);
  console.log(`\nwritten: ${jsonFile}`);
  if (options.docs !== undefined) {
    const folder = join(fileURLToPath(new URL('..', import.meta.url)), options.docs);
    await writeDocs(folder, results);
    console.log(`written: ${folder}/performance-figures.md, ${folder}/plots/`);
  }
  const missed = results.checks.filter((check) => check.kind === 'count' && !holds(check));
  for (const check of missed) {
    console.error(`${check.name}: ${check.value}, must be ${check.must} ${check.limit}`);
    const saga = /^round trips: (.*)/.exec(check.name)?.[1];
    const { counts } = results.contenders.find(({ id }) => id === 'mooring') ?? {};
    for (const statement of counts?.[saga ?? '']?.statements ?? []) console.error(`  ${statement}`);
  }
  process.exitCode = missed.length > 0 ? 1 : 0;
} finally {
  await end();
}
process.exit();
