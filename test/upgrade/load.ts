/**
 * Careful callers, each with an instance of its own, who do all that one can do to an instance, one thing after the other: no
 * call of theirs may fail, and no operation, whatever versions run.
 */
import type { MooringClient } from '../../client/mooring-client.ts';
import type { InstanceView } from '../../wire/operator-api/instances.ts';
import { eventually } from '../support/wait.ts';
import type { Build } from './builds.ts';
import type { MixedSystem } from './mixed-system.ts';

const PROJECT = 'default';

export class Load {
  /** Calls and operations that failed, and should not have. */
  readonly failures: string[] = [];
  calls = 0;
  readonly #system: MixedSystem;
  readonly #builds: readonly Build[];
  readonly #rounds: number[];
  readonly #callers: Promise<void>[];
  #over = false;

  /** Begins. `builds`: whose client libraries they use, in turn. */
  constructor(system: MixedSystem, builds: readonly Build[], callers: number) {
    this.#system = system;
    this.#builds = builds;
    this.#rounds = Array.from({ length: callers }, () => 0);
    this.#callers = this.#rounds.map((_, index) => this.#run(index));
  }

  /** Waits until each caller has come round: all of it was done since now, by one caller or another. */
  async untilRound(): Promise<void> {
    const before = [...this.#rounds];
    await eventually(
      () => this.failures.length > 0 || this.#rounds.every((rounds, index) => rounds > (before[index] ?? 0)),
      'the callers did not come round',
    );
  }

  /** Ends when each caller has ended its round. */
  async stop(): Promise<void> {
    this.#over = true;
    await Promise.all(this.#callers);
  }

  async #run(index: number): Promise<void> {
    for (let round = 0; !this.#over; round++) {
      try {
        await this.#live(`vm-${index}-${round}`, round % 2 === 0);
      } catch (error) {
        this.failures.push(`caller ${index}, round ${round}: ${error instanceof Error ? error.message : error}`);
        return;
      }
      this.#rounds[index] = round + 1;
    }
  }

  /** One instance's life. */
  async #live(name: string, startsAtOnce: boolean): Promise<void> {
    const values = { name, hostname: name, description: '', ncpus: 1, memory: 2 ** 30, start: startsAtOnce };
    const made = await this.#call('create', (client) => client.createInstance(values, { project: PROJECT }));
    const { id } = made;
    if (made.start_error != null) throw new Error(`the first start of ${name} failed: ${made.start_error.message}`);
    if (startsAtOnce) await this.#finishes('the first start', made.start_operation_id ?? null);
    else await this.#operate('start', (client) => client.startInstance(id));
    await this.#shows(id, 'running');
    await this.#patiently('reboot', (client) => client.rebootInstance(id));
    await this.#shows(id, 'running');
    await this.#migrate(id);
    await this.#call('stop', (client) => client.stopInstance(id));
    await this.#shows(id, 'stopped');
    await this.#operate('start', (client) => client.startInstance(id));
    await this.#shows(id, 'running');
    await this.#call('stop', (client) => client.stopInstance(id));
    await this.#shows(id, 'stopped');
    await this.#call('delete', (client) => client.deleteInstance(id));
  }

  /** Moves it, unless a drain moves guests just now. */
  async #migrate(id: string): Promise<void> {
    const { sled_id } = await this.#call('get', (client) => client.getInstance(id));
    const others = this.#system.sleds.filter((sled) => sled.id !== sled_id);
    const destination = others[this.calls % others.length];
    if (this.#system.draining || destination === undefined) return;
    const { drains } = this.#system;
    try {
      await this.#operate('migrate', (client) => client.migrateInstance(id, destination.id));
    } catch (error) {
      // A drain that begins in between takes the destination out of service, or moves the guest itself.
      if (this.#system.drains === drains) throw error;
    }
    const view = async () => this.#call('get', (client) => client.getInstance(id));
    await eventually(async () => {
      const { run_state, migration_target_sled_id } = await view();
      return run_state === 'running' && migration_target_sled_id === null;
    }, `${id} never ended its migration`);
  }

  /** What a guest that a drain moves can't do just then, it can do a moment later. */
  async #patiently<Result>(what: string, work: (client: MooringClient) => Promise<Result>): Promise<void> {
    await eventually(async () => {
      const { drains } = this.#system;
      try {
        await this.#call(what, work);
        return true;
      } catch (error) {
        const { status } = error as { status?: unknown };
        if (status === 409 && (this.#system.draining || this.#system.drains !== drains)) return false;
        throw error;
      }
    }, `${what} was refused for ever`);
  }

  async #operate(
    what: string,
    begin: (client: MooringClient) => Promise<{ operationId: string | null }>,
  ): Promise<void> {
    const { operationId } = await this.#call(what, begin);
    await this.#finishes(what, operationId);
  }

  async #finishes(what: string, operationId: string | null): Promise<void> {
    if (operationId === null) throw new Error(`${what}: the answer names no operation`);
    const done = await this.#call('operation', (client) => client.waitForOperation(operationId));
    if (done.outcome !== 'succeeded') throw new Error(`${what} came to ${JSON.stringify(done)}`);
  }

  async #shows(id: string, state: InstanceView['run_state']): Promise<void> {
    let last = '';
    await eventually(async () => {
      last = (await this.#call('get', (client) => client.getInstance(id))).run_state;
      if (last === 'failed') throw new Error(`${id} is failed`);
      return last === state;
    }, `${id} never showed ${state}`).catch((error: Error) => {
      throw new Error(`${error.message}; it showed ${last}`);
    });
  }

  async #call<Result>(what: string, work: (client: MooringClient) => Promise<Result>): Promise<Result> {
    this.calls += 1;
    const by = this.#builds[this.calls % this.#builds.length];
    if (by === undefined) throw new Error('nobody calls');
    return this.#system.call(by.Client, async (client, api) => {
      try {
        return await work(client);
      } catch (error) {
        if (error instanceof Error) error.message = `${what} (client ${by.id}, API ${api.build.id}): ${error.message}`;
        throw error;
      }
    });
  }
}
