/** What a VM must know of itself after a restart of the agent, beside the agent's own store: a file in the VM's folder. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import type { Disk } from '../disk.ts';
import { ACCELERATORS, type MachineShape } from './qemu-program.ts';

const journalEntries = z.object({
  shape: z.object({
    machine: z.string(),
    accelerator: z.enum(ACCELERATORS),
    memoryMib: z.number(),
    ncpus: z.number(),
    cpuModel: z.string().nullable().default(null),
  }),
  /** The source of the guest that is arriving: its VMM, and the agent to ask about it, with its id where it said that. */
  source: z.object({ vmmId: z.string(), agent: z.string(), agentId: z.string().nullable().default(null) }).nullable(),
  stopOnArrival: z.boolean(),
  /**
   * When the guest was asked to power off, in milliseconds of the monotonic clock: that can't be set, and a process does not
   * outlive the boot that it counts from.
   */
  stopAskedAtMs: z.number().nullable(),
});
type JournalEntries = Readonly<z.infer<typeof journalEntries>>;

const FILE = 'vm.json';

export class VmJournal {
  readonly #path: string;
  readonly #disk: Disk;
  #entries: JournalEntries;

  private constructor(disk: Disk, folder: string, entries: JournalEntries) {
    this.#disk = disk;
    this.#path = join(folder, FILE);
    this.#entries = entries;
  }

  /** The journal of a new VM, not written yet. */
  static begin(disk: Disk, folder: string, shape: MachineShape): VmJournal {
    return new VmJournal(disk, folder, { shape, source: null, stopOnArrival: false, stopAskedAtMs: null });
  }

  /** Reads the journal that an earlier agent left. Throws when there is none, or it can't be read. */
  static read(disk: Disk, folder: string): VmJournal {
    return new VmJournal(disk, folder, journalEntries.parse(JSON.parse(readFileSync(join(folder, FILE), 'utf8'))));
  }

  get entries(): JournalEntries {
    return this.#entries;
  }

  /** Changes the entries; they are on disk when this returns. Throws a `DiskError`: then they are what they were. */
  write(change: Partial<JournalEntries> = {}): void {
    const entries = { ...this.#entries, ...change };
    this.#disk.replaceFile(this.#path, JSON.stringify(entries));
    this.#entries = entries;
  }
}
