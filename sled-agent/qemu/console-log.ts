/**
 * What a guest wrote to its serial console, in files that are named for the offset of their first byte. Offsets count
 * from the guest's first byte and go on counting where the guest arrives after a migration. QEMU writes the last file; it is
 * moved on to a new one when that has grown, so that a talkative guest doesn't fill the disk.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { type Disk, readPiece } from '../disk.ts';
import { CONSOLE_CHARDEV } from './qemu-program.ts';
import type { QmpClient } from './qmp-client.ts';

/** How much of a guest's console is sent along with the guest, in bytes. */
const HANDED_OVER_BYTES = 16 * 1024;
const NEXT_FILE = 'console-next.log';

interface ConsoleFile {
  readonly path: string;
  readonly start: number;
  readonly size: number;
}

/** What is needed of QEMU here. */
type Commands = Pick<QmpClient, 'execute'>;

/** The end of a console, as it is handed over with its guest. */
export interface ConsoleTail {
  /** The offset after the last byte. */
  readonly endOffset: number;
  readonly base64: string;
}

export class ConsoleLog {
  readonly #folder: string;
  readonly #disk: Disk;
  readonly #rotateBytes: number;
  #changing = Promise.resolve();

  /** `rotateBytes`: how large a file may grow; two files are kept. */
  constructor(disk: Disk, folder: string, rotateBytes = 512 * 1024) {
    this.#disk = disk;
    this.#folder = folder;
    this.#rotateBytes = rotateBytes;
  }

  /** Reads from an offset on, or from the oldest byte that is kept; a negative offset counts from the end. */
  async read(fromOffset: number, maxBytes: number): Promise<{ data: Buffer; endOffset: number }> {
    const files = await this.#files();
    const end = files.reduce((last, file) => Math.max(last, file.start + file.size), 0);
    let at = Math.max(files[0]?.start ?? 0, fromOffset < 0 ? end + fromOffset : Math.min(fromOffset, end));
    const from = at;
    const parts: Buffer[] = [];
    for (const file of files) {
      const left = maxBytes - (at - from);
      if (left <= 0 || at < file.start || at >= file.start + file.size) continue;
      const piece = readPiece(file.path, at - file.start, Math.min(left, file.start + file.size - at));
      parts.push(piece);
      at += piece.length;
    }
    return { data: Buffer.concat(parts), endOffset: at };
  }

  /** The last bytes, for a test that looks often; at most `maxBytes`, of the newest file. */
  readEndSync(maxBytes: number): Buffer {
    try {
      const newest = readdirSync(this.#folder)
        .map((name) => Number(/^console-(\d+)\.log$/.exec(name)?.[1] ?? -1))
        .reduce((last, start) => Math.max(last, start), -1);
      return newest < 0 ? Buffer.alloc(0) : readFileSync(join(this.#folder, nameFor(newest))).subarray(-maxBytes);
    } catch (error) {
      // The VM has just been ended, or its console moved on to another file.
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return Buffer.alloc(0);
      throw error;
    }
  }

  /** The end of the console, to be handed over. The guest must stand still. */
  async tail(): Promise<ConsoleTail> {
    const { data, endOffset } = await this.read(-HANDED_OVER_BYTES, HANDED_OVER_BYTES);
    return { endOffset, base64: data.toString('base64') };
  }

  /** Takes over where a guest's console was before: QEMU, whose guest has not run yet, writes on from there. */
  async continueFrom(tail: ConsoleTail, qmp: Commands): Promise<void> {
    const data = Buffer.from(tail.base64, 'base64');
    const before = await this.#files();
    this.#disk.writeFile(join(this.#folder, nameFor(tail.endOffset - data.length)), data);
    await this.#switchTo(nameFor(tail.endOffset), qmp);
    for (const { path, start } of before) if (start !== tail.endOffset - data.length) this.#disk.remove(path);
  }

  /** Moves QEMU on to a new file when the last one has grown; drops all but two. */
  async rotate(qmp: Commands): Promise<void> {
    const last = (await this.#files()).at(-1);
    if (last === undefined || last.size < this.#rotateBytes) return;
    await this.#switchTo(NEXT_FILE, qmp);
    await this.mend();
    const files = await this.#files();
    for (const { path } of files.slice(0, -2)) this.#disk.remove(path);
  }

  /** Names the file that QEMU was moved on to, where that was not done yet: only then is the offset of its first byte known. */
  async mend(): Promise<void> {
    const last = (await this.#files()).at(-1);
    this.#disk.rename(
      join(this.#folder, NEXT_FILE),
      join(this.#folder, nameFor(last === undefined ? 0 : last.start + last.size)),
    );
  }

  async #switchTo(file: string, qmp: Commands): Promise<void> {
    const change = this.#changing.then(() =>
      qmp.execute('chardev-change', {
        id: CONSOLE_CHARDEV,
        backend: { type: 'file', data: { out: file, append: true } },
      }),
    );
    this.#changing = change.then(
      () => {},
      () => {},
    );
    await change;
  }

  async #files(): Promise<ConsoleFile[]> {
    const files: ConsoleFile[] = [];
    for (const name of await readdir(this.#folder).catch(ifGone<string[]>([]))) {
      const start = /^console-(\d+)\.log$/.exec(name)?.[1];
      if (start === undefined) continue;
      const path = join(this.#folder, name);
      const found = await stat(path).catch(ifGone(null));
      if (found !== null) files.push({ path, start: Number(start), size: found.size });
    }
    return files.sort((one, other) => one.start - other.start);
  }
}

function nameFor(offset: number): string {
  return `console-${offset}.log`;
}

/** What stands for a file that has just gone; any other error is thrown: a file that can't be read is not one that isn't there. */
function ifGone<Value>(value: Value): (error: NodeJS.ErrnoException) => Value {
  return (error) => {
    if (error.code !== 'ENOENT') throw error;
    return value;
  };
}
