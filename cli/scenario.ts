/** Scenarios: what is done through the public API, step by step, and what must follow. */
import { readFile } from 'node:fs/promises';
import { parseDocument } from 'yaml';
import { z } from 'zod';
import { MooringApiError, MooringClient } from '../client/mooring-client.ts';
import { openDatabase } from '../db/connect.ts';
import { type InstanceRecord, readInstance } from '../db/queries/read-instance.ts';
import { EXTERNAL_STATES } from '../model/states.ts';
import { workflowIds } from '../model/workflow-names.ts';
import { fault } from '../sled-agent/faults.ts';
import type { RunningStack } from '../stack/stack.ts';

const name = z.string().min(1);
const action = z.union([
  z.strictObject({ create: z.array(name).min(1) }),
  z.strictObject({ start: name, with_fault: fault.optional() }),
  z.strictObject({ migrate: name, with_fault: fault.optional() }),
  z.strictObject({ stop: name }),
  z.strictObject({ delete: name }),
  z.strictObject({ halt: name }),
  z.strictObject({ lose: name }),
  z.strictObject({ updates: z.boolean() }),
]);
export type Action = z.infer<typeof action>;

const expectation = z.strictObject({
  /** How the call ends: `succeeded`, or the HTTP status of its error. */
  outcome: z.union([z.literal('succeeded'), z.number().int()]).optional(),
  /** What the instance shows the moment the call returns. */
  shown: z.enum(EXTERNAL_STATES).optional(),
  /** What it comes to show. */
  becomes: z.enum(EXTERNAL_STATES).optional(),
  /** The state of the VMM that the instance names as active, in the database. */
  active_vmm: z.enum(['none', 'saga_unwound']).optional(),
  /** Whether it runs on the sled where it was before the step. */
  sled: z.enum(['same', 'other']).optional(),
  /** No migration is named any more. */
  ids: z.literal('cleared').optional(),
  /** Its guest comes to count, on from where it was before the step, if it ran then. */
  guest: z.literal('counts').optional(),
});

const scenario = z.strictObject({
  steps: z.array(z.strictObject({ title: z.string(), do: action, expect: expectation.optional() })).min(1),
});
export type Scenario = z.infer<typeof scenario>;
export type ScenarioStep = Scenario['steps'][number];

/** Reads a scenario. Throws an error that names the step and the field that is wrong. */
export function parseScenario(text: string): Scenario {
  const document = parseDocument(text);
  const [problem] = document.errors;
  if (problem !== undefined) throw new Error(`the scenario is not valid YAML: ${problem.message}`);
  const parsed = scenario.safeParse(document.toJS());
  if (parsed.success) return parsed.data;
  throw new Error(`the scenario is not right:\n${z.prettifyError(parsed.error)}`);
}

/** Reads a scenario from a file. */
export async function readScenario(file: string): Promise<Scenario> {
  return parseScenario(await readFile(file, 'utf8'));
}

export interface StepResult {
  readonly title: string;
  readonly call: string;
  readonly shown: string;
  /** What did not hold; empty when the step ended as the scenario says. */
  readonly problems: readonly string[];
  readonly ms: number;
  /** How far its guest had counted before the step and how far afterwards, where the scenario asks for it. */
  readonly counted: { readonly before: number; readonly after: number } | null;
  /** Where the Temporal Web UI shows the saga. */
  readonly link: string | null;
}

const PROJECT = 'default';
const SETTLE_MS = 20_000;
const LOOK_EVERY_MS = 25;
/** How long a real guest may take to boot on a busy machine, in milliseconds. */
const BOOT_MS = 60_000;

/** How large the instances of a scenario are: virtual CPUs, and memory in bytes. */
export interface InstanceSize {
  readonly ncpus: number;
  readonly memory: number;
}

/** Plays a scenario on a stack, through its public API; `onStep` hears each step's result as it ends. */
export async function playScenario(
  stack: RunningStack,
  played: Scenario,
  onStep: (result: StepResult) => void,
  size: InstanceSize = { ncpus: 2, memory: 1024 ** 3 },
): Promise<StepResult[]> {
  const client = new MooringClient({ url: stack.apiUrl, token: stack.adminToken.secret });
  const database = openDatabase(stack.databaseUrl, { maxConnections: 2, applicationName: 'mooring-scenario' });
  const ids = new Map<string, string>();
  const results: StepResult[] = [];
  try {
    await client.createProject({ name: PROJECT, description: 'the scenario’s' });
    for (const step of played.steps) {
      const result = await playStep(step);
      results.push(result);
      onStep(result);
    }
    return results;
  } finally {
    await database.close();
  }

  async function playStep(step: ScenarioStep): Promise<StepResult> {
    const begun = performance.now();
    const subject = subjectOf(step.do);
    const before = subject === null ? null : await record(subject);
    const countBefore = countOf(before);
    let call: string;
    try {
      call = await act(step.do, before);
    } catch (error) {
      if (!(error instanceof MooringApiError)) throw error;
      call = `${error.status}: ${error.message}`;
    } finally {
      for (const { agent } of stack.sleds)
        if ('with_fault' in step.do && !('migration' in (step.do.with_fault ?? {}))) agent.faults.clear();
    }
    const after = subject === null || 'delete' in step.do ? null : await record(subject);
    const problems = await check(step, call, before, after, subject);
    const ms = performance.now() - begun;
    let counted: StepResult['counted'] = null;
    if (subject !== null && step.expect?.guest !== undefined) {
      counted = { before: countBefore, after: await countsOn(subject, countBefore) };
      if (counted.after <= countBefore) problems.push(`its guest does not count on from ${countBefore}`);
    }
    const last = subject === null || 'delete' in step.do ? null : await record(subject);
    return {
      title: step.title,
      call,
      shown: last?.externalState ?? '',
      problems,
      ms,
      counted,
      link: linkOf(step.do, subject),
    };
  }

  async function act(wanted: Action, before: InstanceRecord | null): Promise<string> {
    if ('create' in wanted) {
      for (const one of wanted.create) {
        const made = await client.createInstance(
          {
            name: one,
            description: 'made by the scenario',
            hostname: one,
            ...size,
            start: false,
            // What happens is what the steps do.
            auto_restart_policy: 'never',
          },
          { project: PROJECT },
        );
        ids.set(one, made.id);
      }
    } else if ('start' in wanted) {
      for (const { agent } of stack.sleds) if (wanted.with_fault !== undefined) agent.faults.plant(wanted.with_fault);
      await client.startInstance(wanted.start, { project: PROJECT });
    } else if ('migrate' in wanted) {
      const destination = stack.sleds.find(({ id }) => id !== before?.active?.sledId);
      if (destination === undefined) throw new Error('a migration needs two sleds');
      if (wanted.with_fault !== undefined) destination.agent.faults.plant(wanted.with_fault);
      await client.migrateInstance(wanted.migrate, destination.id, { project: PROJECT });
    } else if ('stop' in wanted) await client.stopInstance(wanted.stop, { project: PROJECT });
    else if ('delete' in wanted) await client.deleteInstance(wanted.delete, { project: PROJECT });
    else if ('updates' in wanted) await stack.worker.setUpdates(wanted.updates);
    else {
      const host = stack.sleds.find(({ id }) => id === before?.active?.sledId);
      if (host === undefined || before?.active == null) throw new Error('the instance runs on no sled of this stack');
      if ('halt' in wanted) host.agent.faults.halt(before.active.id);
      else host.agent.faults.lose(before.active.id);
    }
    return 'succeeded';
  }

  async function check(
    step: ScenarioStep,
    call: string,
    before: InstanceRecord | null,
    after: InstanceRecord | null,
    subject: string | null,
  ): Promise<string[]> {
    const { outcome, shown, becomes, active_vmm, sled, ids: cleared } = step.expect ?? {};
    const problems: string[] = [];
    const got = call.split(':')[0];
    if (got !== String(outcome ?? 'succeeded'))
      problems.push(`the call ended with ${call}, not ${outcome ?? 'succeeded'}`);
    if (subject === null) return problems;
    if (shown !== undefined && after?.externalState !== shown)
      problems.push(`showed ${after?.externalState} when the call returned, not ${shown}`);
    const holds = (now: InstanceRecord) =>
      [
        becomes === undefined || now.externalState === becomes || `shows ${now.externalState}, not ${becomes}`,
        active_vmm === undefined ||
          (now.active?.state ?? 'none') === active_vmm ||
          `its active VMM is ${now.active?.state ?? 'none'}, not ${active_vmm}`,
        sled === undefined ||
          (now.active?.sledId === before?.active?.sledId) === (sled === 'same') ||
          `is not on the ${sled} sled`,
        cleared === undefined || now.instance.migrationId === null || 'still names a migration',
      ].filter((verdict): verdict is string => typeof verdict === 'string');
    const settled = becomes === undefined && cleared === undefined ? 0 : SETTLE_MS;
    const end = performance.now() + settled;
    let left = after === null ? [] : holds(after);
    while (left.length > 0 && performance.now() < end) {
      await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY_MS));
      left = holds(await record(subject));
    }
    return [...problems, ...left];
  }

  /** How far the guest of an instance has counted, by the witness of the sled that it is on. */
  function countOf(known: InstanceRecord | null): number {
    const host = stack.sleds.find(({ id }) => id === known?.active?.sledId);
    return Math.floor(host?.agent.hypervisor.count(known?.active?.id ?? '') ?? 0);
  }

  async function countsOn(subject: string, before: number): Promise<number> {
    const end = performance.now() + BOOT_MS;
    let now = countOf(await record(subject));
    while (now <= before && performance.now() < end) {
      await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY_MS));
      now = countOf(await record(subject));
    }
    return now;
  }

  async function record(subject: string): Promise<InstanceRecord> {
    const id = ids.get(subject);
    const found = id === undefined ? null : await readInstance(database.db, id);
    if (found === null) throw new Error(`the scenario speaks of "${subject}" before it is created`);
    return found;
  }

  function linkOf(wanted: Action, subject: string | null): string | null {
    const id = subject === null ? undefined : ids.get(subject);
    if (id === undefined || stack.temporalUiUrl === null) return null;
    const workflow =
      'start' in wanted
        ? workflowIds.start(id)
        : 'migrate' in wanted
          ? workflowIds.migrate(id)
          : 'stop' in wanted
            ? workflowIds.stop(id)
            : workflowIds.update(id);
    return `${stack.temporalUiUrl}/namespaces/${stack.temporal.namespace}/workflows/${encodeURIComponent(workflow)}`;
  }
}

/** The instance that a step is about. */
function subjectOf(wanted: Action): string | null {
  if ('create' in wanted || 'updates' in wanted) return null;
  return Object.values(wanted).find((value): value is string => typeof value === 'string') ?? null;
}
