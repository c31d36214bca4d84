import { describe, expect, test } from 'vitest';
import { makeGuestImage } from '../../sled-agent/qemu/guest-image.ts';
import { directory, executable, packNewc } from '../../sled-agent/qemu/newc.ts';
import { prepareQemu } from '../../sled-agent/qemu/prepare-qemu.ts';
import { findProcessesBelow, findQemu, worksIn } from '../../sled-agent/qemu/qemu-program.ts';
import { temporaryFolder } from '../support/qemu.ts';

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
