/** Fencing of real guests: QEMU processes that outlive their agent are powered off by its watchdog, and by nothing else. */
import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { type FastifyInstance, fastify } from 'fastify';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { watchdogGraceMs } from '../../model/lease.ts';
import { freePort, processExists, waitUntil } from '../../platform/host/child-process.ts';
import { readGuestLogFile } from '../../sled-agent/guest-log.ts';
import { monotonicMs, readLease } from '../../sled-agent/lease-file.ts';
import { leasePath } from '../../sled-agent/lease-keeper.ts';
import { endProcess, findProcessesBelow } from '../../sled-agent/qemu/qemu-program.ts';
import { QemuHypervisor } from '../../sled-agent/qemu-hypervisor.ts';
import { runCommand, spawnMooring } from '../support/command.ts';
import { GUEST_MEMORY_BYTES, qemuForTests, temporaryFolder } from '../support/qemu.ts';
import { loopbackAddress, SledCaller } from '../support/sled.ts';
import { Supervisor } from '../support/supervisor.ts';

const qemu = await qemuForTests('fencing of real guests');
const PATIENT_MS = 120_000;

describe.skipIf(qemu === null)('real guests with a lease', () => {
  const plane: FastifyInstance = fastify();
  let planeUrl: string;
  /** Whether renewals are granted. */
  let grants = true;
  let granted = 0;
  const agents: Agent[] = [];

  class Agent {
    readonly folder: string;
    readonly caller: SledCaller;
    readonly url: string;
    readonly #process: Supervisor;

    constructor(folder: string, address: string, leaseSeconds: number) {
      this.folder = folder;
      this.url = `http://${address}`;
      this.caller = new SledCaller(this, GUEST_MEMORY_BYTES);
      const args = [
        ...['sled-agent', '--name', 'fenced', '--address', address, '--control-plane', planeUrl, '--data', folder],
        ...[
          '--hypervisor',
          'qemu',
          '--accelerator',
          'tcg',
          '--threads',
          '8',
          '--memory',
          '8GiB',
          '--network-poll-ms',
          '0',
        ],
        ...['--fencing', '--lease', String(leaseSeconds), '--guest-log', join(folder, 'guests.jsonl')],
      ];
      this.#process = new Supervisor({ name: 'the agent', spawn: () => spawnMooring(args), restartAfterMs: null });
    }

    start(): void {
      this.#process.start();
    }
    /** Kills it, unless its watchdog has. */
    kill(): Promise<void> {
      return this.#process.kill();
    }
    status(): Promise<number> {
      return fetch(`${this.url}/vmms`, { signal: AbortSignal.timeout(2_000) }).then(
        async (answer) => {
          await answer.arrayBuffer();
          return answer.status;
        },
        () => 0,
      );
    }
    async answers(status: number): Promise<void> {
      await waitUntil(async () => (await this.status()) === status, `the agent never answered ${status}`, PATIENT_MS);
    }
    processes(): Map<string, number> {
      return findProcessesBelow(QemuHypervisor.vmsFolder(this.folder));
    }
    leaseEndsAtMs(): number {
      return readLease(leasePath(this.folder))?.endsAtMs ?? Number.NaN;
    }
    journal() {
      return readGuestLogFile(join(this.folder, 'guests.jsonl'));
    }
  }

  async function startAgent(leaseSeconds: number): Promise<Agent> {
    grants = true;
    const { path } = await temporaryFolder();
    const ip = loopbackAddress();
    const agent = new Agent(path, `${ip}:${await freePort(ip)}`, leaseSeconds);
    agents.push(agent);
    agent.start();
    await agent.answers(200);
    return agent;
  }

  async function runningGuest(agent: Agent): Promise<{ vmmId: string; pid: number }> {
    const vmmId = randomUUID();
    await agent.caller.register(vmmId);
    await agent.caller.command(vmmId, 'running');
    await waitUntil(
      async () => (await agent.caller.read(vmmId)).body.vmm_state?.state === 'running',
      `VMM ${vmmId} never ran`,
      PATIENT_MS,
    );
    const pid = agent.processes().get(vmmId);
    if (pid === undefined) throw new Error(`VMM ${vmmId} has no process`);
    return { vmmId, pid };
  }

  beforeAll(async () => {
    plane.get('/sleds/by-name/:name', async () => ({ sled_id: '00000000-0000-4000-8000-000000000001' }));
    plane.put('/sleds/:id/lease', async (_, reply) => {
      if (!grants) return reply.status(503).send({ message: 'not now' });
      granted += 1;
      return { epoch: 0, margin_ms: 1 };
    });
    plane.put('/vmms/:id', async (_, reply) => reply.status(204).header('x-request-id', 'r').send());
    planeUrl = await plane.listen({ host: '127.0.0.1', port: 0 });
  });
  afterEach(async () => {
    for (const agent of agents.splice(0)) {
      await agent.kill();
      for (const [vmmId, pid] of agent.processes())
        await endProcess(pid, join(QemuHypervisor.vmsFolder(agent.folder), vmmId));
    }
  });
  afterAll(() => plane.close());

  test('of an agent that is killed live on until its lease is over, and not a moment of the next', async () => {
    const leaseMs = 8_000;
    const agent = await startAgent(leaseMs / 1000);
    const { vmmId, pid } = await runningGuest(agent);
    await agent.kill();
    const endsAt = agent.leaseEndsAtMs();
    expect(processExists(pid)).toBe(true);
    await waitUntil(() => agent.processes().size === 0, 'the watchdog never powered the guest off', PATIENT_MS, 5);
    expect(monotonicMs()).toBeGreaterThanOrEqual(endsAt);
    await waitUntil(
      () => agent.journal().some(({ event }) => event === 'ceased'),
      'the journal was never closed',
      PATIENT_MS,
    );
    const ceased = agent.journal().find((entry) => entry.event === 'ceased' && entry.vmm_id === vmmId);
    expect(ceased?.reason).toMatch(/lease lapsed/);
    expect(ceased?.monotonic_ms).toBeGreaterThanOrEqual(endsAt);
  });

  test('of an agent that is paused are powered off by its watchdog, and so is the agent', async () => {
    const agent = await startAgent(8);
    const { pid } = await runningGuest(agent);
    const agentPid = readLease(leasePath(agent.folder))?.agentPid ?? 0;
    process.kill(agentPid, 'SIGSTOP');
    const endsAt = agent.leaseEndsAtMs();
    await waitUntil(() => agent.processes().size === 0, 'the watchdog never powered the guest off', PATIENT_MS, 5);
    expect(monotonicMs()).toBeGreaterThanOrEqual(endsAt + watchdogGraceMs(8_000));
    expect(processExists(pid) && agent.processes().size > 0).toBe(false);
    await agent.kill();
  });

  test('of an agent that starts again within the lease are taken up, once it has renewed', async () => {
    const agent = await startAgent(120);
    const { vmmId, pid } = await runningGuest(agent);
    await agent.kill();
    grants = false;
    const before = granted;
    agent.start();
    await agent.answers(503);
    expect(processExists(pid)).toBe(true);
    expect(granted).toBe(before);
    grants = true;
    await agent.answers(200);
    expect(granted).toBeGreaterThan(before);
    expect(agent.processes().get(vmmId)).toBe(pid);
    expect((await agent.caller.read(vmmId)).body.vmm_state?.state).toBe('running');
  });

  test('are powered off by an agent that is refused its renewals; it runs others when it has a lease again', async () => {
    const agent = await startAgent(8);
    const { vmmId } = await runningGuest(agent);
    grants = false;
    await waitUntil(() => agent.processes().size === 0, 'the guest was never powered off', PATIENT_MS, 20);
    await waitUntil(
      async () => ['failed', undefined].includes((await agent.caller.read(vmmId)).body.vmm_state?.state),
      'its VMM never failed',
      PATIENT_MS,
    );
    expect(await agent.caller.register(randomUUID())).toMatchObject({ status: 503, body: { error_code: 'NO_LEASE' } });
    grants = true;
    await waitUntil(
      async () => (await agent.caller.register(randomUUID())).status === 200,
      'it takes no VMM',
      PATIENT_MS,
      300,
    );
  });

  test('and their agent’s data are not for an agent without fencing', async () => {
    const agent = await startAgent(60);
    await agent.kill();
    const args = ['sled-agent', '--name', 'x', '--address', '127.0.0.1:0', '--data', agent.folder];
    const { code, stderr } = await runCommand(args);
    expect(code).toBe(1);
    expect(stderr).toMatch(/is of a sled with fencing/);
  });
});
