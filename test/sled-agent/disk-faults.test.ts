/**
 * Whatever a sled agent asks of its disk, and whichever way that fails, once or for a while: nothing is acknowledged or
 * reported that is not on disk, no guest that has nothing to do with it ends, and when the fault is over every VMM comes to
 * where it should be, in this agent and in one that is started after it.
 */
import { randomUUID } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { SledAgent } from '../../sled-agent/agent.ts';
import { Disk } from '../../sled-agent/disk.ts';
import { PlantedFaults } from '../../sled-agent/faults.ts';
import { parseGuestLog } from '../../sled-agent/guest-log.ts';
import { SimulatedHypervisor } from '../../sled-agent/simulated-hypervisor.ts';
import { VmmStore } from '../../sled-agent/vmm-store.ts';
import { type SledVmmState, sledVmmState } from '../../wire/sled-protocol.ts';
import { CarefulCaller, OnDisk } from '../support/careful-caller.ts';
import { FAULT_CODES, type FaultCode, FaultyFileSystem } from '../support/faulty-file-system.ts';
import { temporaryFolder } from '../support/qemu.ts';
import { eventually } from '../support/wait.ts';

/** How many operations fail where the fault lasts. */
const A_WHILE = 15;
/** A part of all that can fail, taken in turn, unless all of it is asked for: a few minutes. */
const EVERY = process.env.MOORING_DISK_FAULTS === 'all' ? 1 : 9;

let urlOfPlane: string;
/** Hears each report as it arrives. */
let onReport: (vmmId: string, report: SledVmmState) => void = () => {};
const plane = createServer((request, response) => {
  let text = '';
  request.on('data', (chunk) => {
    text += chunk;
  });
  request.on('end', () => {
    onReport(request.url?.split('/').at(-1) ?? '', sledVmmState.parse(JSON.parse(text)));
    response.writeHead(204, { 'x-request-id': 'r' }).end();
  });
});

beforeAll(async () => {
  await new Promise<void>((resolve) => plane.listen(0, '127.0.0.1', resolve));
  urlOfPlane = `http://127.0.0.1:${(plane.address() as AddressInfo).port}`;
});
afterAll(() => {
  plane.closeAllConnections();
  plane.close();
});

interface World {
  readonly agent: SledAgent;
  readonly hypervisor: SimulatedHypervisor;
  close(): Promise<void>;
}

async function startAgent(dataDir: string | null, fileSystem: FaultyFileSystem): Promise<World> {
  const disk = new Disk({ folder: dataDir, fileSystem, retryMs: 3 });
  const guestLog = dataDir === null ? undefined : join(dataDir, 'guests.jsonl');
  const hypervisor = new SimulatedHypervisor(1, new PlantedFaults(), guestLog, undefined, null, disk);
  const agent = await SledAgent.open({
    ...{ threads: 64, memoryBytes: 2 ** 40, controlPlaneUrl: urlOfPlane, hypervisor, dataDir, disk },
  });
  await agent.recover();
  return { agent, hypervisor, close: () => agent.close('end') };
}

/** Whole lives of VMMs, in every way that leaves a trace on disk; what it ends with. */
async function liveThrough(here: CarefulCaller, there: CarefulCaller, world: World, bystander: string) {
  const ids = { stopped: randomUUID(), halted: randomUUID(), crashed: randomUUID(), unwound: randomUUID() };
  const neverKnown = randomUUID();

  await here.running(ids.stopped);
  await here.command(ids.stopped, { type: 'reboot' });
  await here.is(ids.stopped, 'running');
  await here.command(ids.stopped, { type: 'stopped' });

  await here.running(ids.halted);
  world.hypervisor.halt(ids.halted);
  await here.running(ids.crashed);
  world.hypervisor.crash(ids.crashed);

  await here.register(ids.unwound);
  await here.unregister(ids.unwound);
  await here.unregister(neverKnown);

  // Away from here, and to here; one that fails for the disk's sake is tried again, as the control plane would.
  const migrate = async (from: CarefulCaller, to: CarefulCaller, source: string, address: string) => {
    for (;;) {
      const [target, migrationId] = [randomUUID(), randomUUID()];
      await to.register(target, migrationId);
      await to.command(target, { type: 'migration_target', value: { src_vmm_addr: address } });
      const over = () => to.state(target) === null || to.state(target)?.migration_in?.state === 'completed';
      await eventually(() => over(), `the migration to ${target} was never over`);
      if (to.state(target)?.vmm_state.state === 'running') return target;
      await from.is(source, 'running');
    }
  };
  const leaving = randomUUID();
  const left = await migrate(here, there, leaving, await here.running(leaving));
  const coming = randomUUID();
  const arrived = await migrate(there, here, coming, await there.running(coming));

  const gone = [...Object.values(ids), leaving];
  for (const vmmId of gone) await here.isForgotten(vmmId);
  await there.isForgotten(coming);
  expect(there.state(left)?.vmm_state.state).toBe('running');
  return { gone, dead: [...gone, neverKnown], lives: [bystander, arrived], elsewhere: left };
}

async function run(prepare: (files: FaultyFileSystem) => void): Promise<FaultyFileSystem> {
  const folder = await temporaryFolder();
  const files = new FaultyFileSystem();
  const world = await startAgent(folder.path, files);
  const other = await startAgent(null, new FaultyFileSystem());
  const disk = new OnDisk(folder.path);
  const unproven: string[] = [];
  onReport = (vmmId, { vmm_state: { gen, state } }) => {
    // The other agent keeps nothing.
    if (other.agent.inventory().some((vmm) => vmm.vmm_id === vmmId)) return;
    const record = disk.record(vmmId);
    if (record === null || record.runtime.gen < gen) unproven.push(`${vmmId} was reported ${state} at ${gen}`);
  };
  try {
    const [here, there] = [new CarefulCaller(world.agent, disk), new CarefulCaller(other.agent, null)];
    const bystander = randomUUID();
    await here.running(bystander);
    const counted = world.hypervisor.count(bystander) ?? 0;
    prepare(files);
    const { gone, dead, lives, elsewhere } = await liveThrough(here, there, world, bystander);
    files.heal();
    await eventually(() => world.agent.trouble.length === 0, 'it never said that the disk can be written again');
    expect(unproven, 'reports of what is not on disk').toEqual([]);
    expect(world.hypervisor.count(bystander)).toBeGreaterThan(counted);
    const { guestLog } = world.hypervisor;
    expect(guestLog.filter((entry) => entry.vmm_id === bystander).map((entry) => entry.event)).toEqual(['began']);
    const written = parseGuestLog(readFileSync(join(folder.path, 'guests.jsonl'), 'utf8'));
    expect(written).toEqual({ entries: guestLog, tornLines: [] });
    await there.unregister(elsewhere);
    await world.close();

    const store = await VmmStore.open(folder.path, new Disk());
    const known = store.all().map((vmm) => [vmm.vmmId, vmm.runtime.state]);
    expect(Object.fromEntries(known)).toEqual(Object.fromEntries(lives.map((vmmId) => [vmmId, 'running'])));
    for (const vmmId of dead) expect(store.isDead(vmmId), `the dead id ${vmmId}`).toBe(true);
    expect(gone.length).toBe(5);
    store.close();
    return files;
  } finally {
    await Promise.all([world.close(), other.close()]);
    await folder.close();
  }
}

describe('every operation of a sled agent on its disk', () => {
  const codes = Object.keys(FAULT_CODES) as FaultCode[];
  const asked = new Map<FaultCode, number>();

  beforeAll(async () => {
    let before = 0;
    const files = await run((fresh) => {
      before = fresh.asked.length;
    });
    for (const code of codes) {
      const befallen: readonly string[] = FAULT_CODES[code];
      asked.set(code, files.asked.slice(before).filter(({ operation }) => befallen.includes(operation)).length);
    }
  });

  test.each(codes.flatMap((code) => (['once', 'for a while'] as const).map((howLong) => ({ code, howLong }))))(
    '$code, $howLong',
    async ({ code, howLong }) => {
      const all = asked.get(code) ?? 0;
      expect(all).toBeGreaterThan(20);
      const first = (codes.indexOf(code) * 2 + (howLong === 'once' ? 0 : 1)) % EVERY;
      for (let before = first; before < all; before += EVERY) {
        await run((files) => files.fail(code, { before, failures: howLong === 'once' ? 1 : A_WHILE })).catch(
          (error) => {
            throw new Error(`${code} in operation ${before} of ${all}, ${howLong}: ${error.message}`, { cause: error });
          },
        );
      }
    },
  );
});

test('a folder that is made anew is not removed by a removal of before, which failed and is tried again meanwhile', async () => {
  const folder = await temporaryFolder();
  const path = join(folder.path, 'a-guest');
  let letGo = () => {};
  const held = new Promise<void>((resolve) => {
    letGo = resolve;
  });
  let attempts = 0;
  let isUnderWay = false;
  let overlaps = false;
  class Slow extends FaultyFileSystem {
    override async removeTree(tree: string): Promise<void> {
      attempts += 1;
      overlaps ||= isUnderWay;
      isUnderWay = true;
      if (attempts === 2) await held;
      await super.removeTree(tree).finally(() => {
        isUnderWay = false;
      });
    }
  }
  const files = new Slow();
  const disk = new Disk({ fileSystem: files, retryMs: 1 });
  try {
    disk.makeFolder(path);
    files.fail('EIO', { failures: 1 });
    await disk.removeTreeSoon(path);
    await eventually(() => attempts === 2, 'it was never tried again');
    const cleared = disk.clear(path).then(() => disk.makeFolder(path));
    letGo();
    await cleared;
    await eventually(() => disk.trouble.length === 0, 'the trouble was never over');
    expect([existsSync(path), attempts, overlaps]).toEqual([true, 3, false]);
  } finally {
    disk.stop();
    await folder.close();
  }
});
