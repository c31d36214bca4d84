/** One instance under test in a cell of the matrix: what is done to it, and what is seen of it. */
import { randomUUID } from 'node:crypto';
import { sql } from 'drizzle-orm';
import { MooringApiError } from '../../client/mooring-client.ts';
import type { InstanceRecord } from '../../db/queries/read-instance.ts';
import { readSnapshot } from '../../db/queries/read-snapshot.ts';
import type { SagaType } from '../../model/saga-steps.ts';
import type { ExternalState } from '../../model/states.ts';
import { needsAction } from '../../model/update-decision.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import type { Fault } from '../../sled-agent/faults.ts';
import type { StackSled } from '../../stack/stack-sleds.ts';
import type { Execution, FaultPlan, Moment } from './fault-injector.ts';
import type { MatrixStack } from './matrix-stack.ts';

/** How an operation ended for its caller. */
export type Outcome =
  | { readonly kind: 'succeeded' }
  /** It failed, and is undone. */
  | { readonly kind: 'undone'; readonly status: number; readonly message: string };
/** `open`: the caller was sent on to the operation. */
export type CallOutcome = Outcome | { readonly kind: 'open'; readonly operationId: string };

export type OperationName = 'start' | 'migrate' | 'stop';

/** The executions that a plan is for. */
export interface Planned {
  /** No further execution is meant. */
  drop(): void;
  release(point: 'before' | 'after'): void;
  waitFor(moment: Moment, times?: number): Promise<void>;
  count(moment: Moment): number;
  execution(): Execution;
  /** Lets all go that wait, takes the plan away, and waits until they have ended. */
  end(point: 'before' | 'after'): Promise<void>;
}

/** For a step that is held: it is given up by time-out and tried again, and every attempt is meant. */
export const ATTEMPTS = 1_000;

const SETTLE_MS = 120_000;
const SETTLE_EVERY_MS = 200;
const LOOK_EVERY_MS = 50;
const RETRY_EVERY_MS = 100;
const AWAY = /the database or the Temporal server does not answer/;

let made = 0;

export class Subject {
  readonly id: string;
  readonly name: string;
  readonly stack: MatrixStack;
  /** What a scenario's beginning leaves to its end to let go. */
  kept: Planned | null = null;
  readonly #undo: (() => void)[] = [];
  readonly #lifts: (() => void)[] = [];

  private constructor(stack: MatrixStack, id: string, name: string) {
    this.stack = stack;
    this.id = id;
    this.name = name;
  }

  /** Creates a stopped instance that nobody restarts. */
  static async create(stack: MatrixStack): Promise<Subject> {
    made += 1;
    const name = `cell-${made}`;
    const { id } = await patiently(() =>
      stack.client.createInstance(
        {
          name,
          hostname: name,
          description: '',
          ncpus: 1,
          memory: 512 * 1024 ** 2,
          start: false,
          auto_restart_policy: 'never',
        },
        { project: 'default' },
      ),
    );
    return new Subject(stack, id, name);
  }

  /** Plans what happens to a step of this instance's. */
  plan(plan: Omit<FaultPlan, 'id' | 'subject'>): Planned {
    made += 1;
    const id = `plan-${made}`;
    const { stack } = this;
    stack.plan({ ...plan, id, subject: this.id });
    this.#undo.push(() => {
      stack.release(id, 'before');
      stack.release(id, 'after');
    });
    return {
      drop: () => stack.drop(id),
      release: (point) => stack.release(id, point),
      waitFor: (moment, times) => stack.injector.waitFor(id, moment, times),
      count: (moment) => stack.injector.count(id, moment),
      execution: () => stack.injector.execution(id),
      async end(point) {
        stack.drop(id);
        stack.release(id, point);
        await stack.injector.waitFor(id, 'ended', stack.injector.count(id, 'arrived'));
      },
    };
  }

  /** Plants a fault for this instance's VMMs on every sled. What is returned takes it away. */
  onSleds(fault: Fault): () => void {
    const named: Fault =
      'migration' in fault
        ? { migration: { ...fault.migration, instance_name: this.name } }
        : { ...fault, ...(fault.call === 'list' ? {} : { instance_name: this.name }) };
    const lifts = this.stack.sleds.map(({ agent }) => agent.faults.plant(named));
    const lift = () => {
      for (const one of lifts) one();
    };
    this.#lifts.push(lift);
    return lift;
  }

  /** Holds back what a sled has to report of a VMM. */
  silence(vmmId: string, { agent }: StackSled): void {
    agent.faults.holdReports(true, vmmId);
    this.#undo.push(() => agent.faults.holdReports(false, vmmId));
  }

  /** Lets everything go that still waits, and takes every fault away. */
  release(): void {
    this.liftFaults();
    for (const undo of this.#undo.splice(0)) undo();
  }

  /** Takes every fault of sleds away. */
  liftFaults(): void {
    for (const lift of this.#lifts.splice(0)) lift();
  }

  record(): Promise<InstanceRecord> {
    return patiently(() => this.stack.record(this.id));
  }

  async waitForState(externalState: readonly ExternalState[], what = ''): Promise<InstanceRecord> {
    let last = await this.record();
    await waitUntil(
      async () => {
        last = await this.record();
        return externalState.includes(last.externalState);
      },
      '',
      SETTLE_MS,
      LOOK_EVERY_MS,
    ).catch(() => {
      throw new Error(`${what}it never showed ${externalState.join(' or ')}; it shows ${last.externalState}`);
    });
    return last;
  }

  sled(id: string | null | undefined): StackSled {
    const found = this.stack.allSleds.find((sled) => sled.id === id);
    if (found === undefined) throw new Error(`sled ${id} is not of this stack`);
    return found;
  }

  /** Takes every word about sleds that answer, each of which must be refused. */
  async sayThatSledsAreOff(): Promise<void> {
    const { client, sleds } = this.stack;
    for (const sled of sleds)
      for (const word of [
        () => client.expungeSled(sled.id),
        () => client.declareSledDead(sled.id, { sled_powered_off: true }),
      ]) {
        const error = await word().then(
          () => null,
          (reason: unknown) => reason,
        );
        if (!(error instanceof MooringApiError) || error.status !== 409)
          throw error ?? new Error(`it was believed that sled ${sled.name} is off, which answers`);
      }
  }

  /** A sled that the instance is not on. */
  async elsewhere(): Promise<StackSled> {
    const { active, target } = await this.record();
    const found = this.stack.sleds.find(({ id }) => id !== active?.sledId && id !== target?.sledId);
    if (found === undefined) throw new Error('there is no other sled');
    return found;
  }

  /** Asks for an operation as a client does: what the API can't answer at the moment is asked for again. */
  async call(operation: OperationName, options: { to?: StackSled; waitSeconds?: number } = {}): Promise<CallOutcome> {
    const { client } = this.stack;
    const { to, ...rest } = options;
    // What is asked for again is the same call, whatever came of the first one.
    const call = { ...rest, idempotencyKey: randomUUID() };
    const destination = operation === 'migrate' ? (to ?? (await this.elsewhere())).id : '';
    for (;;) {
      try {
        if (operation === 'stop') {
          await client.stopInstance(this.id);
          return { kind: 'succeeded' };
        }
        const { operationId } =
          operation === 'start'
            ? await client.startInstance(this.id, call)
            : await client.migrateInstance(this.id, destination, call);
        if (operationId === null) return { kind: 'succeeded' };
        const { state } = await patiently(() => client.getOperation(operationId));
        return state === 'running' ? { kind: 'open', operationId } : this.follow(operationId);
      } catch (error) {
        if (!(error instanceof MooringApiError)) throw error;
        if (!AWAY.test(error.message)) return { kind: 'undone', status: error.status, message: error.message };
        await new Promise((resolve) => setTimeout(resolve, RETRY_EVERY_MS));
      }
    }
  }

  /** Follows an operation to its outcome. */
  async follow(operationId: string): Promise<Outcome> {
    const { client } = this.stack;
    let outcome: Outcome | null = null;
    await waitUntil(
      async () => {
        const operation = await patiently(() => client.getOperation(operationId));
        if (operation.state === 'running') return false;
        outcome =
          operation.outcome === 'succeeded'
            ? { kind: 'succeeded' }
            : { kind: 'undone', status: operation.error?.status ?? 0, message: operation.error?.message ?? '' };
        return true;
      },
      `operation ${operationId} never ended`,
      SETTLE_MS,
      LOOK_EVERY_MS,
    );
    if (outcome === null) throw new Error('unreachable');
    return outcome;
  }

  /** What the instance holds, without what a silent sled may still hold. */
  async holds(): Promise<string[]> {
    const { reservations, charge } = await patiently(() => this.stack.holds(this.id));
    return [...reservations.filter((kind) => kind !== 'tombstoned'), ...(charge ? ['charge'] : [])];
  }

  /** As if everything of this instance's that is under way had begun ten seconds earlier: the scan need not wait. */
  async age(): Promise<void> {
    await patiently(() =>
      this.stack.database.db.execute(
        sql`UPDATE operation SET time_started = time_started - interval '10 seconds' WHERE instance_id = ${this.id} AND time_ended IS NULL`,
      ),
    );
  }

  /** Its newest operation. */
  async newestOperation(): Promise<{ id: string; ended: boolean } | null> {
    const { rows } = await patiently(() =>
      this.stack.database.db.execute(
        sql`SELECT id, time_ended IS NOT NULL AS ended FROM operation WHERE instance_id = ${this.id} ORDER BY time_started DESC LIMIT 1`,
      ),
    );
    return rows[0] === undefined ? null : { id: String(rows[0].id), ended: rows[0].ended === true };
  }

  /** Waits until nothing is left to do for it and it shows one of the states. */
  async settles(states: readonly ExternalState[], options: { age?: boolean } = {}): Promise<InstanceRecord> {
    let last = '';
    await waitUntil(
      async () => {
        const record = await this.record();
        if (!states.includes(record.externalState) && !options.age) {
          last = `it shows ${record.externalState}`;
          return false;
        }
        if (options.age) await this.age();
        const snapshot = await patiently(() => readSnapshot(this.stack.database.db, this.id));
        const operation = await this.newestOperation();
        last = `it shows ${record.externalState}${snapshot !== null && needsAction(snapshot) ? ', an update is due' : ''}${snapshot?.unlinked.length ? `, ${snapshot.unlinked.length} VMMs are left over` : ''}${operation?.ended === false ? ', an operation is open' : ''}`;
        return (
          states.includes(record.externalState) &&
          snapshot !== null &&
          !needsAction(snapshot) &&
          snapshot.unlinked.length === 0 &&
          snapshot.migration === null &&
          operation?.ended !== false
        );
      },
      '',
      SETTLE_MS,
      SETTLE_EVERY_MS,
    ).catch((error: Error) => {
      throw new Error(`it never came to rest as ${states.join(' or ')}: ${last || error.message}`);
    });
    return this.record();
  }

  /** Ends a workflow of this instance's by hand, if it is there. */
  async terminate({ workflowId, runId }: Execution): Promise<void> {
    await this.stack.temporal.workflow.getHandle(workflowId, runId).terminate('the fault matrix');
  }

  /** Asks a workflow to cancel. It learns of that when its task is over. */
  async askToCancel({ workflowId, runId }: Execution): Promise<void> {
    await this.stack.temporal.workflow.getHandle(workflowId, runId).cancel();
  }

  /** Asks a workflow to cancel, and waits until it has received it. */
  async cancel(execution: Execution): Promise<void> {
    const { workflowId, runId } = execution;
    await this.askToCancel(execution);
    const handle = this.stack.temporal.workflow.getHandle(workflowId, runId);
    await waitUntil(
      async () => {
        const { events } = await handle.fetchHistory();
        const requestedAt = events?.findIndex((event) => event.workflowExecutionCancelRequestedEventAttributes) ?? -1;
        const since = requestedAt < 0 ? [] : (events?.slice(requestedAt) ?? []);
        // One that a fault of the matrix has ended meanwhile receives nothing more.
        return since.some(
          (event) => event.workflowTaskCompletedEventAttributes || event.workflowExecutionTerminatedEventAttributes,
        );
      },
      `${workflowId} never received its cancellation`,
      SETTLE_MS,
      50,
    );
  }

  /** Runs a workflow that is nobody's call, under an id that names this instance. */
  async run(workflowType: SagaType, ...args: unknown[]): Promise<Outcome> {
    made += 1;
    const { temporal } = this.stack;
    return temporal.workflow
      .execute(workflowType, { taskQueue: 'mooring', workflowId: `${workflowType}/${this.id}/${made}`, args })
      .then(
        () => ({ kind: 'succeeded' as const }),
        (error: Error) => ({ kind: 'undone' as const, status: 0, message: error.message }),
      );
  }
}

/** Asks a database or an API that may be away for a moment. */
export async function patiently<T>(read: () => Promise<T>): Promise<T> {
  for (const end = performance.now() + SETTLE_MS; ; ) {
    try {
      return await read();
    } catch (error) {
      if (performance.now() > end) throw error;
      await new Promise((resolve) => setTimeout(resolve, RETRY_EVERY_MS));
    }
  }
}
