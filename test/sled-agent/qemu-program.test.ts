import { describe, expect, test } from 'vitest';
import { findCpuModels } from '../../sled-agent/qemu/cpu-models.ts';
import { makeGuestImage } from '../../sled-agent/qemu/guest-image.ts';
import { directory, executable, packNewc } from '../../sled-agent/qemu/newc.ts';
import { prepareQemu } from '../../sled-agent/qemu/prepare-qemu.ts';
import { findProcessesBelow, findQemu, type QemuProgram, worksIn } from '../../sled-agent/qemu/qemu-program.ts';
import { temporaryFolder } from '../support/qemu.ts';

const program = await findQemu().catch(() => null);

describe('an error names what is missing for real VMs, and what to do about it', () => {
  test('QEMU', async () => {
    await expect(findQemu({ MOORING_QEMU_BINARY: '/nowhere/qemu-system-x86_64' })).rejects.toThrow(
      /not installed.*apt-get install .*qemu-system-x86|need Linux/,
    );
  });

  test('a kernel without its initramfs', async () => {
    await expect(prepareQemu({ cacheDir: '/nowhere', kernel: '/vmlinuz' })).rejects.toThrow('belong together');
  });

  test('apt', async () => {
    const folder = await temporaryFolder();
    const { PATH } = process.env;
    process.env.PATH = folder.path;
    try {
      await expect(makeGuestImage(folder.path)).rejects.toThrow(/apt is not here.*--kernel and --initramfs/s);
    } finally {
      process.env.PATH = PATH;
      await folder.close();
    }
  });
});

test('an archive has its entries in order, each on a multiple of four bytes, and a trailer', () => {
  const archive = packNewc([directory('bin'), executable('bin/sh', Buffer.from('hello'))]);
  expect(archive.length % 4).toBe(0);
  const names: string[] = [];
  for (let at = 0; at < archive.length; ) {
    expect(archive.toString('latin1', at, at + 6)).toBe('070701');
    const field = (index: number) =>
      Number.parseInt(archive.toString('latin1', at + 6 + index * 8, at + 14 + index * 8), 16);
    const [size, nameLength] = [field(6), field(11)];
    names.push(archive.toString('latin1', at + 110, at + 110 + nameLength - 1));
    const dataAt = Math.ceil((at + 110 + nameLength) / 4) * 4;
    if (names.at(-1) === 'bin/sh') expect(archive.toString('latin1', dataAt, dataAt + size)).toBe('hello');
    at = Math.ceil((dataAt + size) / 4) * 4;
  }
  expect(names).toEqual(['bin', 'bin/sh', 'TRAILER!!!']);
});

test.skipIf(process.platform !== 'linux')('a process is known by where it works, not by its number', async () => {
  expect(worksIn(process.pid, process.cwd())).toBe(true);
  expect(worksIn(process.pid, '/')).toBe(process.cwd() === '/');
  expect(worksIn(2 ** 22 + 1, process.cwd())).toBe(false);
  const folder = await temporaryFolder();
  expect(findProcessesBelow(folder.path).size).toBe(0);
  await folder.close();
});

describe.skipIf(program === null)('the CPU models of this machine’s QEMU, under TCG', () => {
  const models = (wish?: string) => findCpuModels(program as QemuProgram, 'tcg', wish);

  test('are told by their own names, the default first', async () => {
    const offered = await models();
    expect(offered[0]).toBe('qemu64-v1');
    expect(offered).toContain(`max/${program?.version}`);
    // Not the aliases, which mean another model with another machine.
    expect(offered).not.toContain('qemu64');
    for (const name of offered) expect(name.length).toBeLessThanOrEqual(100);
  });

  test('one on request comes first, by its own name; one that it lacks is refused with what there is', async () => {
    expect((await models('kvm64'))[0]).toBe('kvm64-v1');
    await expect(models('SapphireRapids')).rejects.toThrow(
      /--cpu-model: "SapphireRapids" is not offered here.*qemu64-v1/,
    );
    await expect(models('host')).rejects.toThrow(/needs KVM/);
  });
});
