/**
 * The disk of a sled, which can be full: a small one of its own where this process may mount one, else a folder in which the
 * agent's writes fail.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { closeSync, openSync, writeFileSync, writeSync } from 'node:fs';
import { cp, mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);
/** Room for the records of more VMMs than a sled takes; a file takes 4 KiB at least. */
const SIZE = '6m';
/** Loaded into an agent whose disk can't be a real one. */
const FILLABLE_DISK = new URL('../support/fillable-disk.mjs', import.meta.url).href;
const CHUNKS = [64 * 1024, 4 * 1024] as const;

export class SledDisk {
  /** Where the agent keeps its data. */
  readonly folder: string;
  readonly #isMounted: boolean;
  readonly #guard: ChildProcess | null;
  #isFull = false;

  private constructor(folder: string, isMounted: boolean) {
    this.folder = folder;
    this.#isMounted = isMounted;
    this.#guard = isMounted ? guardMount(folder) : null;
  }

  /** Makes a disk at `folder`: a tmpfs of a few megabytes where that is allowed, else a plain folder. */
  static async make(folder: string): Promise<SledDisk> {
    await mkdir(folder, { recursive: true });
    const isMounted = await run('mount', ['-t', 'tmpfs', '-o', `size=${SIZE}`, 'mooring-soak', folder]).then(
      () => true,
      () => false,
    );
    return new SledDisk(folder, isMounted);
  }

  /** What an agent that uses it must load (`--import`), and its environment. */
  get agentNeeds(): { readonly modules: readonly string[]; readonly env: Readonly<Record<string, string>> } {
    if (this.#isMounted) return { modules: [], env: {} };
    return {
      modules: [FILLABLE_DISK],
      env: { MOORING_TEST_DISK: this.folder, MOORING_TEST_DISK_FULL: this.#markPath },
    };
  }

  /** Takes all the room that is left. Throws what the file system says, but for having no room. */
  fill(): void {
    if (this.#isFull) return;
    this.#isFull = true;
    if (!this.#isMounted) {
      writeFileSync(this.#markPath, '');
      return;
    }
    const file = openSync(this.#fillPath, 'w');
    try {
      for (const size of CHUNKS) {
        const chunk = Buffer.alloc(size);
        try {
          while (writeSync(file, chunk) > 0);
        } catch (error) {
          if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
        }
      }
    } finally {
      closeSync(file);
    }
  }

  /** Gives the room back. */
  async free(): Promise<void> {
    this.#isFull = false;
    await rm(this.#isMounted ? this.#fillPath : this.#markPath, { force: true });
  }

  /** Takes the disk away; what was on it stays in a folder of the same name, to be read afterwards. */
  async close(): Promise<void> {
    if (!this.#isMounted) return;
    await this.free();
    const copy = `${this.folder}-read`;
    await cp(this.folder, copy, { recursive: true, filter: (path) => !path.endsWith('.lock') }).catch(() => {});
    await run('umount', ['-l', this.folder]);
    this.#guard?.stdin?.end('off\n');
  }

  get #markPath(): string {
    return `${this.folder}-is-full`;
  }

  get #fillPath(): string {
    return join(this.folder, 'all-that-was-left');
  }
}

/** Takes a disk away when this process is gone, even if it was killed: as `guardChild` ends a child. */
function guardMount(folder: string): ChildProcess {
  const guard = spawn('/bin/sh', ['-c', 'read -r line; [ "$line" = off ] || umount -l "$0"', folder], {
    stdio: ['pipe', 'ignore', 'ignore'],
    detached: true,
  });
  guard.unref();
  guard.stdin?.on('error', () => {});
  (guard.stdin as unknown as { unref?: () => void }).unref?.();
  return guard;
}
