/**
 * The disk as the agent writes to it. Every write, and every file that is opened, made, renamed or removed for one, passes
 * through here, so that a disk that is full or fails, and a process without file descriptors, are one fault with one
 * meaning: it throws a {@link DiskError}, is reported as the sled's trouble, and ends nothing.
 *
 * Who calls changes its memory after the disk, and answers for nothing that is not there. What has happened whether it can
 * be written down or not (a guest has powered itself off) is given to {@link Disk.eventually}, which tries until it is on disk.
 */
import {
  closeSync,
  fstatSync,
  fsyncSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { processDescriptors } from '../platform/host/descriptor-reserve.ts';

/** What the agent asks of a file system that can fail for want of room, of file descriptors, or by itself. */
export interface FileSystem {
  open(path: string, flags: string, mode?: number): number;
  /** Returns how many bytes were written; `position` as an offset, or `null` for where the file is at. */
  write(file: number, bytes: Uint8Array, position: number | null): number;
  sync(file: number): void;
  truncate(file: number, bytes: number): void;
  close(file: number): void;
  rename(from: string, to: string): void;
  /** A file that isn't there is removed already. */
  remove(path: string): void;
  removeTree(path: string): Promise<void>;
  makeFolder(path: string, mode?: number): void;
  makeTemporaryFolder(prefix: string): string;
}

/** The file system of this machine. */
export const REAL_FILE_SYSTEM: FileSystem = {
  open: openSync,
  write: (file, bytes, position) => writeSync(file, bytes, 0, bytes.length, position),
  sync: fsyncSync,
  truncate: ftruncateSync,
  close: closeSync,
  rename: renameSync,
  remove: (path) => rmSync(path, { force: true }),
  removeTree: (path) => rm(path, { recursive: true, force: true }),
  makeFolder: (path, mode) => void mkdirSync(path, { recursive: true, ...(mode === undefined ? {} : { mode }) }),
  makeTemporaryFolder: mkdtempSync,
};

/** What a failure of the file system means, by its code. */
const MEANINGS: Readonly<Record<string, string>> = {
  ENOSPC: 'the disk is full',
  EDQUOT: 'the disk quota is used up',
  EROFS: 'the disk can only be read',
  EIO: 'the disk fails',
  EMFILE: 'the sled agent has no file descriptors left',
  ENFILE: 'the machine has no file descriptors left',
};
const FULL: ReadonlySet<string> = new Set(['ENOSPC', 'EDQUOT']);
const NO_DESCRIPTORS: ReadonlySet<string> = new Set(['EMFILE', 'ENFILE']);

/** Something could not be written. What was there before is there still. */
export class DiskError extends Error {
  override readonly name = 'DiskError';
  /** The file system's code, for example `ENOSPC`. */
  readonly code: string;

  constructor(code: string, operation: string, path: string, options?: ErrorOptions) {
    super(`${MEANINGS[code] ?? 'the disk can’t be used'} (${code}): can't ${operation} ${path}`, options);
    this.code = code;
  }

  /** Whether it may pass by itself, as a file that this user may not open does not. */
  get mayPass(): boolean {
    return MEANINGS[this.code] !== undefined;
  }

  /** What an HTTP answer says of it: the same call may succeed later. */
  get answer(): { readonly status: 503 | 507; readonly errorCode: string } {
    if (FULL.has(this.code)) return { status: 507, errorCode: 'DISK_FULL' };
    return { status: 503, errorCode: NO_DESCRIPTORS.has(this.code) ? 'NO_FILE_DESCRIPTORS' : 'DISK_FAILED' };
  }
}

/**
 * An error as a {@link DiskError}, where it says that the disk is full or fails, or that there are no file descriptors;
 * else `null`: a file that isn't there, or that this user may not open, is a mistake in how the agent was started.
 */
export function asDiskError(error: unknown): DiskError | null {
  if (error instanceof DiskError) return error;
  const { code, syscall, path } = error as NodeJS.ErrnoException;
  if (!(error instanceof Error) || code === undefined || MEANINGS[code] === undefined) return null;
  return new DiskError(code, syscall ?? 'use', path ?? 'a file', { cause: error });
}

export interface DiskOptions {
  readonly fileSystem?: FileSystem;
  /** Gets a sentence when the disk can't be written, when that changes, and when it can again. */
  readonly onTrouble?: (message: string) => void;
  /** How often what could not be written is tried again, in milliseconds; default 500. */
  readonly retryMs?: number;
  /** Where it is tried whether the disk can be written again; the agent's data. */
  readonly folder?: string | null;
}

interface Unfinished {
  readonly work: () => void | Promise<void>;
  running: boolean;
}

const RETRY_MS = 500;
/** What must fit before the disk counts as one that can be written, in bytes: some records. */
const PROBE_BYTES = 16 * 1024;
const PROBE_FILE = 'disk-probe';

/** The disk of one agent; see the head of this file. */
export class Disk {
  readonly #files: FileSystem;
  readonly #onTrouble: (message: string) => void;
  readonly #retryMs: number;
  readonly #folder: string | null;
  readonly #unfinished = new Map<string, Unfinished>();
  /** Folders that are being removed, by their paths. */
  readonly #removals = new Map<string, Promise<void>>();
  #trouble: DiskError | null = null;
  #timer: NodeJS.Timeout | undefined;
  #stopped = false;

  constructor({ fileSystem, onTrouble, retryMs, folder }: DiskOptions = {}) {
    this.#files = fileSystem ?? REAL_FILE_SYSTEM;
    this.#onTrouble = onTrouble ?? (() => {});
    this.#retryMs = retryMs ?? RETRY_MS;
    this.#folder = folder ?? null;
  }

  /** What is wrong with the disk, in sentences; empty when it was written the last time that something tried. */
  get trouble(): string[] {
    if (this.#trouble === null) return [];
    const waiting = this.#unfinished.size;
    return [
      `${this.#trouble.message}${waiting === 0 ? '' : `; ${waiting} change${waiting === 1 ? '' : 's'} will be written when it can be`}`,
    ];
  }

  /** Writes a file as a whole or not at all: on disk when this returns. Throws a {@link DiskError}; then the old one is there. */
  replaceFile(path: string, text: string, mode?: number): void {
    const temporary = `${path}.new`;
    try {
      if (mode !== undefined) this.#try('remove', temporary, () => this.#files.remove(temporary));
      this.#withFile(temporary, mode === undefined ? 'w' : 'wx', mode, (file) => {
        this.#writeAll(file, temporary, Buffer.from(text), null);
        this.#try('write', temporary, () => this.#files.sync(file));
      });
      this.#try('rename', temporary, () => this.#files.rename(temporary, path));
    } catch (error) {
      this.#leaveNothing(temporary);
      throw error;
    }
    this.#syncFolder(dirname(path));
  }

  /** Writes a new file that only its owner may read. Throws a {@link DiskError}, also when it is there already. */
  writePrivateFile(path: string, text: string): void {
    this.#withFile(path, 'wx', 0o600, (file) => this.#writeAll(file, path, Buffer.from(text), null));
  }

  /** Writes a file that nothing depends on being whole. Throws a {@link DiskError}. */
  writeFile(path: string, bytes: Uint8Array): void {
    this.#withFile(path, 'w', undefined, (file) => this.#writeAll(file, path, bytes, null));
  }

  /**
   * Opens a file to be appended to, made where it isn't there; with `sync` that it is there is on disk when this returns. It
   * is the caller's to close. Throws a {@link DiskError}.
   */
  openToAppend(path: string, sync: boolean): number {
    const file = this.#try('open', path, () => this.#files.open(path, 'a'));
    try {
      if (sync) this.#syncFolder(dirname(path));
      return file;
    } catch (error) {
      this.close(file);
      throw error;
    }
  }

  /**
   * Appends to an open file; with `sync` it is on disk when this returns. Throws a {@link DiskError}, having taken back what
   * it had written of it, where that can be done.
   */
  append(file: number, path: string, text: string, sync: boolean): void {
    const before = fstatSync(file).size;
    try {
      this.#writeAll(file, path, Buffer.from(text), null);
      if (sync) this.#try('write', path, () => this.#files.sync(file));
    } catch (error) {
      try {
        this.#files.truncate(file, before);
      } catch {
        // What is left of a line is none: the next one begins with a line break.
      }
      throw error;
    }
  }

  /**
   * Opens a file of `bytes` bytes that is written in place, so that it needs no room later: made and filled with blanks
   * where it isn't there, held open so that it needs no file descriptor. Throws a {@link DiskError}.
   */
  openFixed(path: string, bytes: number): number {
    const found = this.#openExisting(path);
    const file = found ?? this.#try('open', path, () => this.#files.open(path, 'wx+'));
    try {
      if (fstatSync(file).size < bytes) {
        this.#writeAll(file, path, Buffer.alloc(bytes, ' '), 0);
        this.#try('write', path, () => this.#files.sync(file));
        this.#syncFolder(dirname(path));
      }
      return file;
    } catch (error) {
      this.close(file);
      // Half of it would need room later.
      if (found === null) this.#leaveNothing(path);
      throw error;
    }
  }

  /** Writes at a place of an open file: on disk when this returns. Throws a {@link DiskError}. */
  writeAt(file: number, path: string, text: string, position: number): void {
    this.#writeAll(file, path, Buffer.from(text), position);
    this.#try('write', path, () => this.#files.sync(file));
  }

  /** Closes a file. Never throws. */
  close(file: number): void {
    try {
      this.#files.close(file);
    } catch {
      // There is nothing to be done about it.
    }
  }

  /** Renames a file. Throws a {@link DiskError}; a file that isn't there is no error. */
  rename(from: string, to: string): void {
    this.#try('rename', from, () => {
      try {
        this.#files.rename(from, to);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
      }
    });
  }

  /** Removes a file. Throws a {@link DiskError}. */
  remove(path: string): void {
    this.#try('remove', path, () => this.#files.remove(path));
  }

  /** Removes a folder with all that is in it, after whoever is removing it already. Throws a {@link DiskError}. */
  async removeTree(path: string): Promise<void> {
    const before = this.#removals.get(path);
    const removal = (async () => {
      await before?.catch(() => {});
      await this.#files.removeTree(path);
    })();
    this.#removals.set(path, removal);
    try {
      await removal;
    } catch (error) {
      throw this.#noted(error, 'remove', path);
    } finally {
      if (this.#removals.get(path) === removal) this.#removals.delete(path);
    }
  }

  /**
   * Removes what is left at a path before something is made there anew: no removal of before will come to it later. Throws a
   * {@link DiskError}; then it is removed when that can be done.
   */
  async clear(path: string): Promise<void> {
    this.forget(removalOf(path));
    try {
      await this.removeTree(path);
    } catch (error) {
      this.eventually(removalOf(path), () => this.removeTree(path));
      throw error;
    }
  }

  /** Removes a folder, now or when that can be done: nothing waits for it. Never throws. */
  async removeTreeSoon(path: string): Promise<void> {
    await this.removeTree(path).catch(() => this.eventually(removalOf(path), () => this.removeTree(path)));
  }

  /** Makes a folder, and those that it is in, where it isn't there. Throws a {@link DiskError}. */
  makeFolder(path: string, mode?: number): void {
    this.#try('make', path, () => this.#files.makeFolder(path, mode));
  }

  /** Makes a folder of its own whose path begins with `prefix`. Throws a {@link DiskError}. */
  makeTemporaryFolder(prefix: string): string {
    return this.#try('make', prefix, () => this.#files.makeTemporaryFolder(prefix));
  }

  /** Throws a {@link DiskError} when some kilobytes could not be written to a folder now. */
  probe(folder: string): void {
    const path = join(folder, PROBE_FILE);
    try {
      this.#withFile(path, 'w', undefined, (file) => {
        this.#writeAll(file, path, Buffer.alloc(PROBE_BYTES), null);
        this.#try('write', path, () => this.#files.sync(file));
      });
    } finally {
      this.#leaveNothing(path);
    }
  }

  /**
   * Does what must be done sooner or later, now, and again until it doesn't throw. Returns whether it is done. Work under a
   * key takes the place of what waits under the same one; `work` must be harmless when repeated. Never throws.
   */
  eventually(key: string, work: () => void | Promise<void>): boolean {
    const entry: Unfinished = { work, running: false };
    this.#unfinished.set(key, entry);
    this.#attempt(key, entry);
    return this.#unfinished.get(key) !== entry;
  }

  /** Gives up what waits under this key. */
  forget(key: string): void {
    this.#unfinished.delete(key);
  }

  /** Tries no more. What waits is lost. */
  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#timer);
  }

  #attempt(key: string, entry: Unfinished): void {
    const done = () => {
      if (this.#unfinished.get(key) === entry) this.#unfinished.delete(key);
    };
    const failed = (error: unknown) => {
      entry.running = false;
      this.#note(asDiskError(error) ?? new DiskError('EUNKNOWN', `finish (${messageOf(error)})`, key));
    };
    entry.running = true;
    try {
      const working = entry.work();
      if (working instanceof Promise) working.then(done, failed);
      else done();
    } catch (error) {
      failed(error);
    }
  }

  /** Tries again what waits; the trouble is over when nothing waits and the disk takes a file. */
  #tryAgain(): void {
    for (const [key, entry] of [...this.#unfinished]) if (!entry.running) this.#attempt(key, entry);
    try {
      if (this.#unfinished.size === 0 && this.#trouble !== null) {
        if (this.#folder !== null) this.probe(this.#folder);
        this.#trouble = null;
        this.#onTrouble('the disk can be written again');
      }
    } catch {
      // It is known already.
    }
    this.#schedule();
  }

  #schedule(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#stopped || (this.#trouble === null && this.#unfinished.size === 0)) return;
    this.#timer = setTimeout(() => this.#tryAgain(), this.#retryMs);
    this.#timer.unref();
  }

  #note(error: DiskError): void {
    const isNews = this.#trouble?.code !== error.code;
    this.#trouble = error;
    if (isNews && !this.#stopped) this.#onTrouble(error.message);
    if (this.#timer === undefined) this.#schedule();
  }

  #noted(error: unknown, operation: string, path: string): DiskError {
    const { code = 'EUNKNOWN' } = error as NodeJS.ErrnoException;
    const noted = error instanceof DiskError ? error : new DiskError(code, operation, path, { cause: error });
    this.#note(noted);
    return noted;
  }

  #try<Result>(operation: string, path: string, work: () => Result): Result {
    try {
      try {
        return work();
      } catch (error) {
        // What has happened must be written down: that is what a reserve of descriptors is for.
        if (!NO_DESCRIPTORS.has((error as NodeJS.ErrnoException).code ?? '') || !processDescriptors.look()) throw error;
        return work();
      }
    } catch (error) {
      throw this.#noted(error, operation, path);
    }
  }

  #withFile(path: string, flags: string, mode: number | undefined, work: (file: number) => void): void {
    const file = this.#try('open', path, () => this.#files.open(path, flags, mode));
    try {
      work(file);
    } finally {
      this.close(file);
    }
  }

  #openExisting(path: string): number | null {
    try {
      return this.#files.open(path, 'r+');
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
      throw this.#noted(error, 'open', path);
    }
  }

  #writeAll(file: number, path: string, bytes: Uint8Array, position: number | null): void {
    for (let done = 0; done < bytes.length; ) {
      const at = position === null ? null : position + done;
      const written = this.#try('write', path, () => this.#files.write(file, bytes.subarray(done), at));
      // A file system that takes nothing without a word would be asked for ever.
      if (written === 0) throw this.#noted(Object.assign(new Error('nothing'), { code: 'ENOSPC' }), 'write', path);
      done += written;
    }
  }

  #syncFolder(path: string): void {
    this.#withFile(path, 'r', undefined, (file) => this.#try('write', path, () => this.#files.sync(file)));
  }

  /** Removes what was begun, so that it takes no room. Never throws. */
  #leaveNothing(path: string): void {
    try {
      this.#files.remove(path);
    } catch {
      // It is written over when the disk can be written.
    }
  }
}

/**
 * A file that only grows by lines, held open once it has been written to, so that it needs no file descriptor later. A line
 * that was not written whole does not spoil the next one.
 */
export class GrowingFile {
  readonly #disk: Disk;
  readonly #path: string;
  #file: number | null = null;
  #torn: boolean;

  /** `torn`: the file may end in the middle of a line. */
  constructor(disk: Disk, path: string, torn = false) {
    this.#disk = disk;
    this.#path = path;
    this.#torn = torn;
  }

  /** Appends a line; with `sync` it is on disk when this returns. Throws a {@link DiskError}. */
  append(line: string, sync: boolean): void {
    this.#file ??= this.#disk.openToAppend(this.#path, sync);
    const wasTorn = this.#torn;
    const before = fstatSync(this.#file).size;
    try {
      this.#disk.append(this.#file, this.#path, `${wasTorn ? '\n' : ''}${line}\n`, sync);
      this.#torn = false;
    } catch (error) {
      this.#torn = wasTorn || fstatSync(this.#file).size !== before;
      throw error;
    }
  }

  /** Closes it. */
  close(): void {
    if (this.#file !== null) this.#disk.close(this.#file);
    this.#file = null;
  }
}

/** Under what the removal of a folder waits. */
function removalOf(path: string): string {
  return `the removal of ${path}`;
}

/** A piece of a file; an empty one where it has just gone. Throws what the file system says. */
export function readPiece(path: string, position: number, length: number): Buffer {
  let file: number;
  try {
    file = openSync(path, 'r');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return Buffer.alloc(0);
    throw error;
  }
  try {
    const buffer = Buffer.alloc(length);
    return buffer.subarray(0, readSync(file, buffer, 0, length, position));
  } finally {
    closeSync(file);
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
