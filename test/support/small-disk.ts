/** Real disks that can be filled to their last byte, where this user may mount them. */
import { execFileSync } from 'node:child_process';
import { existsSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { temporaryFolder } from './qemu.ts';

/** Whether a disk can be mounted here; where it can't, one clear line says what is skipped. */
export async function canMount(what: string): Promise<boolean> {
  const folder = await temporaryFolder();
  const ends: (() => unknown)[] = [];
  try {
    mountSmallDisk(folder.path, '64k', ends);
    return true;
  } catch {
    console.warn(`SKIPPED: ${what}: only root may mount a small disk`);
    return false;
  } finally {
    for (const end of ends) end();
    await folder.close();
  }
}

/** Mounts a disk of `size` (as `mount` takes it) at a folder; what unmounts it is added to `ends`. Throws when it can't. */
export function mountSmallDisk(folder: string, size: string, ends: (() => unknown)[]): string {
  execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'tmpfs', folder], { stdio: 'pipe' });
  ends.push(() => execFileSync('umount', ['-l', folder]));
  return folder;
}

/** Fills a disk to its last byte. */
export function fill(folder: string): void {
  try {
    for (let piece = 0; ; piece++) writeFileSync(join(folder, `fill-${piece}`), Buffer.alloc(4096));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
  }
}

/** Takes away what {@link fill} wrote. */
export function empty(folder: string): void {
  for (let piece = 0; existsSync(join(folder, `fill-${piece}`)); piece++) rmSync(join(folder, `fill-${piece}`));
}
