/** Instances, as operators and their programs see them. */
import { z } from 'zod';
import { AUTO_RESTART_POLICIES, EXTERNAL_STATES, INTENDED_STATES, RESTART_PRIORITIES } from '../../model/states.ts';
import { timestamp } from '../sled-protocol.ts';
import { description, nameOrId, resourceName, uuid } from './names.ts';

const MEBIBYTE = 1024 * 1024;
const GIBIBYTE = 1024 * MEBIBYTE;

/** The smallest and largest memory of an instance, in bytes. The upper limits are Oxide's. */
export const MIN_MEMORY_BYTES = 64 * MEBIBYTE;
const MAX_MEMORY_BYTES = 1536 * GIBIBYTE;
const MAX_INSTANCE_CPUS = 254;
/** The longest cooldown of automatic restarts, in seconds: thirty days. */
const MAX_COOLDOWN_SECONDS = 30 * 24 * 3600;

const hostname = z
  .string()
  .min(1)
  .max(253)
  .regex(
    /^([a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)(\.([a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?))*$/,
    'must be an RFC 1035 host name',
  );
const instanceCpus = z.number().int().min(1).max(MAX_INSTANCE_CPUS);
const instanceMemory = z
  .number()
  .int()
  .min(MIN_MEMORY_BYTES)
  .max(MAX_MEMORY_BYTES)
  .multipleOf(MEBIBYTE, 'must be a multiple of 1 MiB (1048576 bytes)');

/** What is asked of an instance's serial console. Source: the Oxide API's `instance_serial_console`. */
export const serialConsoleParams = z
  .object({
    project: nameOrId.optional(),
    /** The offset of the first byte, since the guest began. */
    from_start: z.coerce.number().int().min(0).optional(),
    /** How many of the newest bytes. */
    most_recent: z.coerce.number().int().min(1).optional(),
    max_bytes: z.coerce
      .number()
      .int()
      .min(1)
      .max(1024 * 1024)
      .default(64 * 1024),
  })
  .refine(
    ({ from_start, most_recent }) => from_start === undefined || most_recent === undefined,
    'from_start and most_recent exclude each other: give one of them',
  );

export const externalStateSchema = z.enum(EXTERNAL_STATES);
export const autoRestartPolicy = z.enum(AUTO_RESTART_POLICIES);
/** Who is started again first when a sled dies; ours, beside the Oxide fields. */
export const restartPriority = z.enum(RESTART_PRIORITIES);

export const instanceCreate = z.object({
  name: resourceName,
  description,
  hostname,
  ncpus: instanceCpus,
  /** In bytes. */
  memory: instanceMemory,
  start: z.boolean().default(true),
  auto_restart_policy: autoRestartPolicy.nullish(),
  restart_priority: restartPriority.default('normal'),
  anti_affinity_groups: z.array(nameOrId).optional(),
});
export type InstanceCreate = z.input<typeof instanceCreate>;

export const instanceUpdate = z.object({
  name: resourceName.optional(),
  description: description.optional(),
  ncpus: instanceCpus.optional(),
  memory: instanceMemory.optional(),
  /** `null` unsets the policy: the default, `best_effort`, holds. */
  auto_restart_policy: autoRestartPolicy.nullish(),
  /** How long after an automatic restart the next one may come, in seconds; ours, beside the Oxide fields. */
  auto_restart_cooldown_seconds: z.number().int().min(0).max(MAX_COOLDOWN_SECONDS).optional(),
  restart_priority: restartPriority.optional(),
});
export type InstanceUpdate = z.input<typeof instanceUpdate>;

export const instanceView = z.object({
  id: uuid,
  name: z.string(),
  description: z.string(),
  hostname: z.string(),
  project_id: uuid,
  ncpus: z.number().int(),
  /** In bytes. */
  memory: z.number().int(),
  run_state: externalStateSchema,
  time_created: timestamp,
  time_modified: timestamp,
  time_run_state_updated: timestamp,
  auto_restart_enabled: z.boolean(),
  auto_restart_policy: autoRestartPolicy.nullable(),
  /** Ours, beside the Oxide fields. */
  auto_restart_cooldown_seconds: z.number().int(),
  auto_restart_cooldown_expiration: timestamp.nullable(),
  time_last_auto_restarted: timestamp.nullable(),
  restart_priority: restartPriority,
  boot_disk_id: z.null(),
  cpu_platform: z.null(),
  enable_jumbo_frames: z.boolean(),
  /** The sled whose VMM is the instance's active one; ours, beside the Oxide fields. */
  sled_id: uuid.nullable(),
  /** The destination of the live migration on its way; ours. */
  migration_target_sled_id: uuid.nullable(),
  /** What its user wants of it, whatever it shows; ours. */
  intended_state: z.enum(INTENDED_STATES).nullish(),
});
export type InstanceView = z.infer<typeof instanceView>;

/** What a create answers: the instance, and what became of its first start. */
export const instanceCreated = instanceView.extend({
  /** The operation of its first start; `null` when none was asked for. Ours, as the next one. */
  start_operation_id: uuid.nullish(),
  /** Why its first start failed: it was created all the same. `null` where it has succeeded, or goes on. */
  start_error: z.object({ status: z.number().int(), error_code: z.string(), message: z.string() }).nullish(),
});
export type InstanceCreated = z.infer<typeof instanceCreated>;

export const instanceMigrate = z.object({ dst_sled_id: uuid });

/** `sled_powered_off: true`: the operator states that the silent sled is powered off, and runs nothing any more. */
export const instanceForceStop = z.object({ sled_powered_off: z.boolean().default(false) });
export type InstanceForceStop = z.input<typeof instanceForceStop>;
