import { z } from 'zod';
import { uuid } from '../wire/uuid.ts';

/** The calls that a fault can be planted on. */
export const FAULT_CALLS = [
  'register',
  'unregister',
  'state:running',
  'state:stopped',
  'state:reboot',
  'state:migration_target',
  'get',
  'list',
] as const;
export type FaultCall = (typeof FAULT_CALLS)[number];

/** A fault for the next `times` calls of a kind (all, when absent), of one VMM or of one instance's VMMs if named. */
const callFault = z.object({
  call: z.enum(FAULT_CALLS),
  vmm_id: uuid.optional(),
  instance_name: z.string().optional(),
  times: z.number().int().min(1).optional(),
  act: z.discriminatedUnion('type', [
    /** Answers without doing it. */
    z.object({
      type: z.literal('refuse'),
      status: z.number().int(),
      error_code: z.string().optional(),
      message: z.string().optional(),
    }),
    /** Waits `ms` milliseconds, then does it. */
    z.object({ type: z.literal('delay'), ms: z.number().int().min(0) }),
    /** Does it at once and holds the answer for `ms` milliseconds. */
    z.object({ type: z.literal('answer_late'), ms: z.number().int().min(0) }),
    /** Breaks the connection without doing it. */
    z.object({ type: z.literal('drop_before') }),
    /** Does it, then breaks the connection. */
    z.object({ type: z.literal('drop_after') }),
    /** Does it and answers what the protocol does not know. */
    z.object({ type: z.literal('garbage') }),
  ]),
});
export type CallFault = z.infer<typeof callFault>;

/** The next migration (of one instance, if named) fails on this side: before anything is sent, or in the middle. */
const migrationFault = z.object({
  migration: z.object({
    side: z.enum(['source', 'target']),
    point: z.enum(['before', 'middle']),
    instance_name: z.string().optional(),
  }),
});
type MigrationFault = z.infer<typeof migrationFault>;

export const fault = z.union([callFault, migrationFault]);
export type Fault = z.infer<typeof fault>;

/** The faults that are planted on one agent. */
export class PlantedFaults {
  #calls: { fault: CallFault; left: number }[] = [];
  #migrations: MigrationFault['migration'][] = [];

  /** Plants a fault. What is returned takes it away again, where it is not used up. */
  plant(planted: Fault): () => void {
    if ('migration' in planted) {
      const { migration } = planted;
      this.#migrations.push(migration);
      return () => {
        this.#migrations = this.#migrations.filter((other) => other !== migration);
      };
    }
    const entry = { fault: planted, left: planted.times ?? Number.POSITIVE_INFINITY };
    this.#calls.push(entry);
    return () => {
      this.#calls = this.#calls.filter((other) => other !== entry);
    };
  }

  /** Takes every fault away. */
  clear(): void {
    this.#calls = [];
    this.#migrations = [];
  }

  /** The fault for a call, used up by asking. */
  takeCall(call: FaultCall, vmmId: string | null, instanceName: string | null): CallFault['act'] | null {
    const found = this.#calls.find(
      ({ fault: planted }) =>
        planted.call === call &&
        (planted.vmm_id === undefined || planted.vmm_id === vmmId) &&
        (planted.instance_name === undefined || planted.instance_name === instanceName),
    );
    if (found === undefined) return null;
    found.left -= 1;
    if (found.left <= 0) this.#calls = this.#calls.filter((other) => other !== found);
    return found.fault.act;
  }

  /** The failure that is planted for a migration of the instance with this name, used up by asking. */
  takeMigrationFailure(side: 'source' | 'target', instanceName?: string): 'before' | 'middle' | null {
    const index = this.#migrations.findIndex(
      (planted) =>
        planted.side === side && (planted.instance_name === undefined || planted.instance_name === instanceName),
    );
    return index < 0 ? null : (this.#migrations.splice(index, 1)[0]?.point ?? null);
  }
}
