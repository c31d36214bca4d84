/**
 * The HTTP protocol between the control plane and a sled agent (section 7 of docs/design.md): the schemas that both sides
 * parse with. JSON, snake_case. Unknown fields are ignored, so that either side can be newer than the other.
 */
import { z } from 'zod';
import { MIGRATION_STATES, WIRE_VMM_STATES } from '../model/states.ts';

/** The largest generation that is exact both in JSON and in PostgreSQL's bigint. */
const generation = z.number().int().min(1).max(Number.MAX_SAFE_INTEGER);
export const timestamp = z.iso.datetime({ offset: true });
/** The host (IPv6 without its brackets) and the port of an `ip:port` as {@link socketAddress} takes it. Checks nothing. */
export function splitAddress(address: string): { host: string; port: number } {
  const at = address.lastIndexOf(':');
  return { host: address.slice(0, at).replace(/[[\]]/g, ''), port: Number(address.slice(at + 1)) };
}

/** The same host (IPv6 in its brackets) with another port: `withPort('[::1]:8099', 0)` is `[::1]:0`. Checks nothing. */
export function withPort(address: string, port: number | string): string {
  return `${address.slice(0, address.lastIndexOf(':'))}:${port}`;
}

/** `ip:port`; IPv6 in brackets. */
export const socketAddress = z
  .string()
  .max(64)
  .regex(/^(\d{1,3}(\.\d{1,3}){3}|\[[0-9a-fA-F:.]+\]):\d{1,5}$/, 'must be "ip:port", for example "10.0.0.7:8099"')
  .refine((address) => {
    const port = Number(address.slice(address.lastIndexOf(':') + 1));
    return port >= 1 && port <= 65535;
  }, 'the port must be 1 to 65535');

export const vmmRuntime = z.object({
  state: z.enum(WIRE_VMM_STATES),
  gen: generation,
  time_updated: timestamp,
});
export type VmmRuntime = z.infer<typeof vmmRuntime>;

export const migrationRuntime = z.object({
  migration_id: z.guid(),
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
  migration_id: z.guid(),
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
  instance_id: z.guid(),
  migration_id: z.guid().nullish(),
  vmm_runtime: z.object({ state: z.enum(['starting', 'migrating']), gen: generation, time_updated: timestamp }),
  vmm_spec: z.looseObject({
    name: z.string(),
    ncpus: z.number().int().min(1),
    memory_bytes: z.number().int().min(1),
  }),
  vmm_addr: socketAddress,
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
  vmms: z.array(sledVmmState.extend({ vmm_id: z.guid(), instance_id: z.guid() })),
});
export type SledInventory = z.infer<typeof sledInventory>;

/** The only answer that means "this VMM does not exist". */
export const NO_SUCH_INSTANCE = 'NO_SUCH_INSTANCE';
/** A register for an id that was unregistered before: it stays dead. */
export const VMM_UNREGISTERED = 'VMM_UNREGISTERED';

export const errorBody = z.looseObject({
  error_code: z.string().optional(),
  message: z.string().optional(),
  request_id: z.string().optional(),
});
