/** Sled agents for tests, against a control plane that only listens. */
import { randomInt, randomUUID } from 'node:crypto';
import { type FastifyInstance, fastify } from 'fastify';
import { findOverlaps, readGuestRuns } from '../../doctor/witness.ts';
import { freePort, waitUntil } from '../../platform/host/child-process.ts';
import type { SledAgentHandle } from '../../sled-agent/server.ts';
import { type SledVmmState, sledVmmState, type VmmStateAnswer } from '../../wire/sled-protocol.ts';

export interface ReceivedReport {
  readonly vmmId: string;
  readonly report: SledVmmState;
}

/** A control plane that notes the reports that it gets. */
export class ListeningControlPlane {
  readonly reports: ReceivedReport[] = [];
  /** How many of the next reports it fails to take. */
  failing = 0;
  readonly #app: FastifyInstance = fastify();
  url = '';

  async listen(): Promise<void> {
    this.#app.put('/vmms/:id', async (request, reply) => {
      if (this.failing > 0) {
        this.failing -= 1;
        return reply.status(503).send({});
      }
      this.reports.push({ vmmId: (request.params as { id: string }).id, report: sledVmmState.parse(request.body) });
      return reply.status(204).header('x-request-id', request.id).send();
    });
    this.url = await this.#app.listen({ host: '127.0.0.1', port: 0 });
  }

  close(): Promise<void> {
    return this.#app.close();
  }

  /** The states that were reported of a VMM, in order. A state that comes with a migration's comes again. */
  states(vmmId: string): string[] {
    const states = this.reports.filter((one) => one.vmmId === vmmId).map((one) => one.report.vmm_state.state);
    return states.filter((state, index) => state !== states[index - 1]);
  }

  last(vmmId: string): SledVmmState | undefined {
    return this.reports.filter((one) => one.vmmId === vmmId).at(-1)?.report;
  }

  async untilReported(vmmId: string, state: string): Promise<void> {
    await waitUntil(() => this.states(vmmId).includes(state), `VMM ${vmmId} was never ${state}`, 60_000, 10).catch(
      (error) => {
        throw new Error(`${error.message}; it was ${this.states(vmmId).join(', ')}`);
      },
    );
  }

  /** Waits for a state of a side, of this migration where one is named. */
  async untilSideReported(
    vmmId: string,
    side: 'migration_in' | 'migration_out',
    state: string,
    migrationId?: string,
  ): Promise<void> {
    await waitUntil(
      () =>
        this.reports.some(
          ({ vmmId: id, report: { [side]: reported } }) =>
            id === vmmId &&
            reported?.state === state &&
            (migrationId === undefined || reported.migration_id === migrationId),
        ),
      `${side} of VMM ${vmmId} was never ${state}`,
      60_000,
      10,
    ).catch((error) => {
      throw new Error(`${error.message}; last: ${JSON.stringify(this.last(vmmId))}`);
    });
  }
}

export interface Answer {
  readonly status: number;
  readonly body: Partial<VmmStateAnswer> & {
    error_code?: string;
    message?: string;
    updated_runtime?: SledVmmState | null;
    vmms?: (SledVmmState & { vmm_id: string; instance_id: string })[];
  };
}

/** An address of its own for each caller, so that ports can't collide. */
export const loopbackAddress = () => `127.${randomInt(1, 255)}.${randomInt(0, 255)}.${randomInt(1, 255)}`;

export interface RegisterChanges {
  readonly instance_id?: string;
  readonly ncpus?: number;
  readonly memory_bytes?: number;
  readonly migration_id?: string;
  readonly sled_id?: string;
  /** In place of the one that is made of the others. */
  readonly vmm_spec?: Readonly<Record<string, unknown>>;
  readonly vmm_addr?: string;
}

/** Speaks the protocol to one agent, as the control plane does. */
export class SledCaller {
  readonly #ip = loopbackAddress();
  readonly #memoryBytes: number;
  readonly agent: { readonly url: string };

  constructor(agent: { readonly url: string }, memoryBytes: number) {
    this.agent = agent;
    this.#memoryBytes = memoryBytes;
  }

  async call(method: string, path: string, body?: unknown): Promise<Answer> {
    const response = await fetch(this.agent.url + path, {
      method,
      ...(body === undefined ? {} : { headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) }),
    });
    return { status: response.status, body: (await response.json()) as Answer['body'] };
  }

  /** Registers a VMM at an address that was free; the answer has it. */
  async register(vmmId: string, changes: RegisterChanges = {}): Promise<Answer & { address: string }> {
    const { ncpus = 1, memory_bytes = this.#memoryBytes, ...rest } = changes;
    const address = `${this.#ip}:${await freePort(this.#ip)}`;
    const answer = await this.call('PUT', `/vmms/${vmmId}`, {
      instance_id: INSTANCE,
      vmm_runtime: {
        state: changes.migration_id === undefined ? 'starting' : 'migrating',
        gen: 2,
        time_updated: new Date().toISOString(),
      },
      vmm_spec: { name: 'web', ncpus, memory_bytes },
      vmm_addr: address,
      ...rest,
    });
    return { ...answer, address };
  }

  command(vmmId: string, type: string, value?: unknown): Promise<Answer> {
    return this.call('PUT', `/vmms/${vmmId}/state`, { state: { type, ...(value === undefined ? {} : { value }) } });
  }

  migrateIn(vmmId: string, sourceAddress: string): Promise<Answer> {
    return this.command(vmmId, 'migration_target', { src_vmm_addr: sourceAddress });
  }

  read(vmmId: string): Promise<Answer> {
    return this.call('GET', `/vmms/${vmmId}/state`);
  }

  unregister(vmmId: string): Promise<Answer> {
    return this.call('DELETE', `/vmms/${vmmId}`);
  }

  /** Registers and runs a VMM, not waiting for its guest to boot. */
  async running(vmmId: string = randomUUID()): Promise<{ vmmId: string; address: string }> {
    const { address, status, body } = await this.register(vmmId);
    if (status !== 200) throw new Error(`register was answered ${status}: ${body.message}`);
    await this.command(vmmId, 'running');
    await waitUntil(async () => (await this.read(vmmId)).body.vmm_state?.state === 'running', `VMM ${vmmId} never ran`);
    return { vmmId, address };
  }
}

export const INSTANCE = '00000000-0000-4000-8000-0000000000aa';

/** How many of these VMMs' guests execute now; throws when it was ever more than one. */
export function executing(agents: readonly SledAgentHandle[], vmmIds: readonly string[]): number {
  const log = agents.flatMap((agent) => agent.faults.guestLog()).filter((entry) => vmmIds.includes(entry.vmm_id));
  const runs = readGuestRuns(log, 'time of day');
  if (findOverlaps(runs).length > 0) throw new Error(`two executed at a time: ${JSON.stringify(log)}`);
  return runs.filter((run) => run.ceasedMs === Infinity).length;
}
