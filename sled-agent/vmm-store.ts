/**
 * What the agent must know after a restart: one file for each VMM, one line for each dead id. Each change is on disk before
 * it is reported, so that a generation is never reported twice with two meanings. Without a directory it is kept in memory.
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
  /** The last command, so that the same once more is recognized. */
  lastCommand: z.enum(['nothing', 'running', 'migration_target']),
  refusedMigration: z.boolean(),
  /** As which sled the agent was spoken to; `null` where the control plane did not say it. */
  sledId: z.string().nullable().default(null),
});
export type VmmRecord = z.infer<typeof vmmRecord>;

/** The folder of the VMMs' files, and the file of the dead ids, in the agent's data. */
const RECORDS = 'vmm-records';
const DEAD_IDS = 'dead-vmm-ids';

export class VmmStore {
  readonly #directory: string | null;
  readonly #vmms = new Map<string, VmmRecord>();
  readonly #dead = new Set<string>();
  #deadFile: number | null = null;
  #lock: Server | null = null;

  private constructor(directory: string | null) {
    this.#directory = directory;
  }

  /**
   * Opens the store in `directory`, or an empty one in memory for `null`. Throws when another agent that lives has it, or
   * when a file of it can't be read: an agent that doesn't know what it reported must not report.
   */
  static async open(directory: string | null): Promise<VmmStore> {
    const store = new VmmStore(directory);
    if (directory === null) return store;
    mkdirSync(join(directory, RECORDS), { recursive: true });
    store.#lock = await lock(directory);
    for (const file of readdirSync(join(directory, RECORDS))) {
      if (!file.endsWith('.json')) continue;
      const path = join(directory, RECORDS, file);
      try {
        const record = vmmRecord.parse(JSON.parse(readFileSync(path, 'utf8')));
        store.#vmms.set(record.vmmId, record);
      } catch (error) {
        store.close();
        throw new Error(
          `the sled agent's record of a VMM can't be read: ${path}: ${error instanceof Error ? error.message : error}`,
        );
      }
    }
    const deadFile = join(directory, DEAD_IDS);
    store.#deadFile = openSync(deadFile, 'a+');
    const dead = readFileSync(deadFile, 'utf8');
    for (const id of dead.split('\n')) if (id !== '') store.#dead.add(id);
    // An agent that died in the middle of a line.
    if (dead !== '' && !dead.endsWith('\n')) writeSync(store.#deadFile, '\n');
    return store;
  }

  /** The record of a VMM; `undefined` for an unknown one. */
  get(vmmId: string): VmmRecord | undefined {
    return this.#vmms.get(vmmId);
  }

  /** The records of all VMMs. */
  all(): VmmRecord[] {
    return [...this.#vmms.values()];
  }

  /** Writes a VMM's record as it is now: it is on disk when this returns. Throws what the file system says. */
  save(record: VmmRecord): void {
    this.#vmms.set(record.vmmId, record);
    if (this.#directory === null || this.#lock === null) return;
    const path = join(this.#directory, RECORDS, `${record.vmmId}.json`);
    const file = openSync(`${path}.new`, 'w');
    try {
      writeFileSync(file, JSON.stringify(record));
      fsyncSync(file);
    } finally {
      closeSync(file);
    }
    renameSync(`${path}.new`, path);
    const folder = openSync(join(this.#directory, RECORDS), 'r');
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
      rmSync(join(this.#directory, RECORDS, `${vmmId}.json`), { force: true });
  }

  /**
   * Remembers for ever that an id is dead. There is no safe moment to forget it: the call that must not succeed any more may
   * be held by a network or a frozen worker for any time, and the protocol has no message by which a control plane declares
   * that no call of its is on its way. An id costs 37 bytes on disk, and only what is unwound or left over is unregistered:
   * a guest that ends by itself is not.
   */
  markDead(vmmId: string): void {
    if (this.#dead.has(vmmId)) return;
    this.#dead.add(vmmId);
    if (this.#deadFile === null) return;
    writeSync(this.#deadFile, `${vmmId}\n`);
    fsyncSync(this.#deadFile);
  }

  /** Whether an id was marked dead. */
  isDead(vmmId: string): boolean {
    return this.#dead.has(vmmId);
  }

  /** Lets another agent have the store. What is written after it stays in memory. */
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
