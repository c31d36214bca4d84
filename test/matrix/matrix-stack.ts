/** What the fault matrix runs on: a stack whose steps can be got at, and whose PostgreSQL and worker can be killed. */
import { type ChildProcess, fork } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { chmod, mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { RECONCILERS, type ReconcilerName } from '../../model/reconcilers.ts';
import { scheduleOf } from '../../model/workflow-names.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import { withinTime } from '../../platform/host/with-limit.ts';
import { createLog } from '../../platform/telemetry/log.ts';
import { type SledAgentHandle, startSledAgent } from '../../sled-agent/server.ts';
import { type EmbeddedPostgres, startEmbeddedPostgres } from '../../stack/embedded-postgres.ts';
import type { StackSled } from '../../stack/stack-sleds.ts';
import { type RunningWorker, startWorker } from '../../worker/worker.ts';
import { type Harness, startHarness } from '../support/harness.ts';
import { Supervisor } from '../support/supervisor.ts';
import { askSilentSleds, FaultInjector, type FaultPlan, noteSledCalls, silenceLateAttempts } from './fault-injector.ts';
import type { ToParent, ToVictim, VictimOptions } from './victim-worker.ts';

/** The workflow interceptors of the matrix. */
const SHORT_TIMEOUTS = fileURLToPath(new URL('./short-timeouts.ts', import.meta.url));
const VICTIM = fileURLToPath(new URL('./victim-worker.ts', import.meta.url));
const READY_MS = 120_000;
/** Longer than a worker gives what ignores its cancellation. */
const STOP_MS = 40_000;
const WATCH_EVERY_MS = 5_000;
const REGISTER_MS = 60_000;
/** Below the ephemeral ports of every usual system, and below those of VMs. */
const QUIET_PORTS = { first: 7_300, last: 12_400 };
const SMALL_MEMORY_BYTES = 512 * 1024 ** 2;

export interface MatrixStack extends Harness {
  readonly injector: FaultInjector;
  readonly sleds: readonly StackSled[];
  /** Every sled, with those that were added for one instance each. */
  readonly allSleds: readonly StackSled[];
  /** Adds a sled that no start is placed on as long as another one has room. */
  addSmallSled(): Promise<StackSled>;
  /** Makes plans known to whichever worker runs now. */
  plan(plan: FaultPlan): void;
  release(planId: string, point: 'before' | 'after'): void;
  drop(planId: string): void;
  /** Lets only these of the reconciling loops run. */
  runLoops(names: readonly ReconcilerName[]): Promise<void>;
  /** SIGKILL to PostgreSQL. */
  killPostgres(): Promise<void>;
  /** Starts it again, on the same data and port. */
  restartPostgres(): Promise<void>;
  /** Hands all work to a worker in a process of its own. */
  moveToVictim(): Promise<void>;
  /** SIGKILL to that process. */
  killVictim(): Promise<void>;
  /** Takes the work back into this process. */
  moveBack(): Promise<void>;
}

/** A port that no client's socket is given, so that it is still there when PostgreSQL comes back to it. */
async function quietPort(): Promise<number> {
  for (;;) {
    const port = randomInt(QUIET_PORTS.first, QUIET_PORTS.last);
    const server = createServer();
    const free = await new Promise<boolean>((resolve) => {
      server.once('error', () => resolve(false));
      server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
    });
    if (free) return port;
  }
}

/** Brings it up. */
export async function startMatrixStack(): Promise<MatrixStack> {
  noteSledCalls();
  askSilentSleds();
  silenceLateAttempts();
  const injector = new FaultInjector();
  // Below a folder that PostgreSQL's own user may enter, also where the tests run as root.
  const directory = await mkdtemp('/var/tmp/mooring-matrix-');
  await chmod(directory, 0o711);
  const postgresOptions = { dataDir: join(directory, 'postgres'), port: await quietPort(), durable: false };
  let postgres: EmbeddedPostgres = await startEmbeddedPostgres(postgresOptions);
  const testInterceptors = { activity: [injector.interceptors()], workflowModules: [SHORT_TIMEOUTS] };
  const harness = await startHarness({
    sleds: 4,
    reconcileEveryMs: 1_000,
    // No cell is about a sled that is silent for good: on a busy machine this must not be the fault.
    registerTimeoutMs: REGISTER_MS,
    connections: 20,
    testInterceptors,
    env: { DATABASE_URL: postgres.url },
  });
  // A killed server must still have what it has confirmed: the files survive it, its buffers don't.
  await harness.database.pool.query('ALTER DATABASE postgres SET synchronous_commit = on');
  const { databaseUrl, temporal } = harness.stack;
  const allSleds = [...harness.stack.sleds];
  const small: SledAgentHandle[] = [];
  let added = 0;
  let worker: RunningWorker | null = harness.stack.worker;
  let victim: { child: ChildProcess; supervisor: Supervisor } | null = null;
  const send = (message: ToVictim) => void (victim?.child.connected && victim.child.send(message));
  // Inventories are for what nothing else brings to light: too many of them, and nothing else gets to do it.
  await harness.temporal.schedule
    .getHandle(scheduleOf(harness.installation, 'watcher'))
    .update(({ spec, ...schedule }) => ({
      ...schedule,
      spec: { ...spec, intervals: [{ every: WATCH_EVERY_MS }] },
    }));

  return {
    ...harness,
    injector,
    sleds: harness.stack.sleds,
    allSleds,
    async addSmallSled() {
      added += 1;
      const name = `small-sled-${added}`;
      const [first] = harness.stack.sleds;
      const ip = first?.agent.address.split(':')[0] ?? '127.0.0.1';
      const memoryBytes = SMALL_MEMORY_BYTES;
      const agent = await startSledAgent({
        name,
        listen: `${ip}:0`,
        controlPlaneUrl: harness.stack.apiUrl,
        threads: 1,
        memoryBytes,
        transitionMs: 10,
      });
      small.push(agent);
      const { id } = await harness.client.addSled({ name, address: agent.address, threads: 1, memory: memoryBytes });
      const sled = { id, name, agent };
      allSleds.push(sled);
      return sled;
    },
    plan(plan) {
      if (victim === null) injector.plan(plan);
      else send({ plan });
    },
    release(planId, point) {
      injector.release(planId, point);
      send({ release: planId, point });
    },
    drop(planId) {
      injector.drop(planId);
      send({ drop: planId });
    },
    async runLoops(names) {
      for (const name of RECONCILERS) {
        const schedule = harness.temporal.schedule.getHandle(scheduleOf(harness.installation, name));
        await (names.includes(name) ? schedule.unpause() : schedule.pause());
      }
    },
    killPostgres: () => postgres.kill(),
    async restartPostgres() {
      postgres = await startEmbeddedPostgres(postgresOptions);
    },
    async moveToVictim() {
      if (worker !== null) await withinTime(worker.stop(), STOP_MS);
      worker = null;
      const options: VictimOptions = { databaseUrl, temporal };
      const child = fork(VICTIM, [JSON.stringify(options)], { execArgv: ['--import', 'tsx'] });
      const supervisor = new Supervisor({ name: 'the worker process', spawn: () => child, restartAfterMs: null });
      supervisor.start();
      victim = { child, supervisor };
      let ready = false;
      child.on('message', (message: ToParent) => {
        if ('ready' in message) ready = true;
        else injector.reached(message.planId, message.moment, message.execution);
      });
      await waitUntil(() => ready || !supervisor.runs, 'the worker process never came up', READY_MS);
      if (!ready) throw new Error(`the worker process ended with exit code ${child.exitCode}`);
    },
    async killVictim() {
      const { supervisor } = victim ?? {};
      victim = null;
      await supervisor?.kill();
    },
    async moveBack() {
      worker = await startWorker({
        databaseUrl,
        temporal,
        log: createLog('worker', 'error'),
        reconcileEveryMs: 0,
        testInterceptors,
      });
    },
    async close() {
      injector.releaseAll();
      await victim?.supervisor.kill();
      if (worker !== null) await withinTime(worker.stop(), STOP_MS);
      await Promise.all(small.map((agent) => agent.stop()));
      await harness.close();
      await postgres.stop();
      await rm(directory, { recursive: true, force: true });
    },
  };
}
