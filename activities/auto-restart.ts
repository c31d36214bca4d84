/** Auto-restart: begins the starts of instances that failed and are meant to run, as far as there is room for them. */
import type { Database } from '../db/connect.ts';
import { autoRestartFacts, countOpenRestarts, findRestartCandidates } from '../db/queries/find-restart-candidates.ts';
import { pickSled } from '../db/queries/pick-sled.ts';
import { readDatabaseTime } from '../db/queries/read-database-time.ts';
import type { InstanceRecord } from '../db/queries/read-instance.ts';
import { type Room, readQuotaRoom, readSledRoom } from '../db/queries/read-room.ts';
import { autoRestartVerdict } from '../model/auto-restart.ts';
import type { AutoRestartFindings } from '../model/reconcilers.ts';
import { RESTART_PRIORITIES } from '../model/states.ts';
import type { WorkflowStarter } from '../temporal/workflow-starter.ts';
import { forEach } from './for-each.ts';

/** How many instances one pass looks at, and how many starts it begins. */
const MAX_CANDIDATES = 500;
export const MAX_STARTS_A_PASS = 20;
/** How many automatic starts may be under way at a time, so that a sled's death does not storm the others. */
export const MAX_OPEN_RESTARTS = 20;

/**
 * One pass: critical instances first, and only so many at a time. A start is begun only where a sled and the quota have room for it beside those begun before in this pass, so
 * that a full installation isn't stormed by starts that can only be refused.
 */
export async function restartInstances(
  db: Database,
  workflows: Pick<WorkflowStarter, 'autoRestart' | 'isStarting'>,
): Promise<AutoRestartFindings> {
  const candidates = await findRestartCandidates(db, MAX_CANDIDATES);
  const started: string[] = [];
  const coolingDown: string[] = [];
  const withoutRoom: string[] = [];
  const postponed: string[] = [];
  if (candidates.length > 0) {
    const now = await readDatabaseTime(db);
    const sleds = await readSledRoom(db);
    const quotas = await readQuotaRoom(db, [...new Set(candidates.map(({ instance }) => instance.projectId))]);
    const eligible: InstanceRecord['instance'][] = [];
    for (const record of candidates) {
      const { verdict } = autoRestartVerdict({ ...autoRestartFacts(record), failedStarts: record.failedStarts }, now);
      if (verdict === 'cooling-down') coolingDown.push(record.instance.id);
      if (verdict === 'eligible') eligible.push(record.instance);
    }
    // Those that failed lately come last among the candidates, and yet before those that are less urgent.
    eligible.sort((a, b) => urgencyOf(a) - urgencyOf(b));
    const room = MAX_OPEN_RESTARTS - (await countOpenRestarts(db));
    // Those that an earlier pass began and that no worker has come to yet: the database does not know of them.
    const starting = eligible.length > room ? await startingAmong(workflows, eligible) : new Set<string>();
    const mayStart = Math.min(MAX_STARTS_A_PASS, room - starting.size);
    for (const instance of eligible) {
      if (starting.has(instance.id)) continue;
      if (started.length >= mayStart) {
        postponed.push(instance.id);
        continue;
      }
      const quota = quotas.find(({ id }) => id === instance.projectId);
      const full = sleds.filter((sled) => !fits(instance, sled)).map(({ id }) => id);
      const picked =
        quota !== undefined && fits(instance, quota) && full.length < sleds.length
          ? await pickSled(db, {
              instanceId: instance.id,
              ncpus: instance.ncpus,
              memoryBytes: instance.memoryBytes,
              excludeSledIds: full,
            })
          : null;
      if (picked === null) {
        withoutRoom.push(instance.id);
        continue;
      }
      // One that is being started already is somebody else's.
      if (!(await workflows.autoRestart(instance.id, instance.name))) continue;
      started.push(instance.id);
      for (const taken of [quota, sleds.find(({ id }) => id === picked.id)]) {
        if (taken === undefined) continue;
        taken.cpus -= instance.ncpus;
        taken.memoryBytes -= instance.memoryBytes;
      }
    }
  }
  return { candidates: candidates.length, started, coolingDown, withoutRoom, postponed };
}

/** How many questions to Temporal are open at a time. */
const ASKED_AT_A_TIME = 20;

/** Which of these instances have a start under way, as Temporal knows it. */
async function startingAmong(
  workflows: Pick<WorkflowStarter, 'isStarting'>,
  instances: readonly InstanceRecord['instance'][],
): Promise<Set<string>> {
  const starting = new Set<string>();
  await forEach(instances, ASKED_AT_A_TIME, async ({ id }) => {
    if (await workflows.isStarting(id)) starting.add(id);
  });
  return starting;
}

const urgencyOf = ({ restartPriority }: InstanceRecord['instance']) => RESTART_PRIORITIES.indexOf(restartPriority);

function fits(instance: { ncpus: number; memoryBytes: number }, room: Room): boolean {
  return instance.ncpus <= room.cpus && instance.memoryBytes <= room.memoryBytes;
}
