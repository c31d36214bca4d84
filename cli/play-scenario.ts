/**
 * Plays scenarios: each step by the public API or a fault planted on a sled agent; what must follow is read from the
 * database.
 */
import { setTimeout as pause } from 'node:timers/promises';
import { MooringApiError, MooringClient } from '../client/mooring-client.ts';
import { type Database, openDatabase } from '../db/connect.ts';
import { type InstanceRecord, readInstance } from '../db/queries/read-instance.ts';
import { workflowIds } from '../model/workflow-names.ts';
import type { RunningStack } from '../stack/stack.ts';
import type { StackSled } from '../stack/stack-sleds.ts';
import type { Action, Expectation, Scenario, ScenarioStep } from './scenario.ts';

/** How a step of a scenario ended. */
export interface StepResult {
  readonly title: string;
  /** How its call ended: `succeeded`, or the HTTP status and message of its error. */
  readonly call: string;
  /** The external state of its instance at the end; empty where it has none. */
  readonly externalState: string;
  /** What did not hold; empty when the step ended as the scenario expects. */
  readonly problems: readonly string[];
  readonly ms: number;
  /** How far its guest had counted before the step and how far afterwards, where the scenario asks for it. */
  readonly counted: { readonly before: number; readonly after: number } | null;
  /** Where the Temporal Web UI shows the saga. */
  readonly link: string | null;
}

/** How large the instances of a scenario are: virtual CPUs, and memory in bytes. */
export interface InstanceSize {
  readonly ncpus: number;
  readonly memory: number;
}

const PROJECT = 'default';
/** How long an instance may take to reach what a step expects of it, in milliseconds. */
const SETTLE_MS = 20_000;
/** How long a real guest may take to boot on a busy machine, in milliseconds. */
const BOOT_MS = 60_000;
const LOOK_EVERY_MS = 25;

/**
 * Plays a scenario on a stack and calls `onStep` with each step's result as it ends, and waits for it. Throws what is not an answer of the API,
 * and for a scenario that names an instance which it has not created.
 */
export async function playScenario(
  stack: RunningStack,
  scenario: Scenario,
  onStep: (result: StepResult) => void | Promise<void>,
  size: InstanceSize = { ncpus: 2, memory: 1024 ** 3 },
): Promise<StepResult[]> {
  const client = new MooringClient({ url: stack.apiUrl, token: stack.adminToken.secret });
  const database = openDatabase(stack.databaseUrl, { maxConnections: 2, applicationName: 'mooring-scenario' });
  const player = new ScenarioPlayer(stack, client, database.db, size);
  const results: StepResult[] = [];
  try {
    await client.createProject({ name: PROJECT, description: 'the scenario’s' });
    for (const step of scenario.steps) {
      const result = await player.play(step);
      results.push(result);
      await onStep(result);
    }
    return results;
  } finally {
    await database.close();
  }
}

class ScenarioPlayer {
  readonly #stack: RunningStack;
  readonly #client: MooringClient;
  readonly #db: Database;
  readonly #size: InstanceSize;
  /** The ids of the instances that the scenario created, by name. */
  readonly #ids = new Map<string, string>();

  constructor(stack: RunningStack, client: MooringClient, db: Database, size: InstanceSize) {
    this.#stack = stack;
    this.#client = client;
    this.#db = db;
    this.#size = size;
  }

  async play({ title, do: action, expect = {} }: ScenarioStep): Promise<StepResult> {
    const begun = performance.now();
    const subject = subjectOf(action);
    const before = subject === null ? null : await this.#read(subject);
    const countBefore = this.#countOf(before);
    const call = await this.#call(action, before);
    const remains = subject !== null && !('delete' in action);
    const after = remains ? await this.#read(subject) : null;
    const problems = callProblems(expect, call);
    if (subject !== null) {
      problems.push(...returnProblems(expect, after), ...(await this.#settle(expect, before, after, subject)));
    }
    const ms = performance.now() - begun;
    let counted: StepResult['counted'] = null;
    if (subject !== null && expect.guest !== undefined) {
      counted = { before: countBefore, after: await this.#waitForCount(subject, countBefore) };
      if (counted.after <= countBefore) problems.push(`its guest does not count on from ${countBefore}`);
    }
    const externalState = remains ? (await this.#read(subject)).externalState : '';
    return { title, call, externalState, problems, ms, counted, link: this.#linkOf(action, subject) };
  }

  /** Does what a step does. Returns how the call ended. */
  async #call(action: Action, before: InstanceRecord | null): Promise<string> {
    try {
      await this.#act(action, before);
      return 'succeeded';
    } catch (error) {
      if (!(error instanceof MooringApiError)) throw error;
      return `${error.status}: ${error.message}`;
    } finally {
      // A fault of a migration takes effect only after the call.
      if ('with_fault' in action && !('migration' in (action.with_fault ?? {})))
        for (const { agent } of this.#stack.sleds) agent.faults.clear();
    }
  }

  async #act(action: Action, before: InstanceRecord | null): Promise<void> {
    const inProject = { project: PROJECT };
    if ('create' in action) {
      for (const name of action.create) await this.#create(name);
    } else if ('start' in action) {
      if (action.with_fault !== undefined)
        for (const { agent } of this.#stack.sleds) agent.faults.plant(action.with_fault);
      await this.#client.startInstance(action.start, inProject);
    } else if ('migrate' in action) {
      const destination = this.#stack.sleds.find(({ id }) => id !== before?.active?.sledId);
      if (destination === undefined) throw new Error('a migration needs two sleds');
      if (action.with_fault !== undefined) destination.agent.faults.plant(action.with_fault);
      await this.#client.migrateInstance(action.migrate, destination.id, inProject);
    } else if ('stop' in action) await this.#client.stopInstance(action.stop, inProject);
    else if ('delete' in action) await this.#client.deleteInstance(action.delete, inProject);
    else if ('updates' in action) await this.#stack.worker.setUpdates(action.updates);
    else {
      const sled = this.#sledOf(before);
      if (sled === undefined || before?.active == null) throw new Error('the instance runs on no sled of this stack');
      if ('halt' in action) sled.agent.faults.halt(before.active.id);
      else sled.agent.faults.lose(before.active.id);
    }
  }

  async #create(name: string): Promise<void> {
    const made = await this.#client.createInstance(
      {
        name,
        description: 'made by the scenario',
        hostname: name,
        ...this.#size,
        start: false,
        // What happens is what the steps do.
        auto_restart_policy: 'never',
      },
      { project: PROJECT },
    );
    this.#ids.set(name, made.id);
  }

  /** Waits until what a step expects to follow holds. Returns what still does not. */
  async #settle(
    expected: Expectation,
    before: InstanceRecord | null,
    after: InstanceRecord | null,
    subject: string,
  ): Promise<string[]> {
    const mayWait = expected.becomes !== undefined || expected.ids !== undefined;
    const end = performance.now() + (mayWait ? SETTLE_MS : 0);
    let problems = after === null ? [] : stateProblems(expected, before, after);
    while (problems.length > 0 && performance.now() < end) {
      await pause(LOOK_EVERY_MS);
      problems = stateProblems(expected, before, await this.#read(subject));
    }
    return problems;
  }

  /** Waits until the guest of an instance has counted further than `before`. Returns how far it has come. */
  async #waitForCount(subject: string, before: number): Promise<number> {
    const end = performance.now() + BOOT_MS;
    let count = this.#countOf(await this.#read(subject));
    while (count <= before && performance.now() < end) {
      await pause(LOOK_EVERY_MS);
      count = this.#countOf(await this.#read(subject));
    }
    return count;
  }

  /** How far the guest of an instance has counted, by the witness of the sled that it is on. */
  #countOf(known: InstanceRecord | null): number {
    return Math.floor(this.#sledOf(known)?.agent.hypervisor.count(known?.active?.id ?? '') ?? 0);
  }

  #sledOf(known: InstanceRecord | null): StackSled | undefined {
    return this.#stack.sleds.find(({ id }) => id === known?.active?.sledId);
  }

  async #read(subject: string): Promise<InstanceRecord> {
    const id = this.#ids.get(subject);
    const found = id === undefined ? null : await readInstance(this.#db, id);
    if (found === null) throw new Error(`the scenario speaks of "${subject}" before it is created`);
    return found;
  }

  #linkOf(action: Action, subject: string | null): string | null {
    const { temporalUiUrl, temporal } = this.#stack;
    const id = subject === null ? undefined : this.#ids.get(subject);
    if (id === undefined || temporalUiUrl === null) return null;
    const workflow = encodeURIComponent(workflowIdOf(action, id));
    return `${temporalUiUrl}/namespaces/${temporal.namespace}/workflows/${workflow}`;
  }
}

function callProblems({ outcome = 'succeeded' }: Expectation, call: string): string[] {
  return call.split(':')[0] === String(outcome) ? [] : [`the call ended with ${call}, not ${outcome}`];
}

function returnProblems({ external_state: state }: Expectation, after: InstanceRecord | null): string[] {
  if (state === undefined || after?.externalState === state) return [];
  return [`showed ${after?.externalState} when the call returned, not ${state}`];
}

/** What does not hold yet of what must follow. */
function stateProblems(
  { becomes, active_vmm, sled, ids }: Expectation,
  before: InstanceRecord | null,
  now: InstanceRecord,
): string[] {
  const problems: string[] = [];
  const vmmState = now.active?.state ?? 'none';
  if (becomes !== undefined && now.externalState !== becomes)
    problems.push(`shows ${now.externalState}, not ${becomes}`);
  if (active_vmm !== undefined && vmmState !== active_vmm)
    problems.push(`its active VMM is ${vmmState}, not ${active_vmm}`);
  if (sled !== undefined && (now.active?.sledId === before?.active?.sledId) !== (sled === 'same'))
    problems.push(`is not on the ${sled} sled`);
  if (ids !== undefined && now.instance.migrationId !== null) problems.push('still names a migration');
  return problems;
}

/** The workflow that carries a step out; for what only changes a guest, the update saga that follows it. */
function workflowIdOf(action: Action, instanceId: string): string {
  if ('start' in action) return workflowIds.start(instanceId);
  if ('migrate' in action) return workflowIds.migrate(instanceId);
  if ('stop' in action) return workflowIds.stop(instanceId);
  return workflowIds.update(instanceId);
}

/** The instance that a step is about. */
function subjectOf(action: Action): string | null {
  if ('create' in action || 'updates' in action) return null;
  return Object.values(action).find((value): value is string => typeof value === 'string') ?? null;
}
