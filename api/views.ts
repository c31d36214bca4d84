/** From rows to what the wire shows. */

import type { AccessTokenRow } from '../db/queries/access-tokens.ts';
import type { CompletedRecord } from '../db/queries/list-audit-log.ts';
import type { InstanceRecord } from '../db/queries/read-instance.ts';
import { instanceFacts } from '../db/queries/read-instance.ts';
import type { affinityGroup, operation, project, sled } from '../db/schema.ts';
import { cooldownEnd, DEFAULT_AUTO_RESTART_POLICY } from '../model/auto-restart.ts';
import { type DrainEntry, type DrainProgress, describeDrain } from '../model/drain.ts';
import { isLiveMigration } from '../model/external-state.ts';
import { LATE_AFTER_LEASES } from '../model/lease.ts';
import type { ReconcilerName, ReconcilerPass } from '../model/reconcilers.ts';
import type { AccessTokenView } from '../wire/operator-api/access-tokens.ts';
import type { AffinityGroupMember, AffinityGroupView } from '../wire/operator-api/affinity-groups.ts';
import type { AuditLogEntry } from '../wire/operator-api/audit-log.ts';
import type { DrainView } from '../wire/operator-api/drains.ts';
import type { InstanceView } from '../wire/operator-api/instances.ts';
import type { OperationProgress, OperationView } from '../wire/operator-api/operations.ts';
import type { ProjectView, QuotaView } from '../wire/operator-api/projects.ts';
import type { ReconcilerPassView } from '../wire/operator-api/reconcilers.ts';
import type { SledView } from '../wire/operator-api/sleds.ts';

/** The Oxide API shows a sled's rack; this installation is one. */
const RACK_ID = '00000000-0000-4000-8000-000000000001';
/** And a user's silo: this installation is one, too. */
export const SILO_ID = '00000000-0000-4000-8000-000000000002';
/** Whoever acts without a token. */
export const LOCAL_USER_ID = '00000000-0000-4000-8000-000000000003';

export function viewProject(row: typeof project.$inferSelect): ProjectView {
  return {
    id: row.id,
    name: row.name,
    description: row.description,
    time_created: row.timeCreated.toISOString(),
    time_modified: row.timeModified.toISOString(),
  };
}

export function viewQuota(row: typeof project.$inferSelect): QuotaView {
  return {
    cpus: row.quotaCpus,
    memory: row.quotaMemoryBytes,
    cpus_in_use: row.chargedCpus,
    memory_in_use: row.chargedMemoryBytes,
  };
}

export function viewInstance(record: InstanceRecord): InstanceView {
  const { instance, active, target, externalState } = record;
  const cooldownEnds = cooldownEnd({
    timeLastAutoRestarted: instance.timeLastAutoRestarted,
    cooldownSeconds: instance.autoRestartCooldownSeconds,
  });
  const stateUpdated = Math.max(
    ...[
      instance.timeStateUpdated,
      active?.timeStateUpdated,
      record.migration?.timeSourceUpdated,
      record.migration?.timeTargetUpdated,
    ].map((time) => time?.getTime() ?? 0),
  );
  return {
    id: instance.id,
    name: instance.name,
    description: instance.description,
    hostname: instance.hostname,
    project_id: instance.projectId,
    ncpus: instance.ncpus,
    memory: instance.memoryBytes,
    run_state: externalState,
    time_created: instance.timeCreated.toISOString(),
    time_modified: instance.timeModified.toISOString(),
    time_run_state_updated: new Date(stateUpdated).toISOString(),
    auto_restart_enabled: (instance.autoRestartPolicy ?? DEFAULT_AUTO_RESTART_POLICY) !== 'never',
    auto_restart_policy: instance.autoRestartPolicy,
    auto_restart_cooldown_seconds: instance.autoRestartCooldownSeconds,
    auto_restart_cooldown_expiration:
      cooldownEnds !== null && cooldownEnds > new Date() ? cooldownEnds.toISOString() : null,
    time_last_auto_restarted: instance.timeLastAutoRestarted?.toISOString() ?? null,
    restart_priority: instance.restartPriority,
    boot_disk_id: null,
    cpu_platform: null,
    enable_jumbo_frames: false,
    sled_id: externalState === 'stopped' || externalState === 'failed' ? null : (active?.sledId ?? null),
    migration_target_sled_id: isLiveMigration(instanceFacts(record)) ? (target?.sledId ?? null) : null,
  };
}

export function viewSled(row: typeof sled.$inferSelect, vmmCount: number): SledView {
  return {
    id: row.id,
    baseboard: { part: 'mooring', serial: row.name, revision: 0 },
    rack_id: RACK_ID,
    policy:
      row.policy === 'expunged'
        ? { kind: 'expunged' }
        : { kind: 'in_service', provision_policy: row.policy === 'in_service' ? 'provisionable' : 'non_provisionable' },
    state: row.policy === 'expunged' ? 'decommissioned' : 'active',
    usable_hardware_threads: row.threads,
    usable_physical_ram: row.memoryBytes,
    time_created: row.timeCreated.toISOString(),
    time_modified: row.timeModified.toISOString(),
    name: row.name,
    address: row.address,
    threads: row.threads,
    memory: row.memoryBytes,
    threads_reserved: row.reservedThreads,
    memory_reserved: row.reservedMemoryBytes,
    vmm_count: vmmCount,
    provision_state: row.policy,
    lease: viewLease(row),
    declared_dead:
      row.timeDeclaredDead === null || row.declaredDeadBy === null
        ? null
        : { time: row.timeDeclaredDead.toISOString(), by: row.declaredDeadBy },
  };
}

/** By this process's clock: for people. Verdicts are the database's. */
function viewLease(row: typeof sled.$inferSelect): SledView['lease'] {
  const { leaseMs, leaseRenewedAt, leaseConfirmedAt, fencingSince } = row;
  if (leaseMs === null || leaseRenewedAt === null || fencingSince === null) return null;
  const age = Date.now() - (leaseConfirmedAt?.getTime() ?? 0);
  return {
    seconds: leaseMs / 1000,
    standing: age < leaseMs * LATE_AFTER_LEASES ? 'held' : age < leaseMs ? 'late' : 'lapsed',
    time_renewed: leaseRenewedAt.toISOString(),
    time_expires: new Date(leaseRenewedAt.getTime() + leaseMs).toISOString(),
    fencing_since: fencingSince.toISOString(),
  };
}

export function viewDrain(
  progress: DrainProgress,
  run: { readonly begun: Date; readonly ended: Date | null; readonly webUi: string | null },
): DrainView {
  const named = ({ instanceId, name }: DrainEntry) => ({ instance_id: instanceId, name });
  return {
    sled_id: progress.sledId,
    state: progress.state,
    summary: describeDrain(progress),
    total: progress.total,
    moved: progress.moved,
    ended: progress.ended,
    moving: progress.moving.map((entry) => ({ ...named(entry), destination: entry.detail })),
    waiting: progress.waiting.map((entry) => ({ ...named(entry), until: entry.detail })),
    could_not_move: progress.couldNotMove.map((entry) => ({ ...named(entry), reason: entry.detail })),
    parallel: progress.parallel,
    time_started: run.begun.toISOString(),
    time_ended: run.ended?.toISOString() ?? null,
    web_ui: run.webUi,
  };
}

export function viewReconcilerPass(name: ReconcilerName, { summary, found }: ReconcilerPass): ReconcilerPassView {
  const snake = (key: string) => key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
  return { name, summary, found: Object.fromEntries(Object.entries(found).map(([key, value]) => [snake(key), value])) };
}

export function viewOperation(
  row: typeof operation.$inferSelect,
  progress: OperationProgress | null,
  webUi: string | null,
): OperationView {
  return {
    id: row.id,
    kind: row.kind,
    instance_id: row.instanceId,
    state: row.timeEnded === null ? 'running' : 'done',
    outcome: row.succeeded === null ? null : row.succeeded ? 'succeeded' : 'failed',
    error: row.error === null ? null : { ...row.error },
    progress,
    time_started: row.timeStarted.toISOString(),
    time_ended: row.timeEnded?.toISOString() ?? null,
    web_ui: webUi,
  };
}

/** Source: the Oxide API's `AuditLogEntry`. What it has no word for is a built-in user there. */
export function viewAuditEntry(row: CompletedRecord): AuditLogEntry {
  const byToken = row.actor === 'operator' && row.actorId !== null ? row.actorId : null;
  return {
    id: row.id,
    actor:
      byToken === null
        ? { kind: 'user_builtin', user_builtin_id: LOCAL_USER_ID }
        : { kind: 'silo_user', silo_id: SILO_ID, silo_user_id: byToken },
    auth_method: byToken === null ? null : 'access_token',
    credential_id: byToken,
    operation_id: row.operation,
    request_id: row.requestId,
    request_uri: row.requestUri,
    result: viewAuditResult(row),
    source_ip: row.sourceIp ?? '0.0.0.0',
    user_agent: row.userAgent,
    time_started: row.timeStarted.toISOString(),
    time_completed: row.timeCompleted.toISOString(),
    actor_kind: row.actor,
    actor_name: row.actorName,
    subject_kind: row.subjectKind,
    subject: row.subject,
    project_id: row.projectId,
    saga_operation_id: row.sagaOperationId,
  };
}

function viewAuditResult(row: CompletedRecord): AuditLogEntry['result'] {
  switch (row.result) {
    case 'success':
      return { kind: 'success', http_status_code: row.httpStatus ?? 200 };
    case 'error':
      return {
        kind: 'error',
        http_status_code: row.httpStatus ?? 500,
        error_code: row.errorCode,
        error_message: row.errorMessage ?? '',
      };
    default:
      return { kind: 'unknown' };
  }
}

export function viewAffinityGroup(row: typeof affinityGroup.$inferSelect): AffinityGroupView {
  return {
    id: row.id,
    name: row.name,
    description: row.description,
    policy: row.policy,
    failure_domain: row.failureDomain,
    project_id: row.projectId,
    time_created: row.timeCreated.toISOString(),
    time_modified: row.timeModified.toISOString(),
  };
}

export function viewAffinityMember({ instance, externalState }: InstanceRecord): AffinityGroupMember {
  return { type: 'instance', value: { id: instance.id, name: instance.name, run_state: externalState } };
}

/** A token as its administrators see it: never its secret. */
export function viewToken(row: AccessTokenRow): AccessTokenView {
  return {
    id: row.id,
    name: row.name,
    role: row.role,
    project_id: row.projectId,
    time_created: row.timeCreated.toISOString(),
    time_expires: row.timeExpires?.toISOString() ?? null,
  };
}
