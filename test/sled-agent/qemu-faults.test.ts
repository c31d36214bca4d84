/** Real guests and what can go wrong with them: no guest ever runs twice, and none is lost that one side still has. */
import { type ChildProcess, spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest';
import { waitUntil } from '../../platform/host/child-process.ts';
import { PLAIN_TRANSPORT } from '../../sled-agent/peer-transport.ts';
import { CORRUPT_LINE } from '../../sled-agent/qemu/guest-image.ts';
import { endProcess, findProcessesBelow } from '../../sled-agent/qemu/qemu-program.ts';
import type { QemuHypervisorOptions } from '../../sled-agent/qemu-hypervisor.ts';
import { type SledAgentHandle, startSledAgent } from '../../sled-agent/server.ts';
import { MOORING } from '../support/command.ts';
import { HandOverNetwork } from '../support/hand-over-network.ts';
import {
  GUEST_MEMORY_BYTES,
  type QemuForTests,
  qemuForTests,
  qemuHypervisor,
  temporaryFolder,
} from '../support/qemu.ts';
import { executing, ListeningControlPlane, loopbackAddress, SledCaller } from '../support/sled.ts';

const qemu = await qemuForTests('real guests and what can go wrong with them');
/** Far more than a busy machine ever needs; a guest boots in a few seconds. */
const PATIENT_MS = 90_000;

// Fifty migrations take long where many processes share two cores.
vi.setConfig({ testTimeout: 300_000, hookTimeout: 300_000 });

/** How many migrations in a row; `MOORING_MIGRATIONS` asks for more. */
const HOPS = Number(process.env.MOORING_MIGRATIONS ?? 20);

describe.skipIf(qemu === null)('real guests', () => {
  const plane = new ListeningControlPlane();
  const ends: (() => Promise<unknown>)[] = [];
  const networks: HandOverNetwork[] = [];
  let here: Sled;
  let booted: { vmmId: string; address: string } | null = null;
  let there: Sled;

  interface Sled {
    readonly agent: SledAgentHandle;
    readonly caller: SledCaller;
    readonly dataDir: string;
  }

  async function newFolder(): Promise<string> {
    const folder = await temporaryFolder();
    ends.push(folder.close);
    return folder.path;
  }

  async function startSled(options: Partial<QemuHypervisorOptions> = {}, dataDir?: string): Promise<Sled> {
    const folder = dataDir ?? (await newFolder());
    const agent = await startSledAgent({
      name: 's',
      listen: `${loopbackAddress()}:0`,
      controlPlaneUrl: plane.url,
      threads: 8,
      memoryBytes: 2 ** 33,
      dataDir: folder,
      makeHypervisor: qemuHypervisor(qemu as QemuForTests, folder, { silenceMs: 4_000, ...options }),
    });
    ends.push(() => agent.stop());
    return { agent, caller: new SledCaller(agent, GUEST_MEMORY_BYTES), dataDir: folder };
  }

  beforeAll(async () => {
    await plane.listen();
    ends.push(() => plane.close());
    here = await startSled();
    there = await startSled();
  });
  afterEach(async () => {
    for (const network of networks.splice(0)) await network.close();
    for (const { caller } of [here, there])
      for (const { vmm_id } of (await caller.call('GET', '/vmms')).body.vmms ?? [])
        if (vmm_id !== booted?.vmmId) await caller.unregister(vmm_id);
  });
  afterAll(async () => {
    for (const end of ends.reverse()) await end();
  });

  async function counts(sled: Sled, vmmId: string, beyond = 0): Promise<number> {
    let count = 0;
    await waitUntil(
      () => {
        count = sled.agent.hypervisor.count(vmmId) ?? 0;
        return count > beyond;
      },
      `the guest of VMM ${vmmId} never counted beyond ${beyond}`,
      PATIENT_MS,
      10,
    );
    return count;
  }

  /** A guest that counts on `here`: one that an earlier test has left there, since booting takes the most time. */
  async function bootedHere(): Promise<{ vmmId: string; address: string }> {
    if (booted !== null) {
      const { body } = await here.caller.read(booted.vmmId);
      if (body.vmm_state?.state === 'running') return booted;
    }
    booted = await here.caller.running();
    await counts(here, booted.vmmId);
    return booted;
  }

  /** A guest that counts on `here`, and its way to `there` through a network that the test holds in its hands. */
  async function migrating(prepare: (network: HandOverNetwork) => void, to: Sled = there) {
    const source = await bootedHere();
    const network = await HandOverNetwork.before(source.address);
    networks.push(network);
    prepare(network);
    const [target, migrationId] = [randomUUID(), randomUUID()];
    await to.caller.register(target, { migration_id: migrationId });
    await to.caller.migrateIn(target, network.address);
    return { source: source.vmmId, target, migrationId, network };
  }

  const halfWay = (network: HandOverNetwork) => {
    network.guestBytes = 1_000_000;
  };

  const findPid = (sled: { dataDir: string }, vmmId: string): number | undefined =>
    findProcessesBelow(join(sled.dataDir, 'vms')).get(vmmId);

  /** Sends a signal to a VMM's QEMU; throws when it is gone: to process 0 it would go to this test itself. */
  function signal(sled: { dataDir: string }, vmmId: string, name: NodeJS.Signals): void {
    const pid = findPid(sled, vmmId);
    if (pid === undefined) throw new Error(`VMM ${vmmId} has no process to send ${name} to`);
    process.kill(pid, name);
  }

  async function leavesNothing(sled: { dataDir: string }, vmmId: string): Promise<void> {
    await waitUntil(
      () => findPid(sled, vmmId) === undefined && !existsSync(join(sled.dataDir, 'vms', vmmId)),
      `something of VMM ${vmmId} is left`,
    );
    await waitUntil(
      () => !existsSync(join(sled.dataDir, 'vmm-records', `${vmmId}.json`)),
      `the record of VMM ${vmmId} is still there`,
    );
  }

  async function staysHere(moved: { source: string; target: string; migrationId: string }): Promise<void> {
    const { source, target, migrationId } = moved;
    await plane.untilSideReported(source, 'migration_out', 'failed', migrationId);
    await plane.untilReported(target, 'failed');
    expect(plane.last(target)?.migration_in?.state).toBe('failed');
    await counts(here, source, here.agent.hypervisor.count(source) ?? 0);
    expect(executing([here.agent, there.agent], [source, target])).toBe(1);
    await leavesNothing(there, target);
  }

  test(`${HOPS} live migrations back and forth: no count is lost or doubled, and no memory corrupted`, async () => {
    const sleds = [here, there] as const;
    let at = 0;
    let { vmmId, address } = await here.caller.running();
    await counts(here, vmmId);
    const vmmIds = [vmmId];
    const text: Buffer[] = [];
    let offset = 0;
    const readOn = async () => {
      for (;;) {
        const piece = await sleds[at]?.agent.hypervisor.readConsole(vmmId, offset, 65_536);
        if (piece == null || piece.data.length === 0) return;
        expect(piece.endOffset - piece.data.length).toBe(offset);
        text.push(piece.data);
        offset = piece.endOffset;
      }
    };
    for (let hop = 0; hop < HOPS; hop += 1) {
      const [target, migration_id] = [randomUUID(), randomUUID()];
      const to = sleds[1 - at] as Sled;
      const before = sleds[at]?.agent.hypervisor.count(vmmId) ?? 0;
      const registered = await to.caller.register(target, { migration_id });
      await to.caller.migrateIn(target, address);
      await plane.untilSideReported(target, 'migration_in', 'completed');
      await counts(to, target, before);
      [at, vmmId, address] = [1 - at, target, registered.address];
      vmmIds.push(target);
      await readOn();
    }
    expect(executing([here.agent, there.agent], vmmIds)).toBe(1);
    const output = Buffer.concat(text).toString('latin1');
    expect(output).not.toContain(CORRUPT_LINE);
    const counted = [...output.matchAll(/^count (\d+)\r?$/gm)].map((match) => Number(match[1]));
    expect(counted).toEqual(counted.map((_, index) => index + 1));
    expect(counted.length).toBeGreaterThan(HOPS);
  });

  test('kill -9 of a QEMU under a running VM: it is failed, its neighbour counts on, nothing is left', async () => {
    const [one, other] = [await here.caller.running(), await bootedHere()];
    const before = await counts(here, other.vmmId);
    signal(here, one.vmmId, 'SIGKILL');
    await plane.untilReported(one.vmmId, 'failed');
    await leavesNothing(here, one.vmmId);
    await counts(here, other.vmmId, before + 5);
    expect((await here.caller.read(other.vmmId)).body.vmm_state?.state).toBe('running');
  });

  test('the console of a VM that is being ended is whole or gone, and never looks like a fresh start', async () => {
    for (let turn = 0; turn < 5; turn += 1) {
      const { vmmId } = await here.caller.running();
      await counts(here, vmmId);
      const { hypervisor } = here.agent;
      const { endOffset } = (await hypervisor.readConsole(vmmId, -1, 1)) ?? { endOffset: 0 };
      expect(endOffset).toBeGreaterThan(0);
      let gone = false;
      const ended = here.caller.unregister(vmmId).finally(() => {
        gone = true;
      });
      while (!gone) {
        await new Promise(setImmediate);
        const pieces = await Promise.all(
          Array.from({ length: 4 }, () => hypervisor.readConsole(vmmId, endOffset, 100)),
        );
        for (const piece of pieces) expect(piece?.endOffset ?? endOffset).toBeGreaterThanOrEqual(endOffset);
      }
      expect((await ended).status).toBe(200);
    }
  });

  test('a QEMU that somebody ends in order from outside is a failed VM too: the guest did not power off', async () => {
    const { vmmId } = await here.caller.running();
    signal(here, vmmId, 'SIGTERM');
    await plane.untilReported(vmmId, 'failed');
    await leavesNothing(here, vmmId);
  });

  test('kill -9 of the destination’s QEMU half-way: the guest counts on at its source; progress was to be seen', async () => {
    const moved = await migrating(halfWay);
    await moved.network.untilGuestHalfSent();
    await waitUntil(async () => {
      const { body } = await here.caller.read(moved.source);
      return (body.migration_progress?.bytes_left ?? 0) > 0 && body.migration_progress?.status === 'active';
    }, 'its progress was never to be seen');
    signal(there, moved.target, 'SIGKILL');
    await staysHere(moved);
  });

  test('kill -9 of the source’s QEMU half-way: failed without a report on the migration; nobody has the guest', async () => {
    const { source, target, network } = await migrating(halfWay);
    await network.untilGuestHalfSent();
    signal(here, source, 'SIGKILL');
    await plane.untilReported(source, 'failed');
    expect(plane.last(source)?.migration_out?.state).toBe('in_progress');
    await plane.untilReported(target, 'failed');
    expect(plane.last(target)?.migration_in?.state).toBe('failed');
    expect(executing([here.agent, there.agent], [source, target])).toBe(0);
    await leavesNothing(here, source);
    await leavesNothing(there, target);
  });

  test('a source that is dead after the hand-over: the destination asks for it, and counts on', async () => {
    const { source, target, network } = await migrating((network) => {
      network.holdFrom = 'yours';
    });
    await network.untilSourceSent('yours');
    await plane.untilReported(source, 'destroyed');
    await leavesNothing(here, source);
    network.break();
    await plane.untilSideReported(target, 'migration_in', 'completed');
    await counts(there, target, 1);
    expect(executing([here.agent, there.agent], [source, target])).toBe(1);
  });

  test('a destination that has everything, and can’t reach the source, waits; when it can, the guest counts on', async () => {
    let questions = 0;
    const asking = await startSled({
      transport: {
        ...PLAIN_TRANSPORT,
        agentAt: (address) => {
          questions += 1;
          return PLAIN_TRANSPORT.agentAt(address);
        },
      },
    });
    const { source, target, network } = await migrating((network) => {
      network.holdFrom = 'yours';
    }, asking);
    await network.untilSourceSent('yours');
    const own = await fetch(`${here.agent.url}/agent`).then((answer) => answer.json());
    expect(own).toMatchObject({ agent_id: network.sourceAgentId, agent_id_kept: true });
    network.cut();
    await plane.untilSideReported(source, 'migration_out', 'completed');
    // Its conversation has ended by silence, and it has acted on a question that nobody answered: it asks again.
    await waitUntil(() => questions >= 2, 'it never asked again', 60_000);
    expect((await asking.caller.read(target)).body).toMatchObject({
      vmm_state: { state: 'migrating' },
      migration_in: { state: 'in_progress' },
    });
    expect(asking.agent.hypervisor.guestLog).toEqual([]);
    const count = asking.agent.hypervisor.count(target);
    network.mend();
    await plane.untilSideReported(target, 'migration_in', 'completed');
    await counts(asking, target, count ?? 0);
    expect(executing([here.agent, asking.agent], [source, target])).toBe(1);
    await asking.agent.stop();
  });

  test('the network is cut half-way: the guest counts on at its source, and the destination fails when it hears of it', async () => {
    const moved = await migrating(halfWay);
    await moved.network.untilGuestHalfSent();
    moved.network.cut();
    await plane.untilSideReported(moved.source, 'migration_out', 'failed', moved.migrationId);
    await counts(here, moved.source, here.agent.hypervisor.count(moved.source) ?? 0);
    expect(plane.last(moved.target)?.migration_in?.state).not.toBe('completed');
    moved.network.mend();
    await staysHere(moved);
  });

  test('every connection breaks half-way: the guest counts on at its source', async () => {
    const moved = await migrating(halfWay);
    await moved.network.untilGuestHalfSent();
    moved.network.break();
    await staysHere(moved);
  });

  test('a destination that hangs: its source cancels, and the guest counts on there', async () => {
    const impatient = await startSled({ stallMs: 1_500 });
    const source = await impatient.caller.running();
    await counts(impatient, source.vmmId);
    const network = await HandOverNetwork.before(source.address);
    networks.push(network);
    halfWay(network);
    const [target, migrationId] = [randomUUID(), randomUUID()];
    await there.caller.register(target, { migration_id: migrationId });
    signal(there, target, 'SIGSTOP');
    await there.caller.migrateIn(target, network.address);
    signal(there, target, 'SIGCONT');
    await network.untilGuestHalfSent();
    signal(there, target, 'SIGSTOP');
    await plane.untilSideReported(source.vmmId, 'migration_out', 'failed', migrationId);
    await plane.untilReported(target, 'failed');
    await counts(impatient, source.vmmId, impatient.agent.hypervisor.count(source.vmmId) ?? 0);
    await leavesNothing(there, target);
    await impatient.agent.stop();
  });

  test('a QEMU that doesn’t answer when its agent starts is there all the same, and is asked until it answers', async () => {
    const first = await startSled();
    const { vmmId } = await first.caller.running();
    const before = (await first.caller.read(vmmId)).body;
    await first.agent.detach();
    signal(first, vmmId, 'SIGSTOP');
    const second = await startSled({}, first.dataDir);
    expect((await second.caller.read(vmmId)).body).toEqual(before);
    expect((await second.caller.register(randomUUID())).status).toBe(200);
    signal(first, vmmId, 'SIGCONT');
    await counts(second, vmmId);
    await second.caller.command(vmmId, 'stopped');
    await plane.untilReported(vmmId, 'destroyed');
    await second.agent.stop();
  });

  test('a stop half-way cancels the migration, and the guest powers off where it is', async () => {
    const { source, target, network } = await migrating(halfWay);
    await network.untilGuestHalfSent();
    expect((await here.caller.command(source, 'stopped')).status).toBe(200);
    await plane.untilReported(source, 'destroyed');
    expect(plane.states(source).slice(-4)).toEqual(['running', 'stopping', 'stopped', 'destroyed']);
    await plane.untilReported(target, 'failed');
    expect(executing([here.agent, there.agent], [source, target])).toBe(0);
  });

  test('two unlike VMs exchange no guest: the source does not even pause it', async () => {
    const { vmmId, address } = await here.caller.running();
    const [target, migration_id] = [randomUUID(), randomUUID()];
    await there.caller.register(target, { migration_id, memory_bytes: 2 * GUEST_MEMORY_BYTES });
    await there.caller.migrateIn(target, address);
    await plane.untilReported(target, 'failed');
    expect((await here.caller.read(vmmId)).body).toEqual({
      vmm_state: expect.objectContaining({ state: 'running' }),
    });
  });

  test('a guest in which no kernel would boot is refused for good', async () => {
    const answer = await here.caller.register(randomUUID(), { memory_bytes: 95 * 1024 ** 2 });
    expect(answer).toMatchObject({ status: 422, body: { error_code: 'UNFIT_GUEST' } });
    expect(answer.body.message).toContain('96 MiB');
  });

  test('a guest that doesn’t power off in time is powered off', async () => {
    const sled = await startSled({ stopTimeoutMs: 1 });
    const { vmmId } = await sled.caller.running();
    await sled.caller.command(vmmId, 'stopped');
    await plane.untilReported(vmmId, 'destroyed');
    expect(plane.states(vmmId)).toEqual(['starting', 'running', 'stopping', 'stopped', 'destroyed']);
    expect(sled.agent.faults.guestLog().at(-1)?.reason).toBe('it did not power off in time');
    await leavesNothing(sled, vmmId);
  });

  test.each([
    ['panics', 'failed'],
    ['reboots', 'rebooting'],
  ])('a guest that %s is reported %s', async (what, state) => {
    const { image } = qemu as QemuForTests;
    const sled = await startSled({ image: { ...image, commandLine: `${image.commandLine} mooring.${what}` } });
    const { vmmId } = await sled.caller.running();
    await waitUntil(() => plane.states(vmmId).includes(state), `it was never ${state}`, PATIENT_MS);
    if (state === 'failed') await leavesNothing(sled, vmmId);
    else await waitUntil(() => plane.states(vmmId).at(-1) === 'running', 'it never ran again', PATIENT_MS);
    await sled.agent.stop();
  });

  test('the way of a hand-over under KVM, where the guest runs while its memory is copied', async () => {
    const [one, other] = [
      await startSled({ migrationMode: 'pre_copy' }),
      await startSled({ migrationMode: 'pre_copy' }),
    ];
    const { vmmId, address } = await one.caller.running();
    await counts(one, vmmId);
    const [target, migration_id] = [randomUUID(), randomUUID()];
    await other.caller.register(target, { migration_id });
    await other.caller.migrateIn(target, address);
    await plane.untilSideReported(vmmId, 'migration_out', 'completed');
    await plane.untilSideReported(target, 'migration_in', 'completed');
    // Not that it counts on: under TCG such a guest is often corrupt.
    expect(executing([one.agent, other.agent], [vmmId, target])).toBe(1);
    await Promise.all([one.agent.stop(), other.agent.stop()]);
  });

  describe('an agent that is killed', () => {
    interface AgentProcess {
      readonly child: ChildProcess;
      readonly caller: SledCaller;
      readonly dataDir: string;
      readonly address: string;
    }
    const children: ChildProcess[] = [];
    const dataDirs: string[] = [];
    afterAll(async () => {
      for (const child of children) child.kill('SIGKILL');
      for (const dataDir of dataDirs) {
        if (!existsSync(join(dataDir, 'vms'))) continue;
        for (const [vmmId, pid] of findProcessesBelow(join(dataDir, 'vms')))
          await endProcess(pid, join(dataDir, 'vms', vmmId));
      }
    });

    async function startProcess(dataDir: string, address = `${loopbackAddress()}:0`): Promise<AgentProcess> {
      dataDirs.push(dataDir);
      const child = spawn(
        process.execPath,
        [
          ...MOORING,
          ...['sled-agent', '--hypervisor', 'qemu', '--name', 's', '--address', address],
          ...['--control-plane', plane.url, '--data', dataDir, '--accelerator', 'tcg', '--threads', '8'],
        ],
        { stdio: ['ignore', 'pipe', 'inherit'] },
      );
      children.push(child);
      let output = '';
      child.stdout?.on('data', (chunk: Buffer) => {
        output += chunk.toString('utf8');
      });
      await waitUntil(() => /: (\S+), QEMU/.test(output), `the agent did not start: ${output}`, PATIENT_MS);
      const listening = /: (\S+), QEMU/.exec(output)?.[1] ?? '';
      return {
        child,
        dataDir,
        address: listening,
        caller: new SledCaller({ url: `http://${listening}` }, GUEST_MEMORY_BYTES),
      };
    }

    async function killed({ child }: AgentProcess): Promise<void> {
      const gone = new Promise((resolve) => child.once('exit', resolve));
      child.kill('SIGKILL');
      await gone;
    }

    async function consoleOf(caller: SledCaller, vmmId: string): Promise<number[]> {
      const { body } = await caller.call('GET', `/vmms/${vmmId}/serial-console?from_start=0`);
      const text = Buffer.from((body as { data?: number[] }).data ?? []).toString('latin1');
      return [...text.matchAll(/^count (\d+)\r?$/gm)].map((match) => Number(match[1]));
    }

    async function countsOn(caller: SledCaller, vmmId: string, beyond: number): Promise<number> {
      let last = 0;
      await waitUntil(
        async () => {
          last = (await consoleOf(caller, vmmId)).at(-1) ?? 0;
          return last > beyond;
        },
        `the guest of VMM ${vmmId} never counted beyond ${beyond}`,
        PATIENT_MS,
      );
      return last;
    }

    test('under running guests finds them again: same generations, no count lost; what died meanwhile is reported', async () => {
      const first = await startProcess(await newFolder());
      const [one, other] = await Promise.all([first.caller.running(), first.caller.running()]);
      const before = await countsOn(first.caller, one.vmmId, 0);
      const state = (await first.caller.read(one.vmmId)).body;
      await killed(first);
      signal(first, other.vmmId, 'SIGKILL');

      const second = await startProcess(first.dataDir, first.address);
      expect((await second.caller.read(one.vmmId)).body).toEqual(state);
      await countsOn(second.caller, one.vmmId, before + 5);
      const counted = await consoleOf(second.caller, one.vmmId);
      expect(counted).toEqual(counted.map((_, index) => index + 1));
      await plane.untilReported(other.vmmId, 'failed');
      await leavesNothing(first, other.vmmId);

      await second.caller.command(one.vmmId, 'stopped');
      await plane.untilReported(one.vmmId, 'destroyed');
      expect(plane.states(one.vmmId)).toEqual(['starting', 'running', 'stopping', 'stopped', 'destroyed']);
      await leavesNothing(first, one.vmmId);
      await killed(second);
    });

    test('as the source, half-way: when it is back the guest counts on there', async () => {
      const first = await startProcess(await newFolder());
      const source = await first.caller.running();
      const before = await countsOn(first.caller, source.vmmId, 0);
      const network = await HandOverNetwork.before(source.address);
      networks.push(network);
      halfWay(network);
      const [target, migration_id] = [randomUUID(), randomUUID()];
      await there.caller.register(target, { migration_id });
      await there.caller.migrateIn(target, network.address);
      await network.untilGuestHalfSent();
      await plane.untilSideReported(source.vmmId, 'migration_out', 'in_progress');
      await killed(first);
      const second = await startProcess(first.dataDir, first.address);
      await plane.untilSideReported(source.vmmId, 'migration_out', 'failed');
      await plane.untilReported(target, 'failed');
      await countsOn(second.caller, source.vmmId, before);
      expect(there.agent.hypervisor.guestLog.filter((entry) => entry.vmm_id === target)).toEqual([]);
      await second.caller.unregister(source.vmmId);
      await leavesNothing(first, source.vmmId);
      await killed(second);
    });

    test('as the destination that has everything: when it is back it asks the source, and the guest counts on', async () => {
      const first = await startProcess(await newFolder());
      const source = await bootedHere();
      const before = await counts(here, source.vmmId);
      const network = await HandOverNetwork.before(source.address);
      networks.push(network);
      network.holdFrom = 'yours';
      const [target, migration_id] = [randomUUID(), randomUUID()];
      await first.caller.register(target, { migration_id });
      await first.caller.migrateIn(target, network.address);
      await network.untilSourceSent('yours');
      await killed(first);
      await plane.untilSideReported(source.vmmId, 'migration_out', 'completed');
      const second = await startProcess(first.dataDir, first.address);
      await plane.untilSideReported(target, 'migration_in', 'completed');
      await countsOn(second.caller, target, before);
      expect(executing([here.agent], [source.vmmId])).toBe(0);
      await second.caller.unregister(target);
      await leavesNothing(first, target);
      await killed(second);
    });
  });

  test('an agent that ends in order leaves no process and no file of a VM', async () => {
    const sled = await startSled();
    await Promise.all([sled.caller.register(randomUUID()), sled.caller.running()]);
    await sled.agent.stop();
    expect(findProcessesBelow(join(sled.dataDir, 'vms')).size).toBe(0);
    expect(readdirSync(join(sled.dataDir, 'vms'))).toEqual([]);
  });
});
