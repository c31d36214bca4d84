/** What a VM must know of itself after a restart of the agent, beside the agent's own store: a file in the VM's folder. */
import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { ACCELERATORS, type MachineShape } from './qemu-program.ts';

const journalEntries = z.object({
  shape: z.object({
    machine: z.string(),
    accelerator: z.enum(ACCELERATORS),
    memoryMib: z.number(),
    ncpus: z.number(),
    cpuModel: z.string().nullable().default(null),
  }),
  /** The source of the guest that is arriving: its VMM, and the agent to ask about it. */
  source: z.object({ vmmId: z.string(), agent: z.string() }).nullable(),
  stopOnArrival: z.boolean(),
  /** When the guest was asked to power off, in milliseconds since the epoch. */
  stopAskedAt: z.number().nullable(),
});
type JournalEntries = Readonly<z.infer<typeof journalEntries>>;

const FILE = 'vm.json';

export class VmJournal {
  readonly #path: string;
  #entries: JournalEntries;

  private constructor(folder: string, entries: JournalEntries) {
    this.#path = join(folder, FILE);
    this.#entries = entries;
  }

  /** The journal of a new VM, not written yet. */
  static begin(folder: string, shape: MachineShape): VmJournal {
    return new VmJournal(folder, { shape, source: null, stopOnArrival: false, stopAskedAt: null });
  }

  /** Reads the journal that an earlier agent left. Throws when there is none, or it can't be read. */
  static read(folder: string): VmJournal {
    return new VmJournal(folder, journalEntries.parse(JSON.parse(readFileSync(join(folder, FILE), 'utf8'))));
  }

  get entries(): JournalEntries {
    return this.#entries;
  }

  /** Changes the entries; they are on disk when this returns. Throws what the file system says. */
  write(change: Partial<JournalEntries> = {}): void {
    this.#entries = { ...this.#entries, ...change };
    writeFileSync(`${this.#path}.new`, JSON.stringify(this.#entries), { flush: true });
    renameSync(`${this.#path}.new`, this.#path);
  }
}
