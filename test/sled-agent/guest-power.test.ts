/** How a guest is powered off, without a QEMU: its time counts on a clock that nobody sets, and a disk that is full delays nothing. */
import { afterEach, describe, expect, test, vi } from 'vitest';
import { waitUntil } from '../../platform/host/child-process.ts';
import { Disk, DiskError } from '../../sled-agent/disk.ts';
import type { Unwritten, VmEvent } from '../../sled-agent/hypervisor.ts';
import { monotonicMs } from '../../sled-agent/lease-file.ts';
import { GuestPower } from '../../sled-agent/qemu/guest-power.ts';
import type { QemuProcess } from '../../sled-agent/qemu/qemu-process.ts';
import { VmJournal } from '../../sled-agent/qemu/vm-journal.ts';
import { VmState } from '../../sled-agent/qemu/vm-state.ts';
import { FaultyFileSystem } from '../support/faulty-file-system.ts';
import { temporaryFolder } from '../support/qemu.ts';

const HOUR_MS = 3_600_000;
const shape = { machine: 'pc', accelerator: 'tcg', memoryMib: 96, ncpus: 1, cpuModel: null } as const;
const spec = {
  vmmId: 'v',
  instanceId: 'i',
  name: 'web',
  ncpus: 1,
  memoryBytes: 1,
  address: '127.0.0.1:1',
  incoming: false,
};

const ends: (() => unknown)[] = [];
afterEach(async () => {
  vi.restoreAllMocks();
  for (const end of ends.splice(0)) await end();
});

/** A guest that runs, and takes no notice of its power button. */
async function makeVm(listener: (event: VmEvent) => Unwritten = () => null) {
  const folder = await temporaryFolder();
  ends.push(folder.close);
  const files = new FaultyFileSystem();
  const disk = new Disk({ fileSystem: files });
  ends.push(() => disk.stop());
  const events: VmEvent[] = [];
  const state = new VmState(spec, { log: () => {}, onTrouble: () => {} }, (event) => {
    events.push(event);
    return listener(event);
  });
  const vm = { ended: false };
  const process = {
    execute: async () => ({}),
    sleep: (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, Math.min(ms, 5))),
  } as unknown as QemuProcess;
  const power = (stopTimeoutMs: number, journal: VmJournal) =>
    new GuestPower(
      {
        runInBackground: (work) => void work(),
        endInOrder: () => {
          state.enter('ending');
          vm.ended = true;
        },
      },
      state,
      journal,
      process,
      stopTimeoutMs,
    );
  const journal = VmJournal.begin(disk, folder.path, shape);
  journal.write();
  state.enter('running');
  return { folder: folder.path, files, disk, state, events, vm, power, journal };
}

describe('the time that a guest has to power off', () => {
  test.each([-1, 1])('is not changed by a clock that jumps by %i hours', async (hours) => {
    const { power, journal, vm } = await makeVm();
    const stopTimeoutMs = 300;
    const guest = power(stopTimeoutMs, journal);
    const since = monotonicMs();
    guest.shutDown();
    guest.recordStop();
    const realNow = Date.now;
    vi.spyOn(Date, 'now').mockImplementation(() => realNow() + hours * HOUR_MS);
    await waitUntil(() => vm.ended, 'it was never powered off', 30_000, 5);
    expect(monotonicMs() - since).toBeGreaterThanOrEqual(stopTimeoutMs);
  });

  test('goes on where an earlier agent began it, whatever the clock says now', async () => {
    const { disk, folder, power, journal, vm } = await makeVm();
    journal.write({ stopAskedAtMs: monotonicMs() - 10_000 });
    const realNow = Date.now;
    vi.spyOn(Date, 'now').mockImplementation(() => realNow() - HOUR_MS);
    power(9_000, VmJournal.read(disk, folder)).continueShutDown();
    await waitUntil(() => vm.ended, 'it was never powered off', 30_000, 5);
  });
});

describe('on a disk that is full a guest', () => {
  test('is powered off when it is asked to, and nobody is told so before that is on disk', async () => {
    const { disk, files, folder, power, journal, state } = await makeVm();
    const guest = power(HOUR_MS, journal);
    files.fail('ENOSPC');
    guest.shutDown();
    expect(state.phase).toBe('stopping');
    expect(() => guest.recordStop()).toThrow(DiskError);
    expect(() => guest.recordStop()).toThrow(DiskError);
    expect(VmJournal.read(disk, folder).entries.stopAskedAtMs).toBeNull();
    files.heal();
    guest.recordStop();
    expect(VmJournal.read(disk, folder).entries.stopAskedAtMs).toBeGreaterThan(0);
    state.release();
  });

  test('that powered itself off keeps its process, which alone can tell so, until it is on disk', async () => {
    let written: () => void = () => {};
    const onDisk = new Promise<void>((resolve) => {
      written = resolve;
    });
    const { power, journal, vm } = await makeVm(() => onDisk);
    const guest = power(HOUR_MS, journal);
    guest.onPoweredOff('guest-shutdown');
    await Promise.resolve();
    expect(vm.ended).toBe(false);
    written();
    await waitUntil(() => vm.ended, 'its process was never ended', 30_000, 5);
  });

  test('that does not power off in time is powered off all the same', async () => {
    const { power, journal, vm } = await makeVm(() => new Promise<void>(() => {}));
    power(20, journal).shutDown();
    await waitUntil(() => vm.ended, 'it was never powered off', 30_000, 5);
  });
});

test('what a journal says is what is on disk, whatever kept it from being written', async () => {
  const { disk, files, folder, journal } = await makeVm();
  for (const code of ['ENOSPC', 'EIO', 'EMFILE'] as const)
    for (let before = 0; before < 3; before++) {
      files.fail(code, { before, failures: 1 });
      const stopOnArrival = !journal.entries.stopOnArrival;
      try {
        journal.write({ stopOnArrival });
      } catch (error) {
        expect(error).toBeInstanceOf(DiskError);
        expect(journal.entries.stopOnArrival).toBe(!stopOnArrival);
      }
      files.heal();
      journal.write();
      expect(VmJournal.read(disk, folder).entries).toEqual(journal.entries);
    }
});

test('a VM that has ended stays so, whatever was on its way when it did', async () => {
  const { state } = await makeVm();
  state.enter('ended');
  for (const phase of ['running', 'ending', 'migrating_in', 'made'] as const) {
    state.enter(phase);
    expect(state.phase).toBe('ended');
  }
  expect(state.over).toBe(true);
});
