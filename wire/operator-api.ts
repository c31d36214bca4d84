/**
 * What operators and their programs say to the API and hear from it. Where the Oxide external API has the same thing,
 * its names, limits and shapes hold, so that its clients work unchanged; the rest is ours and stands beside it.
 * Source: https://docs.oxide.computer/api
 */
import { z } from 'zod';
import { DRAIN_STATES } from '../model/drain.ts';
import { RECONCILERS } from '../model/reconcilers.ts';
import {
  AFFINITY_POLICIES,
  AUTO_RESTART_POLICIES,
  DEATH_CAUSES,
  EXTERNAL_STATES,
  FAILURE_DOMAINS,
  MIGRATION_STATES,
  OPERATION_KINDS,
  RESTART_PRIORITIES,
  SLED_POLICIES,
} from '../model/states.ts';
import { TIMELINE_KINDS } from '../model/timeline.ts';
import { socketAddress, timestamp } from './sled-protocol.ts';

const MEBIBYTE = 1024 * 1024;
const GIBIBYTE = 1024 * MEBIBYTE;

/** The smallest and largest memory of an instance, in bytes. The upper limits are Oxide's. */
export const MIN_MEMORY_BYTES = 64 * MEBIBYTE;
export const MAX_MEMORY_BYTES = 1536 * GIBIBYTE;
export const MAX_INSTANCE_CPUS = 254;
/** The longest cooldown of automatic restarts, in seconds: thirty days. */
const MAX_COOLDOWN_SECONDS = 30 * 24 * 3600;
/** The page size of a list that names none, and the largest that may be asked for. Source: Dropshot's defaults. */
export const DEFAULT_PAGE_LIMIT = 100;
export const MAX_PAGE_LIMIT = 10_000;

const uuid = z.guid();

/** A resource's name. Source: Oxide `Name`: lower-case start, letters, digits and dashes, 63 at most, not a UUID. */
export const resourceName = z
  .string()
  .min(1)
  .max(63)
  .regex(
    /^[a-z]([a-zA-Z0-9-]*[a-zA-Z0-9]+)?$/,
    'must begin with a lower-case letter, hold only letters, digits and "-", and not end with "-"',
  )
  .refine((name) => !UUID_PATTERN.test(name), 'must not be a UUID, since a name stands where an id may');
const UUID_PATTERN = /^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$/;

/** Tells a UUID from a name, where the API takes either. */
export function isUuid(nameOrId: string): boolean {
  return UUID_PATTERN.test(nameOrId);
}

export const nameOrId = z.string().min(1).max(63);
const description = z.string().max(512);
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

export const errorResponse = z.object({
  error_code: z.string().optional(),
  message: z.string(),
  request_id: z.string(),
});
export type ErrorResponse = z.infer<typeof errorResponse>;

export const projectView = z.object({
  id: uuid,
  name: z.string(),
  description: z.string(),
  time_created: timestamp,
  time_modified: timestamp,
});
export type ProjectView = z.infer<typeof projectView>;

export const projectCreate = z.object({ name: resourceName, description });
export type ProjectCreate = z.infer<typeof projectCreate>;
export const projectUpdate = z.object({ name: resourceName.nullish(), description: description.nullish() });
export type ProjectUpdate = z.infer<typeof projectUpdate>;

/** A project's quota; `null` is unlimited. `memory` is in bytes. */
export const quotaUpdate = z.object({
  cpus: z.number().int().min(0).max(1_000_000_000).nullable(),
  memory: z.number().int().min(0).max(Number.MAX_SAFE_INTEGER).nullable(),
});
export type QuotaUpdate = z.infer<typeof quotaUpdate>;
export const quotaView = quotaUpdate.extend({ cpus_in_use: z.number().int(), memory_in_use: z.number().int() });
export type QuotaView = z.infer<typeof quotaView>;

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
});
export type InstanceView = z.infer<typeof instanceView>;

export const instanceMigrate = z.object({ dst_sled_id: uuid });
export type InstanceMigrate = z.infer<typeof instanceMigrate>;

/** `sled_powered_off: true` is the operator's word that the silent sled runs nothing any more. */
export const instanceForceStop = z.object({ sled_powered_off: z.boolean().default(false) });
export type InstanceForceStop = z.input<typeof instanceForceStop>;

export const sledAdd = z.object({
  name: resourceName,
  /** Where the sled agent listens: `ip:port`. */
  address: socketAddress,
  threads: z.number().int().min(1).max(65_536),
  /** In bytes. */
  memory: z
    .number()
    .int()
    .min(MIN_MEMORY_BYTES)
    .max(2 ** 50),
});
export type SledAdd = z.infer<typeof sledAdd>;

export const provisionPolicy = z.enum(['provisionable', 'non_provisionable']);
export const provisionPolicyParams = z.object({ state: provisionPolicy });
export const provisionPolicyResponse = z.object({ old_state: provisionPolicy, new_state: provisionPolicy });

export const sledView = z.object({
  id: uuid,
  baseboard: z.object({ part: z.string(), serial: z.string(), revision: z.number().int() }),
  rack_id: uuid,
  policy: z.discriminatedUnion('kind', [
    z.object({ kind: z.literal('in_service'), provision_policy: provisionPolicy }),
    z.object({ kind: z.literal('expunged') }),
  ]),
  state: z.enum(['active', 'decommissioned']),
  usable_hardware_threads: z.number().int(),
  /** In bytes. */
  usable_physical_ram: z.number().int(),
  time_created: timestamp,
  time_modified: timestamp,
  name: z.string(),
  address: z.string(),
  threads: z.number().int(),
  /** In bytes. */
  memory: z.number().int(),
  threads_reserved: z.number().int(),
  memory_reserved: z.number().int(),
  vmm_count: z.number().int(),
  provision_state: z.enum(SLED_POLICIES),
  /** Whether it powers its guests off when it can't renew its lease; `null`: it is without fencing. Ours, as what follows. */
  lease: z
    .object({
      seconds: z.number(),
      standing: z.enum(['held', 'late', 'lapsed']),
      time_renewed: timestamp,
      time_expires: timestamp,
      fencing_since: timestamp,
    })
    .nullable(),
  /** Since when it counts as dead, and why; `null`: it doesn't. */
  declared_dead: z.object({ time: timestamp, by: z.enum(DEATH_CAUSES) }).nullable(),
});
export type SledView = z.infer<typeof sledView>;

/** `sled_powered_off: true` is the operator's word that nothing runs on the sled any more. */
export const sledDeclareDead = z.object({ sled_powered_off: z.boolean().default(false) });
export type SledDeclareDead = z.input<typeof sledDeclareDead>;

/** Affinity and anti-affinity groups have one shape. Source: Oxide `AffinityGroup` and `AntiAffinityGroup`. */
export const affinityGroupCreate = z.object({
  name: resourceName,
  description,
  policy: z.enum(AFFINITY_POLICIES),
  failure_domain: z.enum(FAILURE_DOMAINS),
});
export type AffinityGroupCreate = z.infer<typeof affinityGroupCreate>;

export const affinityGroupUpdate = z.object({ name: resourceName.nullish(), description: description.nullish() });
export type AffinityGroupUpdate = z.infer<typeof affinityGroupUpdate>;

export const affinityGroupView = z.object({
  id: uuid,
  name: z.string(),
  description: z.string(),
  policy: z.enum(AFFINITY_POLICIES),
  failure_domain: z.enum(FAILURE_DOMAINS),
  project_id: uuid,
  time_created: timestamp,
  time_modified: timestamp,
});
export type AffinityGroupView = z.infer<typeof affinityGroupView>;

export const affinityGroupMember = z.object({
  type: z.literal('instance'),
  value: z.object({ id: uuid, name: z.string(), run_state: externalStateSchema }),
});
export type AffinityGroupMember = z.infer<typeof affinityGroupMember>;

/** How a drain is begun: how many instances are moved at a time. */
export const drainBegin = z.object({ parallel: z.number().int().min(1).max(64).default(4) });
export type DrainBegin = z.input<typeof drainBegin>;

const drainEntry = z.object({ instance_id: uuid, name: z.string() });
/** A drain: how far it has come, and what could not move. */
export const drainView = z.object({
  sled_id: uuid,
  state: z.enum(DRAIN_STATES),
  /** All of it in one line, for people. */
  summary: z.string(),
  total: z.number().int(),
  moved: z.number().int(),
  /** Instances that left the sled in another way: stopped, deleted or failed meanwhile. */
  ended: z.number().int(),
  moving: z.array(drainEntry.extend({ destination: z.string() })),
  waiting: z.array(drainEntry.extend({ until: z.string() })),
  could_not_move: z.array(drainEntry.extend({ reason: z.string() })),
  parallel: z.number().int(),
  time_started: timestamp,
  time_ended: timestamp.nullable(),
  web_ui: z.string().nullable(),
});
export type DrainView = z.infer<typeof drainView>;

export const reconcilerName = z.enum(RECONCILERS);
export const reconcilerUpdate = z.object({ enabled: z.boolean() });
export type ReconcilerUpdate = z.infer<typeof reconcilerUpdate>;
export const reconcilerView = z.object({
  name: reconcilerName,
  purpose: z.string(),
  /** Whether a worker has made its schedule. */
  scheduled: z.boolean(),
  enabled: z.boolean(),
  every_seconds: z.number().nullable(),
  note: z.string().nullable(),
  time_last_run: timestamp.nullable(),
  time_next_run: timestamp.nullable(),
  /** What its last run found and did, in words; `null` while it runs. */
  last_summary: z.string().nullable(),
});
export type ReconcilerView = z.infer<typeof reconcilerView>;
/** One pass: what it found and did, in words and as counts and ids. */
export const reconcilerPassView = z.object({
  name: reconcilerName,
  summary: z.string(),
  found: z.record(z.string(), z.union([z.number(), z.array(z.string())])),
});
export type ReconcilerPassView = z.infer<typeof reconcilerPassView>;

/** An operation: one run of a saga, from the call that began it to its outcome. */
export const operationView = z.object({
  id: uuid,
  kind: z.enum(OPERATION_KINDS),
  instance_id: uuid,
  state: z.enum(['running', 'done']),
  outcome: z.enum(['succeeded', 'failed']).nullable(),
  error: z.object({ status: z.number().int(), error_code: z.string(), message: z.string() }).nullable(),
  /** What the saga is doing now; `null` when the operation is done, or between two steps. */
  progress: z
    .object({
      /** `undoing`: the saga compensates. */
      phase: z.enum(['doing', 'undoing']),
      /** The step's name, and what it does in words. */
      step: z.string(),
      title: z.string(),
      /** How often it has been tried, this time included. */
      attempt: z.number().int(),
      /** Why the last attempt failed; `null` on the first. */
      last_failure: z.string().nullable(),
    })
    .nullable(),
  time_started: timestamp,
  time_ended: timestamp.nullable(),
  /** Where the Temporal Web UI shows it, when the API knows the address of one. */
  web_ui: z.string().nullable(),
});
export type OperationView = z.infer<typeof operationView>;
export type OperationProgress = NonNullable<OperationView['progress']>;

/** How far an instance's newest migration is, or how it ended. */
export const migrationView = z.object({
  id: uuid,
  /** `null` while it is under way. */
  outcome: z.enum(['completed', 'failed']).nullable(),
  source_sled: z.string(),
  target_sled: z.string(),
  source_state: z.enum(MIGRATION_STATES),
  target_state: z.enum(MIGRATION_STATES),
  /** What the sleds say of the guest's way; `null` where they give no figures, as simulated ones, or not any more. */
  progress: z
    .object({
      bytes_total: z.number(),
      bytes_sent: z.number(),
      bytes_left: z.number(),
      bytes_per_second: z.number().nullable(),
      expected_downtime_ms: z.number().nullable(),
      /** How long the guest stood still; `null` until it is known. */
      downtime_ms: z.number().nullable(),
      elapsed_ms: z.number(),
    })
    .nullable(),
  /** The same in one line. */
  summary: z.string(),
});
export type MigrationView = z.infer<typeof migrationView>;

/** An instance's story, oldest first. `complete` is false when Temporal could not be asked. */
export const historyView = z.object({
  instance_id: uuid,
  complete: z.boolean(),
  items: z.array(
    z.object({
      time: timestamp,
      kind: z.enum(TIMELINE_KINDS),
      text: z.string(),
      workflow_id: z.string().nullable(),
      web_ui: z.string().nullable(),
    }),
  ),
});
export type HistoryView = z.infer<typeof historyView>;

/** One page of a list. `next_page` is the token of the page after it; `null` on the last. */
export function resultsPage<Item extends z.ZodType>(item: Item) {
  return z.object({ items: z.array(item), next_page: z.string().nullable() });
}
export type ResultsPage<Item> = { items: Item[]; next_page: string | null };

/** Query strings carry text: a page's parameters are coerced. */
export const pageParams = z.object({
  limit: z.coerce.number().int().min(1).max(MAX_PAGE_LIMIT).optional(),
  page_token: z.string().max(1024).optional(),
  sort_by: z.enum(['id_ascending', 'name_ascending', 'name_descending']).optional(),
});
