/**
 * The HTTP protocol between the control plane and a sled agent (section 7 of docs/design.md): the schemas that both sides
 * parse with. JSON, snake_case. Unknown fields are ignored, so that either side can be newer than the other.
 */
import { z } from 'zod';
import { canonicalAddress, MAX_ADDRESS_LENGTH, readHostAddress } from '../model/host-address.ts';
import { MIGRATION_STATES, WIRE_VMM_STATES } from '../model/states.ts';
import { uuid } from './uuid.ts';

/** The largest generation that is exact both in JSON and in PostgreSQL's bigint. */
const generation = z.number().int().min(1).max(Number.MAX_SAFE_INTEGER);
export const timestamp = z.iso.datetime({ offset: true });

/** The host (IPv6 without its brackets) and the port of a `host:port` as {@link socketAddress} takes it. Checks nothing. */
export function splitAddress(address: string): { host: string; port: number } {
  const at = address.lastIndexOf(':');
  return { host: address.slice(0, at).replace(/[[\]]/g, ''), port: Number(address.slice(at + 1)) };
}

/** The same host (IPv6 in its brackets) with another port: `withPort('[::1]:8099', 0)` is `[::1]:0`. Checks nothing. */
export function withPort(address: string, port: number | string): string {
  return `${address.slice(0, address.lastIndexOf(':'))}:${port}`;
}

/**
 * `host:port`, where a host is an IPv4 address, an IPv6 address in brackets or a DNS name; read in its one spelling
 * (`model/host-address.ts`). What is the address of no host is refused.
 */
export const socketAddress = z
  .string()
  .max(MAX_ADDRESS_LENGTH)
  .superRefine((address, context) => {
    const read = readHostAddress(address);
    if ('refusal' in read) context.addIssue({ code: 'custom', message: read.refusal });
  })
  .overwrite(canonicalAddress);

export const vmmRuntime = z.object({
  state: z.enum(WIRE_VMM_STATES),
  gen: generation,
  time_updated: timestamp,
});
export type VmmRuntime = z.infer<typeof vmmRuntime>;

export const migrationRuntime = z.object({
  migration_id: uuid,
  state: z.enum(MIGRATION_STATES),
  gen: generation,
  time_updated: timestamp,
});
export type MigrationRuntime = z.infer<typeof migrationRuntime>;

/** A report: a sled agent's state of one VMM. An absent migration means "unchanged". */
export const sledVmmState = z.object({
  vmm_state: vmmRuntime,
  migration_in: migrationRuntime.nullish(),
  migration_out: migrationRuntime.nullish(),
});
export type SledVmmState = z.infer<typeof sledVmmState>;

/**
 * How far a migration out of a VMM is, and of the one into it how it ended. Beside the protocol: an agent may add it to the
 * answer of `GET /vmms/{id}/state`, and a control plane that doesn't know it takes no notice.
 */
export const migrationProgress = z.object({
  migration_id: uuid,
  /** The hypervisor's own status, for example `active` or `completed`. */
  status: z.string(),
  bytes_total: z.number(),
  bytes_sent: z.number(),
  bytes_left: z.number(),
  /** How long the guest stood still, in milliseconds; `null` until it is known. */
  downtime_ms: z.number().nullable(),
  /** How long it is expected to stand still, in milliseconds; absent where the hypervisor doesn't report it. */
  expected_downtime_ms: z.number().nullish(),
  elapsed_ms: z.number(),
});
export type MigrationProgress = z.infer<typeof migrationProgress>;

/** The answer of `GET /vmms/{id}/state`. */
export const vmmStateAnswer = sledVmmState.extend({ migration_progress: migrationProgress.nullish() });
export type VmmStateAnswer = z.infer<typeof vmmStateAnswer>;

/** What is asked of `GET /vmms/{id}/serial-console`, beside the protocol. */
export const serialConsoleRequest = z.object({
  /** The offset of the first byte, since the guest began; a negative one counts from the end. */
  from_start: z.coerce.number().int().default(0),
  max_bytes: z.coerce
    .number()
    .int()
    .min(1)
    .max(1024 * 1024)
    .default(64 * 1024),
});

/** A piece of a serial console. Shape: the Oxide API's `InstanceSerialConsoleData`. */
export const serialConsoleData = z.object({
  data: z.array(z.number().int().min(0).max(255)),
  /** The offset after the last byte of `data`; it goes on counting across migrations. */
  last_byte_offset: z.number().int().min(0),
});
export type SerialConsoleData = z.infer<typeof serialConsoleData>;

export const registerRequest = z.object({
  instance_id: uuid,
  migration_id: uuid.nullish(),
  vmm_runtime: z.object({ state: z.enum(['starting', 'migrating']), gen: generation, time_updated: timestamp }),
  vmm_spec: z.looseObject({
    name: z.string(),
    ncpus: z.number().int().min(1),
    memory_bytes: z.number().int().min(1),
    /** The CPU that the guest is to see, one of those that its sled says it offers; absent where sleds don't say. */
    cpu_model: z.string().max(100).nullish(),
  }),
  vmm_addr: socketAddress,
  /** As which sled the agent is spoken to: what it hears of that sled later is about this VMM. */
  sled_id: uuid.nullish(),
});
export type RegisterRequest = z.infer<typeof registerRequest>;

export const vmmStateRequest = z.object({
  state: z.discriminatedUnion('type', [
    z.object({ type: z.literal('running') }),
    z.object({ type: z.literal('stopped') }),
    z.object({ type: z.literal('reboot') }),
    z.object({ type: z.literal('migration_target'), value: z.object({ src_vmm_addr: socketAddress }) }),
  ]),
});
export type VmmCommand = z.infer<typeof vmmStateRequest>['state'];

/** The reply to `unregister` and to a state request; `null` where the agent knows nothing (more) of the VMM. */
export const updatedRuntime = z.object({ updated_runtime: sledVmmState.nullable() });
export type UpdatedRuntime = z.infer<typeof updatedRuntime>;

export const sledInventory = z.object({
  vmms: z.array(sledVmmState.extend({ vmm_id: uuid, instance_id: uuid })),
});
export type SledInventory = z.infer<typeof sledInventory>;

/**
 * The answer of `GET /agent`: what a sled agent says of itself. Beside the protocol: an agent that others wrote need not know
 * the question, and every field but its id may be absent.
 */
export const agentDescription = z.object({
  /** Made once, and kept with the agent's data: the same agent has it at every address. */
  agent_id: uuid,
  /** Whether that is so. An agent that doesn't say, or that has no data, may have another id each time it starts. */
  agent_id_kept: z.boolean().optional(),
  version: z.string().max(100).nullish(),
  /** What keeps it from doing its work, a sentence each, for example that its disk is full; empty when it is well. */
  trouble: z.array(z.string().max(1000)).max(100).default([]),
  /** The CPU models that its guests can be given, where they are told apart: what a new guest gets is the first. */
  cpu_models: z.array(z.string().max(100)).max(1000).nullish(),
});
export type AgentDescription = z.infer<typeof agentDescription>;

/** A header of an agent's answers, and of its reports: its id, as `GET /agent` says it. One that others wrote need not send it. */
export const AGENT_ID_HEADER = 'x-sled-agent-id';

/** The id that an agent's answer, or its report, carries; `undefined` where it carries none. */
export function agentShownIn(headers: Readonly<Record<string, string | string[] | undefined>>): string | undefined {
  const [first] = [headers[AGENT_ID_HEADER]].flat();
  // What is no id is shown all the same: of somebody who is not the sled's own agent.
  return first === undefined ? undefined : (uuid.safeParse(first).data ?? first);
}

/** A header of every call of the control plane to a sled: the id of its installation. An agent that others wrote need not read it. */
export const INSTALLATION_HEADER = 'x-mooring-installation';
/** An installation's id, as the database has it. */
export const installationId = z.string().regex(/^[0-9a-z]{1,32}$/);
/** A sled agent's refusal (409) of a call of another installation than that whose orders it takes: no word on any VMM. */
export const ANOTHER_INSTALLATION = 'ANOTHER_INSTALLATION';

/**
 * The control plane's answer to a report, whose header names an agent, of a VMM whose sled has another one. It says nothing of
 * the report: the agent may be taken for the sled's own later.
 */
export const FOREIGN_AGENT = 'FOREIGN_AGENT';

/** The only answer that means "this VMM does not exist". */
export const NO_SUCH_INSTANCE = 'NO_SUCH_INSTANCE';
/** A register for an id that was unregistered before: it stays dead. */
export const VMM_UNREGISTERED = 'VMM_UNREGISTERED';

/** The sled was expunged: it never gets a lease again, takes no VMM, and ends those that it has. */
export const SLED_EXPUNGED = 'SLED_EXPUNGED';

export const errorBody = z.looseObject({
  error_code: z.string().optional(),
  message: z.string().optional(),
  request_id: z.string().optional(),
});
