/** Who asks a sled agent as the control plane does, and looks at its disk after each answer. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect } from 'vitest';
import { freePort } from '../../platform/host/child-process.ts';
import { AgentRefusal, type SledAgent } from '../../sled-agent/agent.ts';
import { asDiskError } from '../../sled-agent/disk.ts';
import type { VmmRecord } from '../../sled-agent/vmm-store.ts';
import type { SledVmmState, VmmCommand } from '../../wire/sled-protocol.ts';
import { INSTANCE, loopbackAddress } from './sled.ts';
import { eventually } from './wait.ts';

const ip = loopbackAddress();

/** What an agent's disk says: what a restarted one would know. */
export class OnDisk {
  readonly #dataDir: string;

  constructor(dataDir: string) {
    this.#dataDir = dataDir;
  }

  record(vmmId: string): VmmRecord | null {
    const path = join(this.#dataDir, 'vmm-records', `${vmmId}.json`);
    return existsSync(path) ? (JSON.parse(readFileSync(path, 'utf8')) as VmmRecord) : null;
  }
  isDead(vmmId: string): boolean {
    const path = join(this.#dataDir, 'dead-vmm-ids');
    return existsSync(path) && readFileSync(path, 'utf8').split('\n').includes(vmmId);
  }
}

/** The control plane's part: it asks until it gets an answer that is one, and looks at the disk when it has. */
export class CarefulCaller {
  readonly #agent: SledAgent;
  readonly #disk: OnDisk | null;
  readonly #memoryBytes: number;

  /** `disk`: where to look; `null` for an agent that keeps nothing. */
  constructor(agent: SledAgent, disk: OnDisk | null, memoryBytes = 1) {
    this.#agent = agent;
    this.#disk = disk;
    this.#memoryBytes = memoryBytes;
  }

  async register(vmmId: string, migrationId?: string): Promise<string> {
    const address = `${ip}:${await freePort(ip)}`;
    const state = await this.#answer(() =>
      this.#agent.register(vmmId, {
        instance_id: INSTANCE,
        ...(migrationId === undefined ? {} : { migration_id: migrationId }),
        vmm_runtime: {
          state: migrationId === undefined ? 'starting' : 'migrating',
          gen: 2,
          time_updated: new Date().toISOString(),
        },
        vmm_spec: { name: 'web', ncpus: 1, memory_bytes: this.#memoryBytes },
        vmm_addr: address,
      }),
    );
    this.#isOnDisk(vmmId, state);
    return address;
  }

  async command(vmmId: string, command: VmmCommand): Promise<void> {
    const state = await this.#answer(() => this.#agent.command(vmmId, command));
    this.#isOnDisk(vmmId, state);
    if (this.#disk !== null && (command.type === 'running' || command.type === 'migration_target'))
      expect(this.#disk.record(vmmId)?.lastCommand).toBe(command.type);
  }

  async unregister(vmmId: string): Promise<void> {
    const state = await this.#answer(() => this.#agent.unregister(vmmId));
    if (this.#disk === null) return;
    expect(this.#disk.isDead(vmmId), `the acknowledged dead id ${vmmId} is on disk`).toBe(true);
    if (state !== null) this.#isOnDisk(vmmId, state);
  }

  /** A VMM that runs, with its address. */
  async running(vmmId: string): Promise<string> {
    const address = await this.register(vmmId);
    await this.command(vmmId, { type: 'running' });
    await this.is(vmmId, 'running');
    return address;
  }

  state(vmmId: string): SledVmmState | null {
    try {
      return this.#agent.read(vmmId);
    } catch (error) {
      if (error instanceof AgentRefusal && error.status === 404) return null;
      throw error;
    }
  }

  is(vmmId: string, state: string): Promise<void> {
    return eventually(() => this.state(vmmId)?.vmm_state.state === state, `VMM ${vmmId} never was ${state}`);
  }
  isForgotten(vmmId: string): Promise<void> {
    return eventually(() => this.state(vmmId) === null, `VMM ${vmmId} was never forgotten`);
  }

  #isOnDisk(vmmId: string, { vmm_state }: SledVmmState): void {
    if (this.#disk === null) return;
    const record = this.#disk.record(vmmId);
    // It may have gone on since, or be over and forgotten.
    if (record === null) expect(this.#disk.isDead(vmmId)).toBe(true);
    else expect(record.runtime.gen, `the acknowledged generation of ${vmmId}`).toBeGreaterThanOrEqual(vmm_state.gen);
  }

  async #answer<Answer>(call: () => Promise<Answer>): Promise<Answer> {
    for (;;) {
      try {
        return await call();
      } catch (error) {
        const again = asDiskError(error) !== null || (error instanceof AgentRefusal && error.status >= 500);
        if (!again) throw error;
        await new Promise((resolve) => setTimeout(resolve, 2));
      }
    }
  }
}
