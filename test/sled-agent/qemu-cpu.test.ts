/** The CPU of real guests: what the control plane asks for is what QEMU is run with, and a guest meets no other one. */
import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { freePort } from '../../platform/host/child-process.ts';
import { findProcessesBelow } from '../../sled-agent/qemu/qemu-program.ts';
import { type SledAgentHandle, startSledAgent } from '../../sled-agent/server.ts';
import { agentDescription, splitAddress } from '../../wire/sled-protocol.ts';
import {
  GUEST_MEMORY_BYTES,
  type QemuForTests,
  qemuForTests,
  qemuHypervisor,
  temporaryFolder,
} from '../support/qemu.ts';
import { ListeningControlPlane, loopbackAddress, SledCaller } from '../support/sled.ts';

const qemu = await qemuForTests('the CPU of real guests');
vi.setConfig({ testTimeout: 300_000, hookTimeout: 300_000 });

describe.skipIf(qemu === null)('the CPU of real guests', () => {
  const plane = new ListeningControlPlane();
  const ends: (() => Promise<unknown>)[] = [];
  const troubles: string[] = [];
  beforeAll(async () => {
    await plane.listen();
    ends.push(() => plane.close());
  });
  afterAll(async () => {
    for (const end of ends.reverse()) await end();
  });

  interface Sled {
    readonly agent: SledAgentHandle;
    readonly caller: SledCaller;
    readonly dataDir: string;
  }

  /** With the data of one that has ended, at its address; or a new one. */
  async function sledWith(cpuModels: readonly string[] | undefined, after?: Sled): Promise<Sled> {
    const folder = after === undefined ? await temporaryFolder() : null;
    if (folder !== null) ends.push(folder.close);
    const path = after?.dataDir ?? folder?.path ?? '';
    const agent = await startSledAgent({
      name: 's',
      listen: after?.agent.address ?? `${loopbackAddress()}:0`,
      controlPlaneUrl: plane.url,
      networkPollMs: 0,
      threads: 8,
      memoryBytes: 2 ** 33,
      dataDir: path,
      makeHypervisor: qemuHypervisor(qemu as QemuForTests, path, {
        cpuModels,
        endWithAgent: false,
        onTrouble: (message) => troubles.push(message),
      }),
    });
    ends.push(() => agent.stop());
    return { agent, caller: new SledCaller(agent, GUEST_MEMORY_BYTES), dataDir: path };
  }

  const spec = (cpu_model?: string) => ({
    vmm_spec: {
      name: 'web',
      ncpus: 1,
      memory_bytes: GUEST_MEMORY_BYTES,
      ...(cpu_model === undefined ? {} : { cpu_model }),
    },
  });
  /** What QEMU was run with. */
  function cpuOf({ dataDir }: Sled, vmmId: string): string | undefined {
    const pid = findProcessesBelow(join(dataDir, 'vms')).get(vmmId);
    const args = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0');
    return args.includes('-cpu') ? args[args.indexOf('-cpu') + 1] : undefined;
  }
  const shapeOf = ({ dataDir }: Sled, vmmId: string) =>
    JSON.parse(readFileSync(join(dataDir, 'vms', vmmId, 'vm.json'), 'utf8')).shape.cpuModel;

  test('an agent says what it offers; a guest gets what is asked for, or the first; what is not offered is refused', async () => {
    const sled = await sledWith(['qemu64-v1', 'kvm64-v1']);
    const described = agentDescription.parse(await (await fetch(`${sled.agent.url}/agent`)).json());
    expect(described.cpu_models).toEqual(['qemu64-v1', 'kvm64-v1']);
    for (const [asked, given] of [
      [undefined, 'qemu64-v1'],
      ['kvm64-v1', 'kvm64-v1'],
    ] as const) {
      const vmmId = randomUUID();
      expect((await sled.caller.register(vmmId, spec(asked))).status).toBe(200);
      expect(cpuOf(sled, vmmId)).toBe(`${given},enforce`);
      expect(shapeOf(sled, vmmId)).toBe(given);
    }
    const refused = await sled.caller.register(randomUUID(), spec('host/0123456789abcdef'));
    expect([refused.status, refused.body.error_code]).toEqual([422, 'UNFIT_GUEST']);
    expect(refused.body.message).toContain('host/0123456789abcdef');
  });

  test('one that tells no models apart takes any, and leaves the choice to QEMU', async () => {
    const sled = await sledWith(undefined);
    expect(await (await fetch(`${sled.agent.url}/agent`)).json()).not.toHaveProperty('cpu_models');
    const vmmId = randomUUID();
    expect((await sled.caller.register(vmmId, spec('Nehalem-v1'))).status).toBe(200);
    expect(cpuOf(sled, vmmId)).toBeUndefined();
  });

  test('a guest keeps its CPU across a restart of its agent, whatever that offers then, and moves to the same only', async () => {
    const before = await sledWith(['kvm64-v1', 'qemu64-v1']);
    const vmmId = randomUUID();
    // At its sled's address, as the control plane places VMMs: an agent that was restarted listens there.
    const { host } = splitAddress(before.agent.address);
    const address = `${host}:${await freePort(host)}`;
    await before.caller.register(vmmId, { ...spec(), vmm_addr: address });
    await before.caller.command(vmmId, 'running');
    await plane.untilReported(vmmId, 'running');
    await before.agent.detach();
    const source = await sledWith(['qemu64-v1', 'kvm64-v1'], before);
    expect(shapeOf(source, vmmId)).toBe('kvm64-v1');

    const there = await sledWith(['qemu64-v1', 'kvm64-v1']);
    const [unlike, alike, migrationId] = [randomUUID(), randomUUID(), randomUUID()];
    await there.caller.register(unlike, { migration_id: randomUUID(), ...spec() });
    await there.caller.migrateIn(unlike, address);
    // The source refuses, and nothing has happened to its guest.
    await plane.untilReported(unlike, 'failed');
    expect(troubles.join('\n')).toContain('cpuModel is kvm64-v1 at the source and qemu64-v1 at the destination');
    expect((await source.caller.read(vmmId)).body.vmm_state?.state).toBe('running');

    await there.caller.register(alike, { migration_id: migrationId, ...spec('kvm64-v1') });
    await there.caller.migrateIn(alike, address);
    await plane.untilSideReported(alike, 'migration_in', 'completed', migrationId);
    expect(cpuOf(there, alike)).toBe('kvm64-v1,enforce');
  });
});
