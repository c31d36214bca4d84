/**
 * Measures real VMs on this machine: how long a start takes, how long a migration, and how long the guest stands still.
 * Prints a table, and writes it between the marks in docs/real-vms.md when called with --write.
 */
import { randomUUID } from 'node:crypto';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { cpus, loadavg, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { fastify } from 'fastify';
import { freePort, waitUntil } from '../platform/host/child-process.ts';
import { prepareQemu } from '../sled-agent/qemu/prepare-qemu.ts';
import { QemuHypervisor } from '../sled-agent/qemu-hypervisor.ts';
import { type SledAgentHandle, startSledAgent } from '../sled-agent/server.ts';
import { cacheDirectory } from '../stack/temporal-binary.ts';
import { type VmmStateAnswer, vmmStateAnswer } from '../wire/sled-protocol.ts';

const STARTS = 5;
const MIGRATIONS = 20;
const MEMORY_MIB = [96, 512];
const LOOK_EVERY_MS = 2;
const PATIENT_MS = 120_000;
const INSTANCE = randomUUID();
const DOCUMENT = fileURLToPath(new URL('../docs/real-vms.md', import.meta.url));

const qemu = await prepareQemu({ cacheDir: cacheDirectory() });
const folder = await mkdtemp(join(tmpdir(), 'mooring-measure-'));
const controlPlane = fastify();
controlPlane.put('/vmms/:id', async (_, reply) => reply.status(204).header('x-request-id', 'r').send());
const controlPlaneUrl = await controlPlane.listen({ host: '127.0.0.1', port: 0 });
const agents: SledAgentHandle[] = [];

interface Vm {
  readonly id: string;
  readonly address: string;
  readonly agent: SledAgentHandle;
}

async function call(agent: SledAgentHandle, method: string, path: string, body?: unknown): Promise<unknown> {
  const response = await fetch(agent.url + path, {
    method,
    ...(body === undefined ? {} : { headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) }),
  });
  const answer: unknown = await response.json();
  if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${JSON.stringify(answer)}`);
  return answer;
}

async function register(agent: SledAgentHandle, memoryMib: number, migrationId?: string): Promise<Vm> {
  const id = randomUUID();
  const ip = agent.address.slice(0, agent.address.lastIndexOf(':'));
  const address = `${ip}:${await freePort(ip)}`;
  await call(agent, 'PUT', `/vmms/${id}`, {
    instance_id: INSTANCE,
    ...(migrationId === undefined ? {} : { migration_id: migrationId }),
    vmm_runtime: {
      state: migrationId === undefined ? 'starting' : 'migrating',
      gen: 2,
      time_updated: new Date().toISOString(),
    },
    vmm_spec: { name: 'measured', ncpus: 1, memory_bytes: memoryMib * 1024 ** 2 },
    vmm_addr: address,
  });
  return { id, address, agent };
}

const read = async ({ agent, id }: Vm): Promise<VmmStateAnswer> =>
  vmmStateAnswer.parse(await call(agent, 'GET', `/vmms/${id}/state`));

/** When a guest's count was first seen to be beyond `count`, by the monotonic clock. */
async function seenBeyond({ agent, id }: Vm, count: number): Promise<number> {
  await waitUntil(
    () => (agent.hypervisor.count(id) ?? 0) > count,
    'the guest does not count',
    PATIENT_MS,
    LOOK_EVERY_MS,
  );
  return performance.now();
}

/** The last count of a guest that is about to stand still, and when it was seen: looks until it is stopped. */
function watch({ agent, id }: Vm) {
  let count = agent.hypervisor.count(id) ?? 0;
  let at = performance.now();
  const timer = setInterval(() => {
    const now = agent.hypervisor.count(id);
    if (now === null || now === count) return;
    count = now;
    at = performance.now();
  }, LOOK_EVERY_MS);
  return () => {
    clearInterval(timer);
    return { count, at };
  };
}

const rows: string[] = [];
const row = (what: string, memoryMib: number, values: number[]) => {
  const sorted = [...values].sort((one, other) => one - other);
  const show = (value: number | undefined) => `${Math.round(value ?? 0)} ms`;
  rows.push(
    `| ${what} | ${memoryMib} MiB | ${show(sorted[Math.floor(sorted.length / 2)])} | ${show(sorted[0])} | ${show(sorted.at(-1))} | ${values.length} |`,
  );
  console.log(rows.at(-1));
};

try {
  for (const name of ['one', 'other']) {
    agents.push(
      await startSledAgent({
        name,
        listen: '127.0.0.1:0',
        controlPlaneUrl,
        threads: 16,
        memoryBytes: 2 ** 36,
        makeHypervisor: (faults, agentAddress, transport) =>
          new QemuHypervisor({
            ...qemu,
            dataDir: join(folder, name),
            faults,
            agentAddress,
            transport,
            endWithAgent: true,
            onTrouble: (message) => console.error(message),
          }),
      }),
    );
  }
  const [one, other] = agents as [SledAgentHandle, SledAgentHandle];
  for (const memoryMib of MEMORY_MIB) {
    const made: number[] = [];
    const started: number[] = [];
    for (let index = 0; index < STARTS; index += 1) {
      const begun = performance.now();
      const vm = await register(one, memoryMib);
      made.push(performance.now() - begun);
      const commandedAt = performance.now();
      await call(one, 'PUT', `/vmms/${vm.id}/state`, { state: { type: 'running' } });
      started.push((await seenBeyond(vm, 0)) - commandedAt);
      await call(one, 'DELETE', `/vmms/${vm.id}`);
    }
    row('register: until QEMU answers', memoryMib, made);
    row('start: from `running` until the guest counts', memoryMib, started);

    let vm = await register(one, memoryMib);
    await call(one, 'PUT', `/vmms/${vm.id}/state`, { state: { type: 'running' } });
    await seenBeyond(vm, 5);
    const took: number[] = [];
    const stood: number[] = [];
    for (let index = 0; index < MIGRATIONS; index += 1) {
      const migrationId = randomUUID();
      const target = await register(vm.agent === one ? other : one, memoryMib, migrationId);
      const lastSeen = watch(vm);
      const begun = performance.now();
      await call(target.agent, 'PUT', `/vmms/${target.id}/state`, {
        state: { type: 'migration_target', value: { src_vmm_addr: vm.address } },
      });
      await waitUntil(
        async () => (await read(target)).migration_in?.state === 'completed',
        'the guest did not arrive',
        PATIENT_MS,
        LOOK_EVERY_MS,
      );
      took.push(performance.now() - begun);
      const { count, at } = lastSeen();
      stood.push((await seenBeyond(target, count)) - at);
      vm = target;
    }
    row('migration: from `migration_target` until it completed', memoryMib, took);
    row('guest stands still: between two counts on the console', memoryMib, stood);
    await call(vm.agent, 'DELETE', `/vmms/${vm.id}`);
  }
} finally {
  for (const agent of agents) await agent.stop();
  await controlPlane.close();
  await rm(folder, { recursive: true, force: true });
}

const table = [
  `QEMU ${qemu.program.version}, ${qemu.accelerator.toUpperCase()}, ${qemu.program.machine}, 1 vCPU; ${cpus().length} cores; ` +
    `load average ${loadavg()[0]?.toFixed(1)}.`,
  '',
  '| What | Memory | Median | Least | Most | Times |',
  '| ---- | ------ | ------ | ----- | ---- | ----- |',
  ...rows,
].join('\n');
if (process.argv.includes('--write')) {
  const document = await readFile(DOCUMENT, 'utf8');
  const marked = /(<!-- figures: npm run measure:qemu -->\n)[\s\S]*?(\n<!-- end of figures -->)/;
  if (!marked.test(document)) throw new Error(`${DOCUMENT} has no marks for the figures`);
  await writeFile(DOCUMENT, document.replace(marked, `$1\n${table}\n$2`));
} else console.log(`\n${table}`);
