/**
 * The agent's book: one file for each VMM, one line for each dead id. What it says is on disk before anybody hears it,
 * so that a generation, once told, is never told again with another meaning. Without a directory it is kept in memory.
 */
import { createHash } from 'node:crypto';
import {
  closeSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { connect, createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { z } from 'zod';
import { migrationRuntime, vmmRuntime } from '../wire/sled-protocol.ts';

const vmmRecord = z.object({
  vmmId: z.string(),
  instanceId: z.string(),
  name: z.string(),
  ncpus: z.number(),
  memoryBytes: z.number(),
  /** `ip:port` of the VMM. */
  address: z.string(),
  migrationId: z.string().nullable(),
  runtime: vmmRuntime,
  migrationIn: migrationRuntime.nullable(),
  migrationOut: migrationRuntime.nullable(),
  /** What it was told last, so that a second telling is known. */
  lastCommand: z.enum(['nothing', 'running', 'migration_target']),
  refusedMigration: z.boolean(),
});
export type VmmRecord = z.infer<typeof vmmRecord>;

export class SledBook {
  readonly #directory: string | null;
  readonly #vmms = new Map<string, VmmRecord>();
  readonly #dead = new Set<string>();
  #deadFile: number | null = null;
  #lock: Server | null = null;

  private constructor(directory: string | null) {
    this.#directory = directory;
  }

  /**
   * Opens the book in `directory`, or an empty one in memory for `null`. Throws when another agent that lives has it, or
   * when a file of it can't be read: an agent that doesn't know what it said must not speak.
   */
  static async open(directory: string | null): Promise<SledBook> {
    const book = new SledBook(directory);
    if (directory === null) return book;
    mkdirSync(join(directory, 'book'), { recursive: true });
    book.#lock = await lock(directory);
    for (const file of readdirSync(join(directory, 'book'))) {
      if (!file.endsWith('.json')) continue;
      const path = join(directory, 'book', file);
      try {
        const record = vmmRecord.parse(JSON.parse(readFileSync(path, 'utf8')));
        book.#vmms.set(record.vmmId, record);
      } catch (error) {
        book.close();
        throw new Error(`the sled's book can't be read: ${path}: ${error instanceof Error ? error.message : error}`);
      }
    }
    const deadFile = join(directory, 'dead-vmm-ids');
    book.#deadFile = openSync(deadFile, 'a+');
    const dead = readFileSync(deadFile, 'utf8');
    for (const id of dead.split('\n')) if (id !== '') book.#dead.add(id);
    // An agent that died in the middle of a line.
    if (dead !== '' && !dead.endsWith('\n')) writeSync(book.#deadFile, '\n');
    return book;
  }

  get(vmmId: string): VmmRecord | undefined {
    return this.#vmms.get(vmmId);
  }

  all(): VmmRecord[] {
    return [...this.#vmms.values()];
  }

  /** Writes a VMM's record as it is now. */
  save(record: VmmRecord): void {
    this.#vmms.set(record.vmmId, record);
    if (this.#directory === null || this.#lock === null) return;
    const path = join(this.#directory, 'book', `${record.vmmId}.json`);
    const file = openSync(`${path}.new`, 'w');
    try {
      writeFileSync(file, JSON.stringify(record));
      fsyncSync(file);
    } finally {
      closeSync(file);
    }
    renameSync(`${path}.new`, path);
    const folder = openSync(join(this.#directory, 'book'), 'r');
    try {
      fsyncSync(folder);
    } finally {
      closeSync(folder);
    }
  }

  /** Forgets a VMM. */
  remove(vmmId: string): void {
    this.#vmms.delete(vmmId);
    if (this.#directory !== null && this.#lock !== null)
      rmSync(join(this.#directory, 'book', `${vmmId}.json`), { force: true });
  }

  /**
   * Remembers for ever that an id is dead. There is no safe moment to forget it: the call that must not succeed any more may be
   * held by a network or a frozen worker for as long as that pleases, and the protocol has no word by which a control plane
   * says that nothing of its is on its way. An id costs 37 bytes on disk, and only what is unwound or left over is
   * unregistered: a guest that ends by itself is not.
   */
  bury(vmmId: string): void {
    if (this.#dead.has(vmmId)) return;
    this.#dead.add(vmmId);
    if (this.#deadFile === null) return;
    writeSync(this.#deadFile, `${vmmId}\n`);
    fsyncSync(this.#deadFile);
  }

  isDead(vmmId: string): boolean {
    return this.#dead.has(vmmId);
  }

  /** Lets another agent have the book. What is written after it stays in memory. */
  close(): void {
    this.#lock?.close();
    this.#lock = null;
    if (this.#deadFile !== null) closeSync(this.#deadFile);
    this.#deadFile = null;
  }
}

/** The longest path that a socket can have, in bytes. Source: unix(7), less room for other systems' shorter ones. */
const MAX_SOCKET_PATH_BYTES = 100;

/** Holds a directory as long as this process lives: a socket that answers can't be left behind by a dead one. */
async function lock(directory: string): Promise<Server> {
  const inside = join(resolve(directory), 'agent.lock');
  const path =
    Buffer.byteLength(inside) <= MAX_SOCKET_PATH_BYTES
      ? inside
      : join(tmpdir(), `mooring-${createHash('sha256').update(inside).digest('hex').slice(0, 24)}.lock`);
  const taken = await new Promise<boolean>((settle) => {
    const socket = connect(path);
    socket.once('connect', () => {
      socket.destroy();
      settle(true);
    });
    socket.once('error', () => settle(false));
  });
  if (taken) throw new Error(`another sled agent works with ${directory}: give each agent a directory of its own`);
  rmSync(path, { force: true });
  const server = createServer((socket) => socket.destroy());
  server.unref();
  await new Promise<void>((settle, reject) => {
    server.once('error', reject);
    server.listen(path, settle);
  });
  return server;
}
