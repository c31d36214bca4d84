import { type InstanceRecord, instanceFacts } from '../../db/queries/read-instance.ts';
import { cooldownEnd, DEFAULT_AUTO_RESTART_POLICY } from '../../model/auto-restart.ts';
import { isLiveMigration } from '../../model/external-state.ts';
import type { InstanceView } from '../../wire/operator-api/instances.ts';

/** An instance as the API answers it. */
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
    intended_state: instance.intendedState,
  };
}
