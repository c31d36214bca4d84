/** A file system that fails as a test says: this machine's, with faults in what the agent asks of it. */
import { type FileSystem, REAL_FILE_SYSTEM } from '../../sled-agent/disk.ts';

/** What a fault can befall; reading is no part of it. */
export const OPERATIONS = [
  'open',
  'write',
  'sync',
  'rename',
  'remove',
  'removeTree',
  'makeFolder',
  'makeTemporaryFolder',
] as const;
export type Operation = (typeof OPERATIONS)[number];

/** The codes of faults, each with what it befalls: a full disk still removes, and without file descriptors an open file is written. */
export const FAULT_CODES = {
  ENOSPC: ['open', 'write', 'sync', 'rename', 'makeFolder', 'makeTemporaryFolder'],
  EIO: OPERATIONS,
  EMFILE: ['open', 'removeTree'],
} as const satisfies Record<string, readonly Operation[]>;
export type FaultCode = keyof typeof FAULT_CODES;

/** What was asked for: the operation, and of which file. */
export interface Asked {
  readonly operation: Operation;
  readonly path: string;
}

export class FaultyFileSystem implements FileSystem {
  /** All that was asked for so far. */
  readonly asked: Asked[] = [];
  readonly #paths = new Map<number, string>();
  #code: FaultCode | null = null;
  /** How many more operations go well, and how many fail then. */
  #before = 0;
  #failures = 0;
  /** Only files whose path matches are befallen. */
  #of: RegExp = /./;

  /** Lets the operation after the next `before` ones fail, and those that follow it, `failures` in all. */
  fail(code: FaultCode, { before = 0, failures = Number.POSITIVE_INFINITY, of = /./ } = {}): void {
    this.#code = code;
    this.#before = before;
    this.#failures = failures;
    this.#of = of;
  }

  /** Nothing fails any more. */
  heal(): void {
    this.#code = null;
  }

  /** Whether the fault is still to come, or lasts. */
  get ill(): boolean {
    return this.#code !== null;
  }

  open(path: string, flags: string, mode?: number): number {
    this.#ask('open', path);
    const file = REAL_FILE_SYSTEM.open(path, flags, mode);
    this.#paths.set(file, path);
    return file;
  }
  write(file: number, bytes: Uint8Array, position: number | null): number {
    const path = this.#paths.get(file) ?? '';
    try {
      this.#ask('write', path);
    } catch (error) {
      // A disk fills up in the middle of what is written.
      if (bytes.length > 1) REAL_FILE_SYSTEM.write(file, bytes.subarray(0, Math.min(100, bytes.length >> 1)), position);
      throw error;
    }
    return REAL_FILE_SYSTEM.write(file, bytes, position);
  }
  sync(file: number): void {
    this.#ask('sync', this.#paths.get(file) ?? '');
  }
  truncate(file: number, bytes: number): void {
    REAL_FILE_SYSTEM.truncate(file, bytes);
  }
  close(file: number): void {
    REAL_FILE_SYSTEM.close(file);
  }
  rename(from: string, to: string): void {
    this.#ask('rename', to);
    REAL_FILE_SYSTEM.rename(from, to);
  }
  remove(path: string): void {
    this.#ask('remove', path);
    REAL_FILE_SYSTEM.remove(path);
  }
  async removeTree(path: string): Promise<void> {
    this.#ask('removeTree', path);
    await REAL_FILE_SYSTEM.removeTree(path);
  }
  makeFolder(path: string, mode?: number): void {
    this.#ask('makeFolder', path);
    REAL_FILE_SYSTEM.makeFolder(path, mode);
  }
  makeTemporaryFolder(prefix: string): string {
    this.#ask('makeTemporaryFolder', prefix);
    return REAL_FILE_SYSTEM.makeTemporaryFolder(prefix);
  }

  #ask(operation: Operation, path: string): void {
    this.asked.push({ operation, path });
    const code = this.#code;
    if (code === null || !(FAULT_CODES[code] as readonly Operation[]).includes(operation) || !this.#of.test(path))
      return;
    if (this.#before > 0) {
      this.#before -= 1;
      return;
    }
    this.#failures -= 1;
    if (this.#failures <= 0) this.#code = null;
    throw Object.assign(new Error(`${code}: planted in ${operation} of ${path}`), { code, syscall: operation, path });
  }
}
