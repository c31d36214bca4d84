/**
 * What the agent must know after a restart: one file for each VMM, one line for each dead id. Each change is on disk before
 * it is in memory, so that nobody hears of one that a restart would undo, and a generation is never reported twice with two
 * meanings. Without a directory it is kept in memory.
 */
import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { connect, createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { z } from 'zod';
import { migrationRuntime, vmmRuntime } from '../wire/sled-protocol.ts';
import { asDiskError, type Disk, GrowingFile } from './disk.ts';

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
  /** The last command, so that the same once more is recognized. */
  lastCommand: z.enum(['nothing', 'running', 'migration_target']),
  refusedMigration: z.boolean(),
  /** As which sled the agent was spoken to; `null` where the control plane did not say it. */
  sledId: z.string().nullable().default(null),
});
/** A change makes a new one: what the store has is what the disk has. */
export type VmmRecord = Readonly<z.infer<typeof vmmRecord>>;

/** The folder of the VMMs' files, and the file of the dead ids, in the agent's data. */
const RECORDS = 'vmm-records';
const DEAD_IDS = 'dead-vmm-ids';

/** Whether an agent has worked with this directory before: then guests of its may run here. */
export function holdsRecords(directory: string): boolean {
  return existsSync(join(directory, RECORDS));
}

/** The VMMs of which an agent that works with this directory has a record. Throws what the file system says. */
export function recordedVmmIds(directory: string): string[] {
  if (!holdsRecords(directory)) return [];
  return readdirSync(join(directory, RECORDS))
    .filter((file) => file.endsWith('.json'))
    .map((file) => file.slice(0, -'.json'.length));
}

export class VmmStore {
  readonly #directory: string | null;
  readonly #disk: Disk;
  readonly #vmms = new Map<string, VmmRecord>();
  readonly #dead = new Set<string>();
  #deadFile: GrowingFile | null = null;
  #lock: Server | null = null;

  private constructor(directory: string | null, disk: Disk) {
    this.#directory = directory;
    this.#disk = disk;
  }

  /**
   * Opens the store in `directory`, or an empty one in memory for `null`. Throws when another agent that lives has it, or
   * when a file of it can't be read: an agent that doesn't know what it reported must not report. Throws a `DiskError` where
   * that may pass; a store that is there already needs nothing to be written.
   */
  static async open(directory: string | null, disk: Disk): Promise<VmmStore> {
    const store = new VmmStore(directory, disk);
    if (directory === null) return store;
    if (!holdsRecords(directory)) disk.makeFolder(join(directory, RECORDS));
    store.#lock = await lock(directory, disk);
    try {
      store.#read(directory);
    } catch (error) {
      store.close();
      throw asDiskError(error) ?? error;
    }
    return store;
  }

  #read(directory: string): void {
    for (const file of readdirSync(join(directory, RECORDS))) {
      if (!file.endsWith('.json')) continue;
      const path = join(directory, RECORDS, file);
      try {
        const record = vmmRecord.parse(JSON.parse(readFileSync(path, 'utf8')));
        this.#vmms.set(record.vmmId, record);
      } catch (error) {
        throw (
          asDiskError(error) ??
          new Error(
            `the sled agent's record of a VMM can't be read: ${path}: ${error instanceof Error ? error.message : error}`,
          )
        );
      }
    }
    const deadFile = join(directory, DEAD_IDS);
    const dead = readIfThere(deadFile);
    for (const id of dead.split('\n')) if (id !== '') this.#dead.add(id);
    // An agent that died in the middle of a line.
    this.#deadFile = new GrowingFile(this.#disk, deadFile, dead !== '' && !dead.endsWith('\n'));
  }

  /** The record of a VMM; `undefined` for an unknown one. */
  get(vmmId: string): VmmRecord | undefined {
    return this.#vmms.get(vmmId);
  }

  /** The records of all VMMs. */
  all(): VmmRecord[] {
    return [...this.#vmms.values()];
  }

  /** Writes a VMM's record: it is on disk when this returns. Throws a `DiskError`: then it is what it was. */
  save(record: VmmRecord): void {
    const path = this.#pathOf(record.vmmId);
    if (path !== null) {
      this.#disk.replaceFile(path, JSON.stringify(record));
      this.#disk.forget(abandoned(record.vmmId));
    }
    this.#vmms.set(record.vmmId, record);
  }

  /** Forgets a VMM that is over. Throws a `DiskError`: then it is known as before. */
  remove(vmmId: string): void {
    const path = this.#pathOf(vmmId);
    if (path !== null) this.#disk.remove(path);
    this.#vmms.delete(vmmId);
  }

  /**
   * Forgets at once a VMM that never came to be, and of which nobody has heard; what may be on disk of it is removed when
   * that can be done. Never throws.
   */
  abandon(vmmId: string): void {
    this.#vmms.delete(vmmId);
    const path = this.#pathOf(vmmId);
    if (path !== null) this.#disk.eventually(abandoned(vmmId), () => this.#disk.remove(path));
  }

  /**
   * Remembers for ever that an id is dead. There is no safe moment to forget it: the call that must not succeed any more may
   * be held by a network or a frozen worker for any time, and the protocol has no message by which a control plane declares
   * that no call of its is on its way. An id costs 37 bytes on disk, and only what is unwound or left over is unregistered:
   * a guest that ends by itself is not. It is on disk when this returns. Throws a `DiskError`: then the id is not dead.
   */
  markDead(vmmId: string): void {
    if (this.#dead.has(vmmId)) return;
    this.#deadFile?.append(vmmId, true);
    this.#dead.add(vmmId);
  }

  /** Whether an id was marked dead. */
  isDead(vmmId: string): boolean {
    return this.#dead.has(vmmId);
  }

  /** Lets another agent have the store. What is written after it stays in memory. */
  close(): void {
    this.#lock?.close();
    this.#lock = null;
    this.#deadFile?.close();
    this.#deadFile = null;
  }

  #pathOf(vmmId: string): string | null {
    return this.#directory === null || this.#lock === null ? null : join(this.#directory, RECORDS, `${vmmId}.json`);
  }
}

/** Under what the removal of a record waits. */
function abandoned(vmmId: string): string {
  return `the record of VMM ${vmmId}`;
}

/** The text of a file; empty where there is none. A file that can't be read is not one that isn't there. */
function readIfThere(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return '';
    throw error;
  }
}

/** The longest path that a socket can have, in bytes. Source: unix(7), less room for other systems' shorter ones. */
const MAX_SOCKET_PATH_BYTES = 100;

/**
 * Holds a directory as long as this process lives: a socket that answers can't be left behind by a dead one. Where the
 * directory takes none, since its disk is full, the socket is in the machine's folder for temporary files.
 */
async function lock(directory: string, disk: Disk): Promise<Server> {
  const inside = join(resolve(directory), 'agent.lock');
  const outside = join(tmpdir(), `mooring-${createHash('sha256').update(inside).digest('hex').slice(0, 24)}.lock`);
  const paths = Buffer.byteLength(inside) <= MAX_SOCKET_PATH_BYTES ? [inside, outside] : [outside];
  for (const path of paths)
    if (await answers(path))
      throw new Error(`another sled agent works with ${directory}: give each agent a directory of its own`);
  let trouble: unknown;
  for (const path of paths) {
    try {
      disk.remove(path);
      return await listenAt(path);
    } catch (error) {
      trouble = error;
    }
  }
  throw asDiskError(trouble) ?? trouble;
}

/** Whether somebody listens at a socket. Throws when that can't be known. */
function answers(path: string): Promise<boolean> {
  return new Promise((settle, reject) => {
    const socket = connect(path);
    socket.once('connect', () => {
      socket.destroy();
      settle(true);
    });
    socket.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT' || error.code === 'ECONNREFUSED') settle(false);
      else reject(asDiskError(error) ?? error);
    });
  });
}

async function listenAt(path: string): Promise<Server> {
  const server = createServer((socket) => socket.destroy());
  server.unref();
  await new Promise<void>((settle, reject) => {
    server.once('error', reject);
    server.listen(path, settle);
  });
  // A connection that can't be taken for want of a file descriptor is no end of the agent.
  server.on('error', () => {});
  return server;
}
