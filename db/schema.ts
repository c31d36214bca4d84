/**
 * The tables of section 2 of docs/design.md, with every rule that SQL can express. What a check constraint can't see
 * (capacity, quota, ownership of linked rows) is enforced by the triggers in `migrations/`.
 */
import { sql } from 'drizzle-orm';
import {
  type AnyPgColumn,
  bigint,
  boolean,
  check,
  customType,
  index,
  integer,
  jsonb,
  pgEnum,
  pgTable,
  primaryKey,
  text,
  timestamp,
  uniqueIndex,
  uuid,
} from 'drizzle-orm/pg-core';
import { ACCESS_ROLES, AUDIT_ACTORS, AUDIT_RESULTS } from '../model/access.ts';
import type { OperationError } from '../model/failures.ts';
import {
  AFFINITY_KINDS,
  AFFINITY_POLICIES,
  AUTO_RESTART_POLICIES,
  CHANGE_KINDS,
  DEATH_CAUSES,
  FAILURE_DOMAINS,
  INSTANCE_STATES,
  INTENDED_STATES,
  KEYED_CALLS,
  MIGRATION_STATES,
  OPERATION_KINDS,
  RESERVATION_KINDS,
  RESTART_PRIORITIES,
  SLED_POLICIES,
  START_REASONS,
  VMM_STATES,
} from '../model/states.ts';

export const instanceState = pgEnum('instance_state', INSTANCE_STATES);
export const intendedState = pgEnum('intended_state', INTENDED_STATES);
export const vmmState = pgEnum('vmm_state', VMM_STATES);
export const migrationState = pgEnum('migration_state', MIGRATION_STATES);
export const reservationKind = pgEnum('reservation_kind', RESERVATION_KINDS);
export const sledPolicy = pgEnum('sled_policy', SLED_POLICIES);
export const autoRestartPolicy = pgEnum('auto_restart_policy', AUTO_RESTART_POLICIES);
export const startReason = pgEnum('start_reason', START_REASONS);
export const operationKind = pgEnum('operation_kind', OPERATION_KINDS);
export const restartPriority = pgEnum('restart_priority', RESTART_PRIORITIES);
export const deathCause = pgEnum('death_cause', DEATH_CAUSES);
export const keyedCall = pgEnum('keyed_call', KEYED_CALLS);
export const changeKind = pgEnum('change_kind', CHANGE_KINDS);

export const accessRole = pgEnum('access_role', ACCESS_ROLES);
export const auditActor = pgEnum('audit_actor', AUDIT_ACTORS);
export const auditResult = pgEnum('audit_result', AUDIT_RESULTS);

export const affinityKind = pgEnum('affinity_kind', AFFINITY_KINDS);
export const affinityPolicy = pgEnum('affinity_policy', AFFINITY_POLICIES);
export const failureDomain = pgEnum('failure_domain', FAILURE_DOMAINS);

/** A transaction's number, 64 bits wide: it never wraps around. As text, since no JavaScript number holds it. */
const transactionNumber = customType<{ data: string }>({ dataType: () => 'xid8' });
/** A SHA-256 hash. */
const hash = customType<{ data: Buffer }>({ dataType: () => 'bytea' });
const moment = (name: string) => timestamp(name, { withTimezone: true, mode: 'date' });
/** Bytes and generations fit exactly into a JavaScript number; the check constraints keep them there. */
const exact = (name: string) => bigint(name, { mode: 'number' });

export const project = pgTable(
  'project',
  {
    id: uuid('id').primaryKey(),
    name: text('name').notNull(),
    description: text('description').notNull(),
    /** `null` is unlimited. */
    quotaCpus: integer('quota_cpus'),
    quotaMemoryBytes: exact('quota_memory_bytes'),
    /** Kept by a trigger on `provisioning_charge`. */
    chargedCpus: integer('charged_cpus').notNull().default(0),
    chargedMemoryBytes: exact('charged_memory_bytes').notNull().default(0),
    timeCreated: moment('time_created').notNull().defaultNow(),
    timeModified: moment('time_modified').notNull().defaultNow(),
    timeDeleted: moment('time_deleted'),
  },
  (table) => [
    uniqueIndex('project_name').on(table.name).where(sql`time_deleted IS NULL`),
    check('project_charged_not_negative', sql`charged_cpus >= 0 AND charged_memory_bytes >= 0`),
  ],
);

export const sled = pgTable(
  'sled',
  {
    id: uuid('id').primaryKey(),
    name: text('name').notNull(),
    /** `host:port` of its agent, in the one spelling of `model/host-address.ts`. */
    address: text('address').notNull(),
    threads: integer('threads').notNull(),
    memoryBytes: exact('memory_bytes').notNull(),
    policy: sledPolicy('policy').notNull().default('in_service'),
    /** It has joined: its agent is known by certificates alone. */
    identified: boolean('identified').notNull().default(false),
    /** Kept by a trigger on `sled_reservation`. */
    reservedThreads: integer('reserved_threads').notNull().default(0),
    reservedMemoryBytes: exact('reserved_memory_bytes').notNull().default(0),
    /** How long its lease is, in milliseconds; `null`: it has never renewed one, so it is without fencing. */
    leaseMs: integer('lease_ms'),
    /** When the control plane received the renewal whose lease ends last. */
    leaseRenewedAt: moment('lease_renewed_at'),
    /** When a renewal was received last in which the agent reported that it holds its lease: only then it may run guests. */
    leaseConfirmedAt: moment('lease_confirmed_at'),
    /** When it renewed for the first time. */
    fencingSince: moment('fencing_since'),
    /** Rises with each declaration that the sled is dead. */
    leaseEpoch: exact('lease_epoch').notNull().default(0),
    /** Set from the declaration that the sled is dead until it has proved that nothing of what it lost still runs. */
    timeDeclaredDead: moment('time_declared_dead'),
    declaredDeadBy: deathCause('declared_dead_by'),
    /** When it answered a call last: written at a change, and about once a minute. `null`: it has never answered. */
    lastAnsweredAt: moment('last_answered_at'),
    /** Since when it gives no answer to calls; `null` while it answers. Proves nothing of its guests. */
    silentSince: moment('silent_since'),
    /** What its agent says of itself (`GET /agent`); `null` of one that doesn't know the question. */
    agentId: uuid('agent_id'),
    /** The same, of an agent that keeps it with its data: no other one answers for this sled while VMMs live on it. */
    keptAgentId: uuid('kept_agent_id'),
    agentVersion: text('agent_version'),
    /** What keeps its agent from doing its work, a sentence each. */
    agentTrouble: text('agent_trouble').array().notNull().default(sql`'{}'::text[]`),
    /** An agent answers there that is not its own, or takes no orders of this installation: it takes no VMM. */
    anotherAnswers: boolean('another_answers').notNull().default(false),
    /** The CPU models that guests there can be given, the default first; `null`: its agent doesn't tell them apart. */
    cpuModels: text('cpu_models').array(),
    timeCreated: moment('time_created').notNull().defaultNow(),
    timeModified: moment('time_modified').notNull().defaultNow(),
    timeExpunged: moment('time_expunged'),
    /** When an operator expunged it; until nothing of it can run any more its policy is not `expunged` yet. */
    expungingSince: moment('expunging_since'),
  },
  (table) => [
    uniqueIndex('sled_name').on(table.name).where(sql`policy <> 'expunged'`),
    uniqueIndex('sled_address').on(table.address).where(sql`policy <> 'expunged'`),
    // One host is one sled, however its address is written.
    uniqueIndex('sled_agent').on(table.agentId).where(sql`policy <> 'expunged'`),
    check('sled_kept_agent', sql`kept_agent_id IS NULL OR kept_agent_id IS NOT DISTINCT FROM agent_id`),
    check('sled_capacity', sql`reserved_threads <= threads AND reserved_memory_bytes <= memory_bytes`),
    check('sled_reserved_not_negative', sql`reserved_threads >= 0 AND reserved_memory_bytes >= 0`),
    check('sled_lease_whole', sql`num_nulls(lease_ms, lease_renewed_at, fencing_since) IN (0, 3)`),
    check('sled_lease_length', sql`lease_ms >= 1`),
    check('sled_death_whole', sql`(time_declared_dead IS NULL) = (declared_dead_by IS NULL)`),
    check('sled_expunged_time', sql`(policy = 'expunged') = (time_expunged IS NOT NULL)`),
    check('sled_expunging', sql`expunging_since IS NULL OR policy <> 'in_service'`),
  ],
);

/** An invitation to join: the one-time token's hash, never the token. */
export const sledInvite = pgTable(
  'sled_invite',
  {
    id: uuid('id').primaryKey(),
    sledName: text('sled_name').notNull(),
    /** SHA-256 of the token's secret, in hexadecimal. */
    secretHash: text('secret_hash').notNull(),
    timeCreated: moment('time_created').notNull().defaultNow(),
    timeExpires: moment('time_expires').notNull(),
    timeUsed: moment('time_used'),
    sledId: uuid('sled_id').references(() => sled.id),
    /** SHA-256 of the public key that was signed for it: the same key once more is the same call, whose answer was lost. */
    keyFingerprint: text('key_fingerprint'),
  },
  (table) => [
    uniqueIndex('sled_invite_secret').on(table.secretHash),
    check('sled_invite_used', sql`num_nulls(time_used, sled_id, key_fingerprint) IN (0, 3)`),
  ],
);

/** The certificates of sleds that are good, as long as they have not expired; any other is refused. */
export const sledCertificate = pgTable(
  'sled_certificate',
  {
    /** In hexadecimal. */
    serial: text('serial').primaryKey(),
    sledId: uuid('sled_id')
      .notNull()
      .references(() => sled.id),
    timeIssued: moment('time_issued').notNull().defaultNow(),
    timeExpires: moment('time_expires').notNull(),
    timeRevoked: moment('time_revoked'),
  },
  (table) => [index('sled_certificate_sled').on(table.sledId)],
);

export const instance = pgTable(
  'instance',
  {
    id: uuid('id').primaryKey(),
    projectId: uuid('project_id')
      .notNull()
      .references(() => project.id),
    name: text('name').notNull(),
    description: text('description').notNull(),
    hostname: text('hostname').notNull(),
    ncpus: integer('ncpus').notNull(),
    memoryBytes: exact('memory_bytes').notNull(),
    state: instanceState('state').notNull(),
    activeVmmId: uuid('active_vmm_id').references((): AnyPgColumn => vmm.id),
    targetVmmId: uuid('target_vmm_id').references((): AnyPgColumn => vmm.id),
    migrationId: uuid('migration_id').references((): AnyPgColumn => migration.id),
    stateGeneration: exact('state_generation').notNull().default(1),
    intendedState: intendedState('intended_state').notNull(),
    /** `null` is unset: the default, `best_effort`, holds. */
    autoRestartPolicy: autoRestartPolicy('auto_restart_policy'),
    autoRestartCooldownSeconds: integer('auto_restart_cooldown_seconds').notNull().default(300),
    timeLastAutoRestarted: moment('time_last_auto_restarted'),
    /** The same before the automatic start that is under way: it comes back if that fails through its sled. */
    timeAutoRestartedBefore: moment('time_auto_restarted_before'),
    restartPriority: restartPriority('restart_priority').notNull().default('normal'),
    lastStartReason: startReason('last_start_reason'),
    timeStateUpdated: moment('time_state_updated').notNull().defaultNow(),
    timeCreated: moment('time_created').notNull().defaultNow(),
    timeModified: moment('time_modified').notNull().defaultNow(),
    timeDeleted: moment('time_deleted'),
  },
  (table) => [
    uniqueIndex('instance_name').on(table.projectId, table.name).where(sql`time_deleted IS NULL`),
    index('instance_list').on(table.projectId, table.id).where(sql`time_deleted IS NULL`),
    uniqueIndex('instance_active_vmm').on(table.activeVmmId).where(sql`active_vmm_id IS NOT NULL`),
    uniqueIndex('instance_target_vmm').on(table.targetVmmId).where(sql`target_vmm_id IS NOT NULL`),
    // What the updater scan looks for, so that it costs the same whatever the number of instances.
    index('instance_migrating').on(table.id).where(sql`migration_id IS NOT NULL`),
    index('instance_ending')
      .on(table.id)
      .where(sql`state = 'vmm' AND (intended_state <> 'running' OR time_deleted IS NOT NULL)`),
    index('instance_failed_list').on(table.projectId, table.name).where(sql`state = 'failed' AND time_deleted IS NULL`),
    index('instance_failed').on(table.id).where(sql`state = 'failed' AND time_deleted IS NULL`),
    index('instance_auto_restart')
      .on(table.id)
      .where(sql`intended_state = 'running' AND last_start_reason = 'auto_restart' AND time_deleted IS NULL`),
    // What the reaper looks for, the oldest first; and what a project that was deleted still has.
    index('instance_deleted').on(table.timeDeleted).where(sql`time_deleted IS NOT NULL`),
    index('instance_deleted_project').on(table.projectId).where(sql`time_deleted IS NOT NULL`),
    check('instance_vmm_iff_active', sql`(state = 'vmm') = (active_vmm_id IS NOT NULL)`),
    check('instance_target_iff_migration', sql`(target_vmm_id IS NOT NULL) = (migration_id IS NOT NULL)`),
    check('instance_target_needs_vmm', sql`target_vmm_id IS NULL OR state = 'vmm'`),
    check('instance_destroyed_is_deleted', sql`state <> 'destroyed' OR time_deleted IS NOT NULL`),
    check('instance_size', sql`ncpus >= 1 AND memory_bytes >= 1`),
    check('instance_generation', sql`state_generation >= 1`),
  ],
);

export const vmm = pgTable(
  'vmm',
  {
    id: uuid('id').primaryKey(),
    instanceId: uuid('instance_id')
      .notNull()
      .references((): AnyPgColumn => instance.id),
    /** Unknown only where a claim was unwound that had never arrived. */
    sledId: uuid('sled_id').references(() => sled.id),
    ip: text('ip'),
    port: integer('port'),
    state: vmmState('state').notNull(),
    stateGeneration: exact('state_generation').notNull().default(1),
    unwindingSince: moment('unwinding_since'),
    failureReason: text('failure_reason'),
    /** The CPU that its guest sees, by the name that sleds offer it by; `null`: its sled doesn't tell them apart. */
    cpuModel: text('cpu_model'),
    /** Set before the sled is commanded to run the guest or to migrate it in: from then on only its answer settles a doubt. */
    commandedAt: moment('commanded_at'),
    /** The VMM's sled is off, as an operator stated or by its lease: its answer is awaited no more, as with an expunged sled. */
    vouchedGoneAt: moment('vouched_gone_at'),
    timeStateUpdated: moment('time_state_updated').notNull().defaultNow(),
    timeCreated: moment('time_created').notNull().defaultNow(),
    timeDeleted: moment('time_deleted'),
  },
  (table) => [
    index('vmm_instance').on(table.instanceId).where(sql`time_deleted IS NULL`),
    index('vmm_sled').on(table.sledId).where(sql`time_deleted IS NULL`),
    // An instance's history, and whether anything is left of an instance that is reaped.
    index('vmm_history').on(table.instanceId, table.timeCreated),
    index('vmm_deleted').on(table.timeDeleted).where(sql`time_deleted IS NOT NULL`),
    index('vmm_gone')
      .on(table.instanceId)
      .where(sql`time_deleted IS NULL AND state IN ('destroyed', 'failed', 'saga_unwound')`),
    uniqueIndex('vmm_address')
      .on(table.ip, table.port)
      .where(sql`time_deleted IS NULL AND state NOT IN ('destroyed', 'failed', 'saga_unwound')`),
    check('vmm_failed_iff_reason', sql`(state = 'failed') = (failure_reason IS NOT NULL)`),
    check('vmm_placed', sql`state = 'saga_unwound' OR (sled_id IS NOT NULL AND ip IS NOT NULL AND port IS NOT NULL)`),
    check('vmm_unwound_was_unwinding', sql`state <> 'saga_unwound' OR unwinding_since IS NOT NULL`),
    check('vmm_generation', sql`state_generation >= 1`),
  ],
);

export const migration = pgTable(
  'migration',
  {
    id: uuid('id').primaryKey(),
    instanceId: uuid('instance_id')
      .notNull()
      .references((): AnyPgColumn => instance.id),
    sourceVmmId: uuid('source_vmm_id')
      .notNull()
      .references((): AnyPgColumn => vmm.id),
    targetVmmId: uuid('target_vmm_id')
      .notNull()
      .references((): AnyPgColumn => vmm.id),
    sourceState: migrationState('source_state').notNull().default('pending'),
    sourceGeneration: exact('source_generation').notNull().default(1),
    timeSourceUpdated: moment('time_source_updated'),
    targetState: migrationState('target_state').notNull().default('pending'),
    targetGeneration: exact('target_generation').notNull().default(1),
    timeTargetUpdated: moment('time_target_updated'),
    timeCreated: moment('time_created').notNull().defaultNow(),
  },
  (table) => [
    index('migration_instance').on(table.instanceId),
    index('migration_source').on(table.sourceVmmId),
    uniqueIndex('migration_target').on(table.targetVmmId),
    index('migration_created').on(table.timeCreated),
    check('migration_two_vmms', sql`source_vmm_id <> target_vmm_id`),
  ],
);

export const sledReservation = pgTable(
  'sled_reservation',
  {
    vmmId: uuid('vmm_id')
      .primaryKey()
      .references(() => vmm.id),
    instanceId: uuid('instance_id')
      .notNull()
      .references(() => instance.id),
    sledId: uuid('sled_id')
      .notNull()
      .references(() => sled.id),
    threads: integer('threads').notNull(),
    memoryBytes: exact('memory_bytes').notNull(),
    kind: reservationKind('kind').notNull(),
  },
  (table) => [
    index('sled_reservation_sled').on(table.sledId),
    index('sled_reservation_instance').on(table.instanceId),
    uniqueIndex('sled_reservation_one_active').on(table.instanceId).where(sql`kind = 'active'`),
    uniqueIndex('sled_reservation_one_target').on(table.instanceId).where(sql`kind = 'target'`),
    index('sled_reservation_tombstoned').on(table.instanceId).where(sql`kind = 'tombstoned'`),
    check('sled_reservation_size', sql`threads >= 1 AND memory_bytes >= 1`),
  ],
);

export const provisioningCharge = pgTable(
  'provisioning_charge',
  {
    instanceId: uuid('instance_id')
      .primaryKey()
      .references(() => instance.id),
    projectId: uuid('project_id')
      .notNull()
      .references(() => project.id),
    /** What was charged: a release gives back exactly this. */
    cpus: integer('cpus').notNull(),
    memoryBytes: exact('memory_bytes').notNull(),
  },
  (table) => [
    index('provisioning_charge_project').on(table.projectId),
    check('provisioning_charge_size', sql`cpus >= 1 AND memory_bytes >= 1`),
  ],
);

/** An affinity or anti-affinity group of a project's instances. */
export const affinityGroup = pgTable(
  'affinity_group',
  {
    id: uuid('id').primaryKey(),
    projectId: uuid('project_id')
      .notNull()
      .references(() => project.id),
    kind: affinityKind('kind').notNull(),
    name: text('name').notNull(),
    description: text('description').notNull(),
    policy: affinityPolicy('policy').notNull(),
    failureDomain: failureDomain('failure_domain').notNull(),
    timeCreated: moment('time_created').notNull().defaultNow(),
    timeModified: moment('time_modified').notNull().defaultNow(),
  },
  (table) => [uniqueIndex('affinity_group_name').on(table.projectId, table.kind, table.name)],
);

export type AffinityGroupRow = typeof affinityGroup.$inferSelect;

/** Who belongs to a group. The triggers in `migrations/` say who may. */
export const affinityGroupMember = pgTable(
  'affinity_group_member',
  {
    groupId: uuid('group_id')
      .notNull()
      .references(() => affinityGroup.id, { onDelete: 'cascade' }),
    instanceId: uuid('instance_id')
      .notNull()
      .references(() => instance.id),
  },
  (table) => [
    primaryKey({ columns: [table.groupId, table.instanceId], name: 'affinity_group_member_pkey' }),
    index('affinity_group_member_instance').on(table.instanceId),
  ],
);

/**
 * Where each instance lives on the network: the sled, the VMM and its address; nowhere (all NULL) once it was removed,
 * so that pollers see the removal. An instance that never ran has no row.
 */
export const instanceNetwork = pgTable(
  'instance_network',
  {
    instanceId: uuid('instance_id')
      .primaryKey()
      .references(() => instance.id),
    sledId: uuid('sled_id').references(() => sled.id),
    vmmId: uuid('vmm_id').references(() => vmm.id),
    ip: text('ip'),
    port: integer('port'),
    /** Rises by one with each change. */
    generation: exact('generation').notNull().default(1),
    /** The transaction that made the last change: what pollers go by. */
    changedIn: transactionNumber('changed_in').notNull().default(sql`pg_current_xact_id()`),
    timeModified: moment('time_modified').notNull().defaultNow(),
  },
  (table) => [
    index('instance_network_changed').on(table.changedIn, table.instanceId),
    index('instance_network_vmm').on(table.vmmId).where(sql`vmm_id IS NOT NULL`),
    check('instance_network_whole', sql`num_nulls(sled_id, vmm_id, ip, port) IN (0, 4)`),
    check('instance_network_generation', sql`generation >= 1`),
  ],
);

/** Up to where the network's past is forgotten, one row: a poller that has not read as far begins anew. */
export const networkHorizon = pgTable(
  'network_horizon',
  {
    singleton: boolean('singleton').primaryKey().default(true),
    /** The newest change among the entries that went with their instances. */
    forgottenTo: transactionNumber('forgotten_to').notNull().default(sql`'0'`),
    /** The run of transaction numbers that the network's changes are numbered in: `database_history()` of then. */
    databaseHistory: text('database_history').notNull().default(''),
  },
  () => [check('network_horizon_one_row', sql`singleton`)],
);

/** One run of a saga, by the run id of its workflow. Its outcome is written in the saga's own last transaction. */
export const operation = pgTable(
  'operation',
  {
    id: uuid('id').primaryKey(),
    kind: operationKind('kind').notNull(),
    instanceId: uuid('instance_id')
      .notNull()
      .references(() => instance.id),
    /** The VMM that this operation makes; `null` until its claim. */
    vmmId: uuid('vmm_id'),
    workflowId: text('workflow_id').notNull(),
    succeeded: boolean('succeeded'),
    error: jsonb('error').$type<OperationError>(),
    timeStarted: moment('time_started').notNull().defaultNow(),
    timeEnded: moment('time_ended'),
  },
  (table) => [
    index('operation_instance').on(table.instanceId, table.timeStarted),
    index('operation_started').on(table.timeStarted),
    index('operation_open').on(table.timeStarted).where(sql`time_ended IS NULL`),
    index('operation_vmm').on(table.vmmId),
    index('operation_ended').on(table.timeEnded).where(sql`time_ended IS NOT NULL`),
    check('operation_outcome', sql`(time_ended IS NULL) = (succeeded IS NULL)`),
    check('operation_error', sql`(error IS NOT NULL) = (succeeded IS NOT DISTINCT FROM false)`),
  ],
);

/**
 * Which installation this database is: one row, made with the database. Its id is in the names of what the installation has on a
 * Temporal namespace, so that several can share one.
 */
export const installation = pgTable(
  'installation',
  {
    singleton: boolean('singleton').primaryKey().default(true),
    id: text('id').notNull().default(sql`substr(replace(gen_random_uuid()::text, '-', ''), 1, 12)`),
    timeCreated: moment('time_created').notNull().defaultNow(),
  },
  () => [check('installation_one_row', sql`singleton`), check('installation_id', sql`id ~ '^[0-9a-z]{1,32}$'`)],
);

/** When the control plane last could take a renewal of a lease: one row, written by every API every second or so. */
export const leaseService = pgTable(
  'lease_service',
  {
    singleton: boolean('singleton').primaryKey().default(true),
    lastBeatAt: moment('last_beat_at').notNull(),
  },
  () => [check('lease_service_one_row', sql`singleton`)],
);

/** The times at which the control plane could not, as the first beat after each wrote them down. */
export const leaseServiceGap = pgTable(
  'lease_service_gap',
  {
    id: exact('id').primaryKey().generatedAlwaysAsIdentity(),
    beganAt: moment('began_at').notNull(),
    endedAt: moment('ended_at').notNull(),
  },
  (table) => [index('lease_service_gap_ended').on(table.endedAt)],
);

/** A client's key for a call, so that the same call again, after its answer was lost, is the same operation. */
export const idempotencyKey = pgTable(
  'idempotency_key',
  {
    key: uuid('key').primaryKey(),
    call: keyedCall('call').notNull(),
    /** `null` for a create that was refused. */
    instanceId: uuid('instance_id').references(() => instance.id),
    /** What the request asked for, as a SHA-256 hash: the key names that alone. */
    requestDigest: hash('request_digest').notNull(),
    /** The sending of the request that may begin its saga, and until when another one may not; `null`: it is over. */
    takenBy: uuid('taken_by').notNull(),
    takenUntil: moment('taken_until'),
    /** `null` until the saga has begun, and for a call that needed none. */
    operationId: uuid('operation_id'),
    /** Why the request was refused, where that was final: `code` and `message` of a `Refusal`. */
    refusal: jsonb('refusal'),
    timeCreated: moment('time_created').notNull().defaultNow(),
  },
  (table) => [
    check('idempotency_key_about', sql`instance_id IS NOT NULL OR refusal IS NOT NULL`),
    index('idempotency_key_age').on(table.timeCreated),
    check('idempotency_key_digest', sql`octet_length(request_digest) = 32`),
    index('idempotency_key_instance').on(table.instanceId),
    index('idempotency_key_operation').on(table.operationId).where(sql`operation_id IS NOT NULL`),
  ],
);

/** An operator's token. The secret itself is nowhere: only its hash. */
export const accessToken = pgTable(
  'access_token',
  {
    id: uuid('id').primaryKey(),
    name: text('name').notNull(),
    secretHash: hash('secret_hash').notNull(),
    role: accessRole('role').notNull(),
    /** `null`: on the whole fleet. */
    projectId: uuid('project_id').references(() => project.id),
    timeCreated: moment('time_created').notNull().defaultNow(),
    /** `null`: never; for the token that an embedded stack makes for its own user. */
    timeExpires: moment('time_expires'),
    timeRevoked: moment('time_revoked'),
  },
  (table) => [
    uniqueIndex('access_token_secret').on(table.secretHash),
    uniqueIndex('access_token_name').on(table.name).where(sql`time_revoked IS NULL`),
    index('access_token_project').on(table.projectId),
    check('access_token_hash', sql`octet_length(secret_hash) = 32`),
  ],
);

export type AccessTokenRow = typeof accessToken.$inferSelect;

/**
 * Who did what. No foreign keys: a record outlives its subject. One without `time_completed` was begun, and either
 * goes on or its end could not be written; the reaper completes it as `unknown`.
 */
export const auditLog = pgTable(
  'audit_log',
  {
    id: uuid('id').primaryKey(),
    timeStarted: moment('time_started').notNull(),
    timeCompleted: moment('time_completed'),
    actor: auditActor('actor').notNull(),
    actorName: text('actor_name').notNull(),
    /** The token, or the sled. */
    actorId: uuid('actor_id'),
    /** `null` for what acted by itself. */
    sourceIp: text('source_ip'),
    userAgent: text('user_agent'),
    requestId: text('request_id').notNull(),
    requestUri: text('request_uri').notNull(),
    operation: text('operation').notNull(),
    /** On what: its kind, and its id or the name that the request gave. */
    subjectKind: text('subject_kind'),
    subject: text('subject'),
    projectId: uuid('project_id'),
    /** The operation (a saga's run) that it began or joined. */
    sagaOperationId: uuid('saga_operation_id'),
    result: auditResult('result'),
    httpStatus: integer('http_status'),
    errorCode: text('error_code'),
    errorMessage: text('error_message'),
  },
  (table) => [
    index('audit_log_completed').on(table.timeCompleted, table.id).where(sql`time_completed IS NOT NULL`),
    index('audit_log_open').on(table.timeStarted).where(sql`time_completed IS NULL`),
    index('audit_log_open_operation').on(table.sagaOperationId).where(sql`time_completed IS NULL`),
    check('audit_log_completed_has_result', sql`(time_completed IS NULL) = (result IS NULL)`),
  ],
);

/** What changed, newest last: written by triggers, kept small by them, read by each API for all who watch (docs/events.md). */
export const changeLog = pgTable(
  'change_log',
  {
    id: exact('id').primaryKey().generatedAlwaysAsIdentity(),
    kind: changeKind('kind').notNull(),
    objectId: uuid('object_id').notNull(),
    /** `null`: it is the fleet's. */
    projectId: uuid('project_id'),
    /** The transaction that made the change: what readers go by. */
    changedIn: transactionNumber('changed_in').notNull().default(sql`pg_current_xact_id()`),
    /** By which those who watch are woken about once a second at most. */
    timeNoted: moment('time_noted').notNull().default(sql`clock_timestamp()`),
  },
  (table) => [index('change_log_changed').on(table.changedIn)],
);

/** Up to where the log of changes is forgotten, one row: a reader that has not read as far begins anew. */
export const changeHorizon = pgTable(
  'change_horizon',
  {
    singleton: boolean('singleton').primaryKey().default(true),
    /** The newest change among those that were forgotten. */
    forgottenTo: transactionNumber('forgotten_to').notNull().default(sql`'0'`),
    /** The run of transaction numbers that the changes are numbered in: `database_history()` of then. */
    databaseHistory: text('database_history').notNull().default(''),
  },
  () => [check('change_horizon_one_row', sql`singleton`)],
);
