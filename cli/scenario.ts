/** The format of scenarios: what is done through the public API, step by step, and what must follow. */
import { readFile } from 'node:fs/promises';
import { parseDocument } from 'yaml';
import { z } from 'zod';
import { EXTERNAL_STATES } from '../model/states.ts';
import { fault } from '../sled-agent/faults.ts';

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
/** What a step does. */
export type Action = z.infer<typeof action>;

const expectation = z.strictObject({
  /** How the call ends: `succeeded`, or the HTTP status of its error. */
  outcome: z.union([z.literal('succeeded'), z.number().int()]).optional(),
  /** The instance's external state at the moment the call returns. */
  external_state: z.enum(EXTERNAL_STATES).optional(),
  /** The external state that it reaches after that. */
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
/** What must follow a step; what is absent is not checked. */
export type Expectation = z.infer<typeof expectation>;

const scenario = z.strictObject({
  steps: z.array(z.strictObject({ title: z.string(), do: action, expect: expectation.optional() })).min(1),
});
/** Steps that are played in order. */
export type Scenario = z.infer<typeof scenario>;
/** One step: a title for people, what it does, and what must follow. */
export type ScenarioStep = Scenario['steps'][number];

/** Reads a scenario in YAML. Throws an error that names the step and the field that is wrong. */
export function parseScenario(text: string): Scenario {
  const document = parseDocument(text);
  const [problem] = document.errors;
  if (problem !== undefined) throw new Error(`the scenario is not valid YAML: ${problem.message}`);
  const parsed = scenario.safeParse(document.toJS());
  if (parsed.success) return parsed.data;
  throw new Error(`the scenario is not right:\n${z.prettifyError(parsed.error)}`);
}

/** Reads a scenario from a file. Throws as {@link parseScenario}, and what the file system reports. */
export async function readScenario(file: string): Promise<Scenario> {
  return parseScenario(await readFile(file, 'utf8'));
}
