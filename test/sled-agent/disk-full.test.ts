/** A real disk that is really full, and what a sled agent's processes do about it. */
import { type ChildProcess, spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { type FastifyInstance, fastify } from 'fastify';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { freePort, processExists, waitUntil } from '../../platform/host/child-process.ts';
import { Disk, DiskError } from '../../sled-agent/disk.ts';
import { bootId, type LeaseFile, LeaseWriter, monotonicMs, readLease } from '../../sled-agent/lease-file.ts';
import { type SledAgentOptions, startSledAgent } from '../../sled-agent/server.ts';
import type { VmmRecord } from '../../sled-agent/vmm-store.ts';
import { agentDescription } from '../../wire/sled-protocol.ts';
import { startCommand } from '../support/command.ts';
import { type FaultCode, FaultyFileSystem } from '../support/faulty-file-system.ts';
import { temporaryFolder } from '../support/qemu.ts';
import { executing, ListeningControlPlane, loopbackAddress, SledCaller } from '../support/sled.ts';
import { canMount, empty, fill, mountSmallDisk } from '../support/small-disk.ts';
import { eventually } from '../support/wait.ts';

const plane = new ListeningControlPlane();
const ends: (() => unknown)[] = [];
beforeAll(() => plane.listen());
afterAll(() => plane.close());
afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end();
});

async function newFolder(): Promise<string> {
  const folder = await temporaryFolder();
  ends.push(folder.close);
  return folder.path;
}

async function start(dataDir: string, options: Partial<SledAgentOptions> = {}) {
  const agent = await startSledAgent({
    ...{ name: 's', listen: `${loopbackAddress()}:0`, controlPlaneUrl: plane.url, threads: 8, memoryBytes: 2 ** 33 },
    ...{ transitionMs: 5, networkPollMs: 0, dataDir },
    ...options,
  });
  ends.push(() => agent.stop());
  return { agent, caller: new SledCaller(agent, 2 ** 30) };
}

async function trouble(url: string): Promise<string[]> {
  return agentDescription.parse(await (await fetch(`${url}/agent`)).json()).trouble;
}

/** A disk of 256 KiB. */
const smallDisk = async () => mountSmallDisk(await newFolder(), '256k', ends);

const mounts = await canMount('a sled whose disk is full');

describe.skipIf(!mounts)('a disk that is full', () => {
  test('the agent says so, takes no VMM, keeps its guests, loses nothing, and goes on when there is room', async () => {
    const disk = await smallDisk();
    const said: string[] = [];
    const { agent, caller } = await start(disk, { onTrouble: (message) => said.push(message) });
    expect(await trouble(agent.url)).toEqual([]);
    const [stays, halts, stops] = [await caller.running(), await caller.running(), await caller.running()];
    const [refused, dead] = [randomUUID(), randomUUID()];
    fill(disk);

    expect(await caller.register(refused)).toMatchObject({ status: 507, body: { error_code: 'DISK_FULL' } });
    expect((await caller.register(refused)).status).toBe(507);
    expect((await caller.read(refused)).status).toBe(404);
    for (const _ of [1, 2])
      expect(await caller.unregister(dead)).toMatchObject({ status: 507, body: { error_code: 'DISK_FULL' } });
    // Powered off all the same; nobody is told that it is done before it is on disk.
    for (const _ of [1, 2]) expect((await caller.command(stops.vmmId, 'stopped')).status).toBe(507);
    agent.faults.halt(halts.vmmId);
    for (const { vmmId } of [halts, stops])
      await waitUntil(() => executing([agent], [vmmId]) === 0, `${vmmId} was never powered off`);
    expect(executing([agent], [stays.vmmId])).toBe(1);
    for (const { vmmId } of [stays, halts, stops])
      expect((await caller.read(vmmId)).body.vmm_state?.state).toBe('running');
    expect((await caller.call('GET', '/vmms')).body.vmms).toHaveLength(3);
    expect(await trouble(agent.url)).toEqual([expect.stringMatching(/the disk is full \(ENOSPC\).*will be written/)]);
    expect(said).toEqual([expect.stringContaining('the disk is full')]);
    expect(plane.states(halts.vmmId)).toEqual(['starting', 'running']);

    empty(disk);
    await plane.untilReported(halts.vmmId, 'destroyed');
    await plane.untilReported(stops.vmmId, 'destroyed');
    await eventually(async () => (await trouble(agent.url)).length === 0, 'it never said that it is well again');
    expect(said.at(-1)).toBe('the disk can be written again');
    expect((await caller.unregister(dead)).status).toBe(200);
    expect(readFileSync(join(disk, 'dead-vmm-ids'), 'utf8')).toContain(dead);
    expect((await caller.register(refused)).status).toBe(200);
    expect(executing([agent], [stays.vmmId])).toBe(1);
  });

  test('an agent that is started on it answers for what it has; where none has worked before, it says what to do', async () => {
    const disk = await smallDisk();
    const first = await start(disk);
    await trouble(first.agent.url);
    const { vmmId } = await first.caller.running();
    await first.agent.detach();
    fill(disk);
    const second = await start(disk);
    // It has ended with its agent; that can't be written yet.
    expect((await second.caller.read(vmmId)).body.vmm_state?.state).toBe('running');
    expect((await second.caller.register(randomUUID())).status).toBe(507);
    const reports = plane.reports.length;
    empty(disk);
    await plane.untilReported(vmmId, 'failed');
    expect(plane.reports.length).toBeGreaterThan(reports);
    await second.agent.stop();

    const fileSystem = new FaultyFileSystem();
    fileSystem.fail('ENOSPC');
    await expect(start(join(await newFolder(), 'new'), { fileSystem })).rejects.toThrow(
      /no sled agent can work with .* yet: the disk is full/,
    );
  });
});

test('an agent whose data can’t be opened at the moment waits, and says why, until they can', async () => {
  const dataDir = await newFolder();
  await (await start(dataDir)).agent.stop();
  const fileSystem = new FaultyFileSystem();
  fileSystem.fail('EIO');
  const address = `${loopbackAddress()}:8099`;
  const said: string[] = [];
  const starting = start(dataDir, { listen: address, fileSystem, onTrouble: (message) => said.push(message) });
  for (const path of ['/vmms', `/vmms/${randomUUID()}/state`, '/agent'])
    await eventually(
      () =>
        fetch(`http://${address}${path}`).then(
          async (answer) => answer.status === 503 && /the disk fails/.test(await answer.text()),
          () => false,
        ),
      `${path} was never answered`,
    );
  expect(said.some((message) => message.includes('waits until it can use its data'))).toBe(true);
  fileSystem.heal();
  await starting;
  // A connection to what answered before is cut.
  await eventually(
    () =>
      fetch(`http://${address}/vmms`).then(
        ({ ok }) => ok,
        () => false,
      ),
    'it never answered',
  );
});

test('a guest that has left is not given before that is on disk: till then it runs nowhere, and after it at its destination', async () => {
  /** Fails as soon as it is on disk that the guest is on its way. */
  class FailsMidway extends FaultyFileSystem {
    override rename(from: string, to: string): void {
      super.rename(from, to);
      const record = to.includes('/vmm-records/') ? (JSON.parse(readFileSync(to, 'utf8')) as VmmRecord) : null;
      if (record?.migrationOut?.state === 'in_progress') this.fail('EIO', { of: /vmm-records.*new/ });
    }
  }
  const fileSystem = new FailsMidway();
  const here = await start(await newFolder(), { fileSystem, transitionMs: 100 });
  const there = await start(await newFolder());
  const source = await here.caller.running();
  const [target, migration_id] = [randomUUID(), randomUUID()];
  await there.caller.register(target, { migration_id });
  await there.caller.migrateIn(target, source.address);
  const outOf = async () => (await here.caller.read(source.vmmId)).body.migration_out?.state;
  await waitUntil(() => fileSystem.ill, 'the migration never began');
  await waitUntil(() => executing([here.agent], [source.vmmId]) === 0, 'the guest never paused');
  const tries = fileSystem.asked.length;
  await waitUntil(() => fileSystem.asked.length > tries + 3, 'it was never tried again');
  expect(await outOf()).toBe('in_progress');
  expect(executing([here.agent, there.agent], [source.vmmId, target])).toBe(0);
  expect((await there.caller.read(target)).body.migration_in?.state).toBe('in_progress');
  // Who has the guest is decided, and not on disk: no answer is true yet.
  expect(await here.caller.command(source.vmmId, 'stopped')).toMatchObject({
    status: 503,
    body: { error_code: 'DISK_FAILED' },
  });
  fileSystem.heal();
  await plane.untilSideReported(target, 'migration_in', 'completed');
  await plane.untilReported(source.vmmId, 'destroyed');
  expect(executing([here.agent, there.agent], [source.vmmId, target])).toBe(1);
});

describe('the lease of a sled whose disk fails', () => {
  const lease = (endsAtMs: number | null): Omit<LeaseFile, 'sequence'> => ({
    ...{ bootId: bootId(), endsAtMs, leaseMs: 1_000, sledId: randomUUID(), epoch: 0, agentPid: process.pid },
  });

  test('is what was written last, whichever writes were torn, also for one who opens the file again', async () => {
    const path = join(await newFolder(), 'lease.json');
    const files = new FaultyFileSystem();
    const disk = new Disk({ fileSystem: files });
    let writer = new LeaseWriter(disk, path, null);
    expect(readLease(path)).toBeNull();
    writer.open();
    expect(readLease(path)).toBeNull();
    let last: LeaseFile | null = null;
    const made = new Map<number, LeaseFile>();
    for (let round = 0; round < 60; round++) {
      const next = writer.number(lease(round));
      made.set(next.sequence, next);
      const code: FaultCode | null = round % 5 === 0 || round % 3 === 1 ? null : 'EIO';
      const before = round % 2;
      if (code !== null) files.fail(code, { before, failures: 1 });
      try {
        writer.write(next);
        last = next;
      } catch (error) {
        expect(error).toBeInstanceOf(DiskError);
      }
      files.heal();
      const found = readLease(path);
      // One that was written whole, though not certain to stay, is as good.
      expect(made.get(found?.sequence ?? -1)).toEqual(found);
      expect(found?.sequence ?? 0).toBeGreaterThanOrEqual(last?.sequence ?? 0);
      if (round % 7 === 6) {
        writer.close();
        writer = new LeaseWriter(disk, path, readLease(path));
      }
    }
    disk.stop();
  });

  test('is written on a full disk, and without a file descriptor, once it was open', async () => {
    const path = join(await newFolder(), 'lease.json');
    const files = new FaultyFileSystem();
    const writer = new LeaseWriter(new Disk({ fileSystem: files }), path, null);
    writer.open();
    const size = readFileSync(path).length;
    const before = files.asked.length;
    for (let round = 0; round < 5; round++) writer.write(writer.number(lease(round)));
    expect(readFileSync(path)).toHaveLength(size);
    expect(new Set(files.asked.slice(before).map(({ operation }) => operation))).toEqual(new Set(['write', 'sync']));
    writer.close();
  });

  /** A watchdog as an agent starts it, over a process that stands for the agent. */
  async function watched(endsAtMs: number, leaseMs: number) {
    const folder = await newFolder();
    const path = join(folder, 'lease.json');
    const agent = spawn('sleep', ['1000']);
    const agentPid = agent.pid as number;
    const writer = new LeaseWriter(new Disk(), path, null);
    const make = (end: number) => writer.number({ ...lease(end), leaseMs, agentPid });
    writer.write(make(endsAtMs));
    writer.close();
    const watchdog: ChildProcess = spawn(
      process.execPath,
      [
        ...['--import', pathToFileURL(createRequire(import.meta.url).resolve('tsx')).href],
        fileURLToPath(new URL('../../sled-agent/watchdog.ts', import.meta.url)),
        ...['--lease', path, '--agent-pid', String(agentPid), '--sequence', '0'],
      ],
      { stdio: ['pipe', 'pipe', 'ignore'] },
    );
    ends.push(() => {
      agent.kill('SIGKILL');
      watchdog.kill('SIGKILL');
    });
    // The process that stands for the agent is the test's child: what the watchdog knows of it is its standard input.
    agent.once('exit', () => watchdog.stdin?.end());
    await new Promise<void>((up) => watchdog.stdout?.once('data', () => up()));
    const tell = (end: number) => watchdog.stdin?.write(`${JSON.stringify(make(end))}\n`);
    /** The disk has an earlier lease of this agent, and takes none any more. */
    const leaveBehind = (end: number) => {
      rmSync(path, { force: true });
      const stale = new LeaseWriter(new Disk(), path, null);
      stale.write(stale.number({ ...lease(end), leaseMs, agentPid }));
      stale.close();
    };
    return { tell, leaveBehind, lives: () => processExists(agentPid) && agent.signalCode === null, path };
  }

  test('is what its agent tells: the watchdog ends no guest while renewals succeed, and every one when they do not', async () => {
    const leaseMs = 2_000;
    // Long enough for a watchdog to come up on a busy machine.
    const { tell, leaveBehind, lives, path } = await watched(monotonicMs() + 20_000, leaseMs);
    const begun = monotonicMs();
    let end = begun + leaseMs;
    tell(end);
    leaveBehind(end);
    while (monotonicMs() < begun + 3 * leaseMs) {
      end = monotonicMs() + leaseMs;
      tell(end);
      await new Promise((resolve) => setTimeout(resolve, leaseMs / 10));
      // What the file says is over, then it is gone, then it is nonsense.
      if (monotonicMs() > begun + 2 * leaseMs) rmSync(path, { force: true });
      if (monotonicMs() > begun + 2.5 * leaseMs) writeFileSync(path, 'x');
      // A test that was held up for a whole lease has not renewed.
      if (monotonicMs() < end) expect(lives()).toBe(true);
    }
    await waitUntil(() => !lives(), 'the watchdog never acted on the lapsed lease');
    expect(monotonicMs()).toBeGreaterThanOrEqual(end);
  });
});

describe.skipIf(!mounts)('a sled with fencing whose disk is full', () => {
  const control: FastifyInstance = fastify();
  let granted = 0;
  let url = '';
  beforeAll(async () => {
    control.get('/sleds/by-name/:name', async () => ({ sled_id: '00000000-0000-4000-8000-000000000001' }));
    control.put('/sleds/:id/lease', async () => {
      granted += 1;
      return { epoch: 0, margin_ms: 1 };
    });
    control.put('/vmms/:id', async (_, reply) => reply.status(204).header('x-request-id', 'r').send());
    url = await control.listen({ host: '127.0.0.1', port: 0 });
  });
  afterAll(() => control.close());

  test('renews its lease, and keeps its guests, for as long as the disk is full', async () => {
    const disk = await smallDisk();
    const leaseMs = 6_000;
    const ip = loopbackAddress();
    const address = `${ip}:${await freePort(ip)}`;
    const agent = startCommand([
      ...['sled-agent', '--name', 'full', '--address', address, '--control-plane', url, '--data', disk],
      ...['--fencing', '--lease', String(leaseMs / 1000), '--network-poll-ms', '0', '--test-endpoints'],
    ]);
    ends.push(() => agent.stop('SIGKILL'));
    await agent.untilPrinted(/lease held/);
    const caller = new SledCaller({ url: `http://${address}` }, 2 ** 30);
    const { vmmId } = await caller.running();
    await caller.call('GET', '/agent');
    fill(disk);
    const before = granted;
    const since = monotonicMs();
    await waitUntil(() => monotonicMs() - since > 2.5 * leaseMs, 'time stands still');
    expect(granted).toBeGreaterThan(before + 3);
    expect((await caller.register(randomUUID())).status).toBe(507);
    // A machine that was busy for a whole lease has powered the guests off, as it must.
    if (!agent.output.includes('lapsed')) {
      const { entries } = (await (await fetch(`http://${address}/test/guest-log`)).json()) as {
        entries: { vmm_id: string; event: string }[];
      };
      expect(entries.filter((entry) => entry.vmm_id === vmmId).map(({ event }) => event)).toEqual(['began']);
      expect(readLease(join(disk, 'lease.json'))?.endsAtMs).toBeGreaterThan(since + 2 * leaseMs);
    }
    expect(agent.child.exitCode).toBeNull();
    empty(disk);
    expect(await waitForWell(`http://${address}`)).toEqual([]);
  });

  async function waitForWell(of: string): Promise<string[]> {
    await eventually(async () => (await trouble(of)).length === 0, 'it never said that it is well again');
    return trouble(of);
  }
});
