/** The same of real guests: whatever fails of what is written of a QEMU process, and however long. No guest needs to boot for it. */
import { randomUUID } from 'node:crypto';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { SledAgent } from '../../sled-agent/agent.ts';
import { Disk } from '../../sled-agent/disk.ts';
import { PlantedFaults } from '../../sled-agent/faults.ts';
import { findProcessesBelow } from '../../sled-agent/qemu/qemu-program.ts';
import type { QemuHypervisor } from '../../sled-agent/qemu-hypervisor.ts';
import { CarefulCaller, OnDisk } from '../support/careful-caller.ts';
import { FAULT_CODES, type FaultCode, FaultyFileSystem } from '../support/faulty-file-system.ts';
import {
  GUEST_MEMORY_BYTES,
  type QemuForTests,
  qemuForTests,
  qemuHypervisor,
  temporaryFolder,
} from '../support/qemu.ts';
import { ListeningControlPlane } from '../support/sled.ts';
import { eventually } from '../support/wait.ts';

const qemu = await qemuForTests('real guests on a disk that fails');
const A_WHILE = 12;
const EVERY = process.env.MOORING_DISK_FAULTS === 'all' ? 1 : 10;

describe.skipIf(qemu === null)('every operation of a sled agent with real guests on its disk', () => {
  const plane = new ListeningControlPlane();
  const files = new FaultyFileSystem();
  const codes = Object.keys(FAULT_CODES) as FaultCode[];
  const asked = new Map<FaultCode, number>();
  const dead: string[] = [];
  const bystander = randomUUID();
  let folder: Awaited<ReturnType<typeof temporaryFolder>>;
  let agent: SledAgent;
  let hypervisor: QemuHypervisor;
  let here: CarefulCaller;

  async function open(fileSystem: FaultyFileSystem): Promise<void> {
    const disk = new Disk({ folder: folder.path, fileSystem, retryMs: 3 });
    const make = qemuHypervisor(qemu as QemuForTests, folder.path, { endWithAgent: false });
    hypervisor = make(new PlantedFaults(), () => '127.0.0.1:1', undefined, disk);
    agent = await SledAgent.open({
      ...{ threads: 64, memoryBytes: 2 ** 40, controlPlaneUrl: plane.url, hypervisor, dataDir: folder.path, disk },
    });
    await agent.recover();
    here = new CarefulCaller(agent, new OnDisk(folder.path), GUEST_MEMORY_BYTES);
  }

  const processes = () => findProcessesBelow(join(folder.path, 'vms'));

  /** Three lives of VMMs, none of which needs a kernel that has booted. */
  async function liveThrough(): Promise<void> {
    const [unwound, stopped, crashed] = [randomUUID(), randomUUID(), randomUUID()];
    await here.running(unwound);
    await here.unregister(unwound);
    await here.register(stopped);
    await here.command(stopped, { type: 'stopped' });
    await here.running(crashed);
    hypervisor.crash(crashed);
    for (const vmmId of [unwound, stopped, crashed]) await here.isForgotten(vmmId);
    dead.push(unwound, stopped, crashed);
    files.heal();
    await eventually(() => agent.trouble.length === 0, 'it never said that the disk can be written again');
    for (const vmmId of [unwound, stopped, crashed]) {
      expect(processes().has(vmmId)).toBe(false);
      await eventually(() => !existsSync(join(folder.path, 'vms', vmmId)), `something of ${vmmId} is left`);
    }
    expect(here.state(bystander)?.vmm_state.state).toBe('running');
    expect(processes().has(bystander)).toBe(true);
  }

  beforeAll(async () => {
    await plane.listen();
    folder = await temporaryFolder();
    await open(files);
    await here.running(bystander);
    const before = files.asked.length;
    await liveThrough();
    for (const code of codes) {
      const befallen: readonly string[] = FAULT_CODES[code];
      asked.set(code, files.asked.slice(before).filter(({ operation }) => befallen.includes(operation)).length);
    }
  });
  afterAll(async () => {
    await agent?.close('end');
    await plane.close();
    await folder?.close();
  });

  test.each(codes.flatMap((code) => (['once', 'for a while'] as const).map((howLong) => ({ code, howLong }))))(
    '$code, $howLong',
    async ({ code, howLong }) => {
      const all = asked.get(code) ?? 0;
      expect(all).toBeGreaterThan(20);
      const first = (codes.indexOf(code) * 2 + (howLong === 'once' ? 0 : 1)) % EVERY;
      for (let before = first; before < all; before += EVERY) {
        files.fail(code, { before, failures: howLong === 'once' ? 1 : A_WHILE });
        await liveThrough().catch((error) => {
          throw new Error(`${code} in operation ${before} of ${all}, ${howLong}: ${error.message}`, { cause: error });
        });
      }
    },
  );

  test('an agent that is started after it has the guest that lived through all of it, and every dead id', async () => {
    await agent.close('detach');
    await open(new FaultyFileSystem());
    expect(agent.inventory().map(({ vmm_id, vmm_state }) => [vmm_id, vmm_state.state])).toEqual([
      [bystander, 'running'],
    ]);
    for (const vmmId of dead)
      await expect(here.register(vmmId), `the dead id ${vmmId}`).rejects.toMatchObject({
        errorCode: 'VMM_UNREGISTERED',
      });
    await here.unregister(bystander);
  });
});
