/**
 * Small sabotages of the product, each of which a test must catch. The text that is replaced must stand in its file exactly
 * as often as it says, so that the list can't outlive the code that it speaks of.
 *
 * Where PostgreSQL's own rules are a second line of defence, the sabotage comes twice: alone, and with that rule gone too.
 */

export interface Edit {
  readonly file: string;
  readonly find: string;
  readonly replace: string;
  /** How often the text stands in the file; all of them are replaced. Default 1. */
  readonly times?: number;
}

export interface Mutant {
  readonly name: string;
  /** What would go wrong. */
  readonly why: string;
  readonly edits: readonly Edit[];
  /** Test files that catch it, the quickest first. */
  readonly caughtBy: readonly string[];
}

const START = 'workflows/instance-start.ts';
const MIGRATE = 'workflows/instance-migrate.ts';
const UPDATE = 'workflows/instance-update.ts';
const UNWIND = 'workflows/unwind.ts';
const SAGA = 'workflows/saga.ts';
const REPORT = 'db/transactions/apply-report.ts';
const BEGIN_UNWIND = 'db/transactions/begin-unwind.ts';
const FINISH_UNWIND = 'db/transactions/finish-unwind.ts';
const CLAIM = 'db/transactions/claim-start.ts';
const COMMIT = 'db/transactions/commit-update.ts';
const FAIL = 'db/transactions/fail-vmm.ts';
const FAIL_SLED = 'db/transactions/fail-sled.ts';
const RECORD_STOP = 'db/transactions/record-stop.ts';
const DELETE_INSTANCE = 'db/transactions/delete-instance.ts';
const SCHEMA = 'db/migrations/0000_schema.sql';
const DECISION = 'model/update-decision.ts';
const SHOWN = 'model/external-state.ts';
const STATES = 'model/states.ts';
const LEGALITY = 'model/legality.ts';
const FORCE_STOP = 'model/force-stop.ts';
const AUTO_RESTART = 'model/auto-restart.ts';
const ANSWER = 'model/sled-answer.ts';
const CLIENT = 'activities/sled-client.ts';
const SLED_CALLS = 'activities/sled-calls.ts';
const STEPS = 'workflows/steps.ts';
const ATTEMPTS = 'activities/attempts.ts';
const STEP_SLEDS = 'activities/step-sleds.ts';
const REGISTER = 'activities/register-vmm.ts';
const COMMAND = 'activities/command-vmm.ts';
const STOP = 'activities/instance-stop.ts';
const MEANINGS = 'model/failures.ts';
const WATCHER = 'activities/watcher.ts';
const UPDATER = 'activities/updater.ts';
const REPORTS = 'api/routes/reports.ts';
const OPERATIONS = 'api/operations.ts';
const OUTCOMES = 'db/operation-outcomes.ts';
const SESSION_DEFAULTS_TEST = 'test/database/session-defaults.test.ts';
const CONNECTION = 'db/database-client.ts';
const MIGRATE_DATABASE = 'db/migrate.ts';
const REAP_EXPIRED = 'db/transactions/reap-expired.ts';
const NETWORK_CHANGES = 'db/queries/read-network-changes.ts';
const PICK_SLED = 'db/queries/pick-sled.ts';
const CLAIM_MIGRATION = 'db/transactions/claim-migration.ts';
const SEND_GUEST = 'sled-agent/qemu/send-guest.ts';
const CPU_MODELS = 'sled-agent/qemu/cpu-models.ts';
const CPU_PLACEMENT_TEST = 'test/placement/cpu-models.test.ts';
const CPU_RULES_TEST = 'test/rules/cpu-models.test.ts';
const RETENTION_TEST = 'test/database/retention.test.ts';
const POLLING_TEST = 'test/network/polling.test.ts';
const STARTER = 'temporal/workflow-starter.ts';
const SURROUNDINGS_TEST = 'test/processes/surroundings.test.ts';
const PROTOCOL = 'wire/sled-protocol.ts';
const AGENT = 'sled-agent/agent.ts';
const STORE = 'sled-agent/vmm-store.ts';
const DISK = 'sled-agent/disk.ts';
const SIMULATED = 'sled-agent/simulated-hypervisor.ts';
const LEASE = 'model/lease.ts';
const RENEW = 'db/transactions/renew-lease.ts';
const DECLARE = 'db/transactions/declare-dead.ts';
const BEAT = 'db/transactions/beat-lease-service.ts';

const WORD = 'model/operator-word.ts';
const EXPUNGE = 'db/transactions/expunge-sled.ts';
const DOCTOR_SLEDS = 'doctor/sleds.ts';
const MOVE_SLED = 'db/transactions/move-sled.ts';
const JOIN_SLED = 'db/transactions/join-sled.ts';
const WORD_RULES_TEST = 'test/rules/operator-word.test.ts';
const WORD_TEST = 'test/trust/operator-word.test.ts';
const EXPUNGED_AGENT_TEST = 'test/sled-agent/expunged.test.ts';
const IDENTITY_TEST = 'test/trust/sled-identity.test.ts';
const LEASE_TEST = 'test/rules/lease.test.ts';
const LEASES_TEST = 'test/trust/leases.test.ts';
const ACCESS = 'api/access.ts';
const PAGES = 'platform/http/web-pages.ts';
const MARKS = 'wire/answer-mark.ts';
const TAKE_KEY = 'db/transactions/take-key.ts';
const ACCESS_RULES = 'model/access.ts';
const WRITE_AUDIT = 'db/transactions/write-audit.ts';

const TOKENS_TEST = 'test/trust/tokens.test.ts';
const ENDPOINTS_TEST = 'test/trust/every-endpoint.test.ts';
const LIMITS_TEST = 'test/trust/limits.test.ts';
const AUDIT_TEST = 'test/trust/audit.test.ts';
const ACCESS_RULES_TEST = 'test/rules/access.test.ts';
const ORDER_TEST = 'test/sagas/order.test.ts';
const SILENT_TEST = 'test/sagas/silent-sleds.test.ts';
const SILENT_DATABASE_TEST = 'test/database/silent-sleds.test.ts';
const DATABASE_TEST = 'test/database/transactions.test.ts';
const ACTIVITIES_TEST = 'test/database/activities.test.ts';
const DECISION_TEST = 'test/rules/update-decision.test.ts';
const SHOWN_TEST = 'test/rules/external-state.test.ts';
const LEGALITY_TEST = 'test/rules/legality.test.ts';
const ANSWERS_TEST = 'test/rules/sled-answers.test.ts';
const FORCE_STOP_TEST = 'test/rules/force-stop.test.ts';
const ANOTHER_AGENT_TEST = 'test/rules/another-agent.test.ts';
const INSTALLATIONS_TEST = 'test/sled-agent/installations.test.ts';
const DESCRIPTION_TEST = 'test/sled-agent/agent-description.test.ts';
const PAUSES_TEST = 'test/database/restart-pauses.test.ts';
const AUTO_RESTART_TEST = 'test/rules/auto-restart.test.ts';
const OPERATIONS_TEST = 'test/lifecycle/operations.test.ts';
const KEYS_TEST = 'test/sagas/idempotency.test.ts';
const OUTCOMES_TEST = 'test/database/operation-outcomes.test.ts';
const HUNG_TEST = 'test/database/hung-connections.test.ts';
const SESSIONS_TEST = 'test/database/sessions.test.ts';
const MIGRATIONS_TEST = 'test/database/migrations.test.ts';
const PLACEMENT_TEST = 'test/placement/groups.test.ts';
const AGENT_TEST = 'test/sled-agent/protocol.test.ts';
const DISK_TEST = 'test/sled-agent/disk-faults.test.ts';
const DISK_FULL_TEST = 'test/sled-agent/disk-full.test.ts';
const QEMU_DISK_TEST = 'test/sled-agent/qemu-disk-faults.test.ts';
const GUEST_POWER_TEST = 'test/sled-agent/guest-power.test.ts';

/** A trigger's rule on its own: taken away where the sabotage is to get past it. */
const NO_GENERATION_TRIGGER: Edit = {
  file: SCHEMA,
  find: 'CREATE TRIGGER instance_generation_rises BEFORE UPDATE ON instance\n  FOR EACH ROW EXECUTE FUNCTION guard_instance_generation();',
  replace: 'SELECT 1;',
};
const NO_VMM_TRIGGER: Edit = {
  file: SCHEMA,
  find: 'CREATE TRIGGER vmm_guard BEFORE UPDATE ON vmm FOR EACH ROW EXECUTE FUNCTION guard_vmm();',
  replace: 'SELECT 1;',
};
const NO_MIGRATION_TRIGGER: Edit = {
  file: SCHEMA,
  find: 'CREATE TRIGGER migration_guard BEFORE UPDATE ON migration FOR EACH ROW EXECUTE FUNCTION guard_migration();',
  replace: 'SELECT 1;',
};

const NEWER_OR_SAME: Edit = {
  file: REPORT,
  find: 'state_generation < ${reported.gen}::bigint AS newer',
  replace: 'state_generation <= ${reported.gen}::bigint AS newer',
};
const ANY_GENERATION: Edit = { ...NEWER_OR_SAME, replace: '${reported.gen}::bigint > 0 AS newer' };
const REVIVED: Edit = {
  file: REPORT,
  find: 'newer AND alive AS takes_state',
  replace: 'newer AS takes_state',
};
const SIDE_NOT_FINAL: Edit = {
  file: REPORT,
  find: "${state} NOT IN ('completed', 'failed') AND ${generation}",
  replace: "${state} NOT IN ('pending') AND ${generation}",
};
const GENERATION_BUMPED: Edit = {
  file: FINISH_UNWIND,
  find: 'SELECT id, name, project_id, active_vmm_id, target_vmm_id FROM instance WHERE id = ${instanceId} FOR UPDATE\n    )',
  replace:
    'SELECT id, name, project_id, active_vmm_id, target_vmm_id FROM instance WHERE id = ${instanceId} FOR UPDATE\n    ), bumped AS (\n      UPDATE instance SET state_generation = state_generation + 1 WHERE id = ${instanceId}\n    )',
};
const UNGUARDED_CLAIM: Edit = {
  file: CLAIM,
  find: 'AND state_generation = ${instance.stateGeneration} AND time_deleted IS NULL',
  replace: 'AND time_deleted IS NULL',
};

export const MUTANTS: readonly Mutant[] = [
  // --- The sagas as workflows ---
  {
    name: 'start: the compensation is dropped',
    why: 'a start that failed keeps its reservation, its charge and its VMM',
    edits: [
      {
        file: SAGA,
        find: 'const ended = await endAttempt(',
        replace:
          "if (kind === 'start') throw operationFailure(kind, 'unwound', error, failure);\n      const ended = await endAttempt(",
      },
    ],
    caughtBy: [ORDER_TEST],
  },
  {
    name: 'migrate: the compensation is dropped',
    why: 'a migration that failed leaves a target that refuses the next one',
    edits: [
      {
        file: SAGA,
        find: 'const ended = await endAttempt(',
        replace:
          "if (kind === 'migrate') throw operationFailure(kind, 'unwound', error, failure);\n      const ended = await endAttempt(",
      },
    ],
    caughtBy: [ORDER_TEST],
  },
  {
    name: 'start: the compensation is registered after its step',
    why: 'a claim that took effect although its answer was lost is never undone',
    edits: [
      {
        file: SAGA,
        find: 'return undo(saga, attempt, failure, before);',
        replace:
          "if (kind === 'start' && !claimed)\n        throw operationFailure(kind, 'refused', operationError(kind, failure), failure);\n      return undo(saga, attempt, failure, before);",
      },
      {
        file: SAGA,
        find: '    try {\n      return await',
        replace: '    let claimed = false;\n    try {\n      return await',
      },
      {
        file: SAGA,
        find: 'saga.steps(attempt)',
        replace: 'saga.steps(attempt, () => {\n        claimed = true;\n      })',
      },
      {
        file: SAGA,
        find: 'steps(attempt: Attempt): Promise<Result>;',
        replace: 'steps(attempt: Attempt, claimed: () => void): Promise<Result>;',
      },
      { file: START, find: 'async steps(attempt) {', replace: 'async steps(attempt, claimed) {' },
      {
        file: START,
        find: 'const lookedAtMs = await register(',
        replace: 'claimed();\n      const lookedAtMs = await register(',
      },
    ],
    caughtBy: [ORDER_TEST],
  },
  {
    name: 'the compensations run inside the scope that was cancelled',
    why: 'a start that an operator cancels is never undone',
    edits: [
      { file: SAGA, find: 'return CancellationScope.nonCancellable(async () => {', replace: 'return (async () => {' },
      {
        file: SAGA,
        find: '    return saga.spared(attempt);\n  });',
        replace: '    return saga.spared(attempt);\n  })();',
      },
    ],
    caughtBy: [ORDER_TEST],
  },
  {
    name: 'migrate: a cancellation tears down past the point of no return',
    why: 'the destination may have the guest already: it would be killed',
    edits: [
      {
        file: MIGRATE,
        find: 'await CancellationScope.nonCancellable(() =>\n        migrateIn',
        replace: 'await (() =>\n        migrateIn',
      },
      {
        file: MIGRATE,
        find: 'sourceAddress: claim.sourceAddress, lookedAtMs }),\n      );',
        replace: 'sourceAddress: claim.sourceAddress, lookedAtMs }))();',
      },
      { file: MIGRATE, find: 'import { CancellationScope, sleep,', replace: 'import { sleep,' },
    ],
    caughtBy: [ORDER_TEST],
  },
  {
    name: 'migrate: a migration that is under way is not spared',
    why: 'a refused second word ends a guest that is arriving',
    edits: [{ file: MIGRATE, find: 'sparesRunning: () => true', replace: 'sparesRunning: () => false' }],
    caughtBy: [ORDER_TEST],
  },
  {
    name: 'start: a VMM that its sled does not know is spared',
    why: 'a start whose VMM is gone would be called a success',
    edits: [
      {
        file: START,
        find: "sparesRunning: (failure) => !failedWith(failure, 'NoSuchVmm'),",
        replace: 'sparesRunning: () => true,',
      },
    ],
    caughtBy: [ORDER_TEST],
  },
  {
    name: 'unwind: the sled is not asked to unregister',
    why: 'a guest runs on although its start was undone',
    edits: [{ file: UNWIND, find: 'await unregisterVmm(request);', replace: '' }],
    caughtBy: [ORDER_TEST],
  },
  {
    name: 'unwind: a silent sled that was told to run is given up',
    why: 'its guest may run while the next start runs it elsewhere',
    edits: [
      {
        file: UNWIND,
        find: 'await unregisterVmm(request);',
        replace: 'await unregisterVmmBriefly(request).catch(() => {});',
      },
    ],
    caughtBy: [ORDER_TEST],
  },
  {
    name: 'unwind: a guest that was spared leaves its operation open',
    why: 'its caller waits until the scan finds it, and is told that it was undone',
    edits: [
      {
        file: 'db/transactions/begin-unwind.ts',
        find: 'operation.id = own.id AND spared AND',
        replace: 'operation.id = own.id AND false AND',
      },
    ],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'unwind: of a migration whose destination was commanded, without its refusal',
    why: 'a task that is done again ends the guest that arrives',
    edits: [
      {
        file: 'db/transactions/begin-unwind.ts',
        find: 'AND NOT spared AND NOT commanded_in AND',
        replace: 'AND NOT spared AND',
      },
    ],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'unwind: a migration that is past its point of no return is not carried forward',
    why: 'nobody tells its destination, and it is never over',
    edits: [
      { file: UNWIND, find: "if (begun.forward) return 'commanded';", replace: "if (begun.forward) return 'spared';" },
    ],
    caughtBy: [ORDER_TEST],
  },
  {
    name: 'step: what is settled within the task is not known to be',
    why: 'a sled that refused is asked again, as an activity',
    edits: [
      {
        file: STEPS,
        find: 'if (isCancellation(error) || isFinalFailure(error)) throw error;',
        replace: 'if (isCancellation(error) && !isFinalFailure(error)) throw error;',
      },
    ],
    caughtBy: [ORDER_TEST],
  },
  {
    name: 'step: what is not settled within the task is given up',
    why: 'a sled that is busy for a moment undoes the start',
    edits: [
      {
        file: STEPS,
        find: 'if (isCancellation(error) || isFinalFailure(error)) throw error;',
        replace: 'throw isCancellation(error) || isFinalFailure(error) ? error : error;',
      },
    ],
    caughtBy: [ORDER_TEST],
  },
  {
    name: 'step: the first execution as an activity counts as the first try',
    why: 'a stop that came during the try within the task is overrun',
    edits: [{ file: ATTEMPTS, find: 'return !isLocal || attempt > 1;', replace: 'return !isLocal && attempt > 1;' }],
    caughtBy: [ACTIVITIES_TEST],
  },
  {
    name: 'step: a silent sled is asked again within the task',
    why: 'a few silent sleds hold all the places for workflow tasks',
    edits: [
      { file: STEP_SLEDS, find: 'if (isLocal && this.isSilent(address))', replace: 'if (isLocal && address === "")' },
    ],
    caughtBy: [ACTIVITIES_TEST],
  },
  {
    name: 'unwind: silence counts as the sled’s answer',
    why: 'the reservation is released while the VMM may still be there',
    edits: [{ file: UNWIND, find: '    () => false,', replace: '    () => true,' }],
    caughtBy: [ORDER_TEST],
  },
  {
    name: 'update: completes with a signal pending',
    why: 'the fact that was signalled is left to the scan, or for ever',
    edits: [
      { file: UPDATE, find: '    needed = false;\n    rounds += 1;', replace: '    rounds += 1;' },
      {
        file: UPDATE,
        find: '    const result = await updateInstance(input);',
        replace: '    const result = await updateInstance(input);\n    needed = false;',
      },
    ],
    caughtBy: [ORDER_TEST],
  },

  // --- Reports ---
  {
    name: 'report: generations are compared with >=',
    why: 'a report of the same generation overwrites a newer fact (here the trigger refuses it: the reporter is never heard)',
    edits: [NEWER_OR_SAME],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'report: generations are compared with >=, and no trigger watches',
    why: 'a report of the same generation overwrites a newer fact',
    edits: [NEWER_OR_SAME, NO_VMM_TRIGGER],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'report: the generation guard is dropped, and no trigger watches',
    why: 'a late report brings an old state back',
    edits: [ANY_GENERATION, NO_VMM_TRIGGER],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'report: revives a dead VMM',
    why: 'two guests: the instance may run elsewhere by now (here the trigger refuses it)',
    edits: [REVIVED],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'report: revives a dead VMM, and no trigger watches',
    why: 'two guests: the instance may run elsewhere by now',
    edits: [REVIVED, NO_VMM_TRIGGER],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'report: is written to a VMM that is being unwound',
    why: 'a start that was undone shows Running, or Failed',
    edits: [{ file: REPORT, find: 'WHERE NOT unwinding AND NOT deleted', replace: 'WHERE NOT deleted' }],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'report: migration_out is written for whoever sends it',
    why: 'the target’s word about itself counts as the source’s',
    edits: [
      {
        file: REPORT,
        find: 'AND ${sql.identifier(`${side}_vmm_id`)} = open.id',
        replace: 'AND open.id IN (source_vmm_id, target_vmm_id)',
      },
    ],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'report: a side of a migration changes after its last word',
    why: 'a migration that failed would be promoted (here the trigger refuses it)',
    edits: [{ ...SIDE_NOT_FINAL, replace: '${generation}' }],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'report: a side of a migration changes after its last word, and no trigger watches',
    why: 'a migration that failed would be promoted',
    edits: [{ ...SIDE_NOT_FINAL, replace: '${generation}' }, NO_MIGRATION_TRIGGER],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'report: no signal after it',
    why: 'the instance waits for the scan, and for ever where none runs',
    edits: [
      {
        file: REPORTS,
        find: "if (applied.verdict === 'applied') await signalAfterReport",
        replace: "if (applied.verdict !== 'applied') await signalAfterReport",
      },
    ],
    caughtBy: [ACTIVITIES_TEST],
  },
  {
    name: 'report: the signal depends on what this report changed',
    why: 'a report that is sent again because its signal failed finds nothing new, and never signals',
    edits: [{ file: REPORTS, find: "if (applied.verdict === 'applied') await", replace: 'if (applied.wrote) await' }],
    caughtBy: [ACTIVITIES_TEST],
  },
  {
    name: 'report: the protocol admits saga_unwound',
    why: 'a sled agent could undo a saga',
    edits: [
      {
        file: PROTOCOL,
        find: '  state: z.enum(WIRE_VMM_STATES),',
        replace: "  state: z.enum([...WIRE_VMM_STATES, 'saga_unwound']),",
      },
    ],
    caughtBy: [ANSWERS_TEST],
  },
  {
    name: 'the answer to a command signals no update',
    why: 'a VMM that failed at once is found by the scan only',
    edits: [
      {
        file: SLED_CALLS,
        find: 'if (applied?.wrote) await signalAfterReport',
        replace: 'if (applied?.wrote === null) await signalIfNeeded',
      },
    ],
    caughtBy: [ACTIVITIES_TEST],
  },

  // --- The intent, between register and run ---
  {
    name: 'register: the intent is not read',
    why: 'a stop that came during the start is overrun: the guest runs',
    edits: [
      {
        file: REGISTER,
        find: "if (applied !== null && applied.intendedState !== 'running') throw stopRequested();",
        replace: '',
      },
    ],
    caughtBy: [ACTIVITIES_TEST],
  },
  {
    name: 'register: the VMM is marked as told although the user asked for stop',
    why: 'the unwind waits for a silent sled that was never told anything',
    edits: [
      {
        file: REPORT,
        find: '${saga.markCommanded ?? false} AND wanted.runs THEN',
        replace: '${saga.markCommanded ?? false} THEN',
      },
      {
        file: REPORT,
        find: '${saga.markCommanded ?? false} AND wanted.runs AND',
        replace: '${saga.markCommanded ?? false} AND',
      },
    ],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'run: a further command does not read the intent',
    why: 'a stop during a long silence of the sled is overrun when it comes back',
    edits: [
      {
        file: COMMAND,
        find: 'const looks = isTriedAgain() || Date.now()',
        replace: 'const looks = !isTriedAgain || Date.now()',
      },
    ],
    caughtBy: [ACTIVITIES_TEST],
  },
  {
    name: 'start: a sled that gives no answer ends it, whoever else would take it',
    why: 'one dead sled fails starts for which there is room',
    edits: [{ file: START, find: 'if (others !== null) {', replace: 'if (others !== null && leftMs < 0) {' }],
    caughtBy: [SILENT_TEST],
  },
  {
    name: 'start: an attempt that is given up ends the operation',
    why: 'its caller hears of a failure, and the instance is started all the same',
    edits: [
      {
        file: 'db/transactions/finish-unwind.ts',
        find: 'FROM linked WHERE NOT ${goesOn}::boolean',
        replace: 'FROM linked WHERE ${goesOn}::boolean IS NOT NULL',
      },
    ],
    caughtBy: [SILENT_DATABASE_TEST],
  },
  {
    name: 'start: its next attempt does not read the intent',
    why: 'a stop between two attempts is overrun',
    edits: [
      {
        file: CLAIM,
        find: "if (request.silentSledIds !== undefined && instance.intendedState !== 'running')",
        replace: "if (request.silentSledIds === null && instance.intendedState !== 'running')",
      },
    ],
    caughtBy: [SILENT_DATABASE_TEST],
  },
  {
    name: 'start: one that failed through its sled costs the cooldown',
    why: 'an instance waits for minutes although another sled could run it',
    edits: [
      {
        file: 'db/transactions/finish-unwind.ts',
        find: 'SET time_last_auto_restarted = time_auto_restarted_before',
        replace: 'SET time_last_auto_restarted = time_last_auto_restarted',
      },
    ],
    caughtBy: [SILENT_DATABASE_TEST],
  },
  {
    name: 'placement: a silent sled is as good as any',
    why: 'a dead sled is empty, so it is the best one',
    edits: [{ file: 'db/queries/pick-sled.ts', find: 'ORDER BY ${ails}, ', replace: 'ORDER BY ' }],
    caughtBy: [SILENT_DATABASE_TEST],
  },
  {
    name: 'the watcher believes whoever is at the address of a sled',
    why: 'another host’s "no such VMM" makes guests that run lost',
    edits: [
      {
        file: WATCHER,
        find: 'owner !== undefined && owner.id !== sled.id',
        replace: 'owner !== undefined && owner.id === ""',
      },
    ],
    caughtBy: [ACTIVITIES_TEST],
  },
  {
    name: 'a call believes whoever is at the address of a sled',
    why: 'another machine’s answers become this sled’s',
    edits: [
      { file: CLIENT, find: 'requireOwnAgent(sled, shown, what);\n      this.#require', replace: 'this.#require' },
    ],
    caughtBy: [ANOTHER_AGENT_TEST],
  },
  {
    name: 'another sled’s agent speaks for a sled of which no id is known',
    why: 'one host is two sleds: members of a group that must be apart start on one',
    edits: [
      {
        file: CLIENT,
        find: 'if (owner === undefined || owner === name) return;',
        replace: 'if (owner !== name) return;',
      },
    ],
    caughtBy: [ANOTHER_AGENT_TEST],
  },
  {
    name: 'a sled at whose address another one’s agent answers takes VMMs',
    why: 'one host is two sleds: what must be apart is not, and room is counted twice',
    edits: [{ file: 'db/queries/pick-sled.ts', find: ' AND NOT sled.another_answers', replace: '' }],
    caughtBy: [SILENT_DATABASE_TEST],
  },
  {
    name: 'whatever answers a call makes a sled one that takes VMMs again',
    why: 'what answers there is still another sled’s agent',
    edits: [
      {
        file: 'db/transactions/record-sled-answer.ts',
        find: 'silent_since = NULL${described}',
        replace: 'silent_since = NULL, another_answers = another_answers AND false${described}',
      },
    ],
    caughtBy: [SILENT_DATABASE_TEST],
  },
  {
    name: 'of two sleds that learn of one agent at once, both take VMMs',
    why: 'until the next pass of the watcher one host is two sleds',
    edits: [
      {
        file: 'db/transactions/record-sled-answer.ts',
        find: "await recordSledSilence(db, key, ['the agent",
        replace: "if (key === null) await recordSledSilence(db, key, ['the agent",
      },
    ],
    caughtBy: [SILENT_DATABASE_TEST],
  },
  {
    name: 'a sled agent takes the orders of every installation',
    why: 'the watcher of a copy of the database ends the original’s guests, which the copy does not know',
    edits: [
      {
        file: 'sled-agent/installation-keeper.ts',
        find: 'this.#kept === null || named === this.#kept) return;',
        replace: "this.#kept === null || named !== '') return;",
      },
    ],
    caughtBy: [INSTALLATIONS_TEST],
  },
  {
    name: 'a sled agent forgets whose orders it takes when it is started again',
    why: 'the copy whose watcher is first then ends every guest of the original',
    edits: [
      {
        file: 'sled-agent/installation-keeper.ts',
        find: 'this.#path === null ? null : readKept(this.#path);',
        replace: 'null;',
      },
    ],
    caughtBy: [INSTALLATIONS_TEST],
  },
  {
    name: 'another installation’s sled agent is believed to refuse',
    why: 'a copy takes what is no word on its VMMs for one: it fails what may run',
    edits: [{ file: CLIENT, find: 'if (error_code === ANOTHER_INSTALLATION)', replace: "if (error_code === '')" }],
    caughtBy: [INSTALLATIONS_TEST],
  },
  {
    name: 'a sled that takes another installation’s orders goes on taking VMMs',
    why: 'every start that is placed there fails, and nobody is told what is wrong',
    edits: [
      {
        file: WATCHER,
        find: 'inventory.reason instanceof AnotherInstallation) {',
        replace: 'inventory.reason === null) {',
      },
    ],
    caughtBy: [ACTIVITIES_TEST],
  },
  {
    name: '"no such VMM" is believed of who does not say who it is',
    why: 'a machine that took the address of a sled makes guests lost that run',
    edits: [
      {
        file: CLIENT,
        find: "case 'gone':\n        if (!proved) await this.#requireProof(sled, shown, what, timeoutMs);",
        replace: "case 'gone':",
      },
    ],
    caughtBy: [ANOTHER_AGENT_TEST],
  },
  {
    name: 'that it knows nothing of a VMM is believed of who does not say who it is',
    why: 'an unwind ends while the guest runs on the sled’s own machine',
    edits: [
      {
        file: CLIENT,
        find: "if (command === 'unregister' && !proved &&",
        replace: "if (command === 'read' && !proved &&",
      },
    ],
    caughtBy: [ANOTHER_AGENT_TEST],
  },
  {
    name: 'who does not know the question who it is proves that a VMM is gone',
    why: 'a sled’s own agent knows it: this is somebody else',
    edits: [
      {
        file: CLIENT,
        find: 'if (agent === null)\n      throw new AnotherAgent(',
        replace: 'if (what === "")\n      throw new AnotherAgent(',
      },
    ],
    caughtBy: [ANOTHER_AGENT_TEST],
  },
  {
    name: 'another machine at a sled’s address is its sign of life',
    why: 'nobody can say any more that the sled is powered off',
    edits: [
      {
        file: CLIENT,
        find: 'if (shown !== undefined) return keptAgentId == null || shown === keptAgentId;',
        replace: 'if (shown !== undefined) return true;',
      },
    ],
    caughtBy: [ANOTHER_AGENT_TEST],
  },
  {
    name: 'the watcher takes another machine’s agent for the sled’s own while VMMs live there',
    why: 'its "no such VMM" makes guests that run lost',
    edits: [
      {
        file: WATCHER,
        find: 'if (!sled.guests && (await adoptAgent(db, sled.id, agent))) return',
        replace: 'if (sled.guests || (await adoptAgent(db, sled.id, agent))) return',
      },
    ],
    caughtBy: [ACTIVITIES_TEST],
  },
  {
    name: 'the watcher takes whoever does not say who it is for an agent that has said it before',
    why: 'VMs are looked for where they are not, and nobody is told what is wrong',
    edits: [
      {
        file: WATCHER,
        find: 'if (described === null && sled.keptAgentId !== null',
        replace: 'if (described === null && sled.leaves',
      },
    ],
    caughtBy: [ACTIVITIES_TEST],
  },
  {
    name: 'a sled never gets another agent',
    why: 'one whose data were lost, with nothing on it, would be silent for ever',
    edits: [{ file: WATCHER, find: 'if (!sled.guests && (await', replace: 'if (sled.guests && (await' }],
    caughtBy: [ACTIVITIES_TEST],
  },
  {
    name: 'another machine’s agent is taken for the sled’s own by what was read when the pass began',
    why: 'a guest that has begun meanwhile is not known to the new one, and counts as lost: it runs twice',
    edits: [{ file: 'db/transactions/record-sled-answer.ts', find: 'if (rows.length > 0) return false;', replace: '' }],
    caughtBy: [ACTIVITIES_TEST],
  },
  {
    name: 'a VMM that no agent has spoken of makes who does not say who it is the sled’s trouble',
    why: 'an agent that others wrote would be silent during each start',
    edits: [{ file: 'db/queries/read-watched-sleds.ts', find: "AND vmm.state <> 'creating' AND", replace: 'AND' }],
    caughtBy: [ACTIVITIES_TEST],
  },
  {
    name: 'a step speaks to a sled without naming the agent that speaks for it',
    why: 'whoever answers at its address is believed',
    edits: [
      {
        file: SLED_CALLS,
        find: 'keptAgentId: sledAgentId }',
        replace: 'keptAgentId: null }',
      },
    ],
    caughtBy: [ACTIVITIES_TEST],
  },
  {
    name: 'an agent says that an id is kept which it makes anew at each start',
    why: 'after its restart it is taken for another machine, and its sled for silent',
    edits: [
      {
        file: 'sled-agent/agent-description.ts',
        find: 'agent_id_kept: this.#isKept,',
        replace: 'agent_id_kept: true,',
      },
    ],
    caughtBy: [DESCRIPTION_TEST],
  },
  {
    name: 'whoever speaks HTTP is an agent that doesn’t know who it is',
    why: 'a sled is added at a portal without a warning, and counts as one that answers',
    edits: [
      {
        file: 'activities/sled-client.ts',
        find: 'if (status >= 400 && isAgentsError(text)) return null;',
        replace: 'if (status >= 200) return null;',
      },
    ],
    caughtBy: ['test/rules/answer-marks.test.ts'],
  },
  {
    name: 'the API’s own error is an agent’s',
    why: 'a sled is added at the address of the API',
    edits: [
      {
        file: MARKS,
        find: 'readSledError(text) !== null && !controlPlaneError.safeParse(parseJson(text)).success',
        replace: 'readSledError(text) !== null',
      },
    ],
    caughtBy: ['test/rules/answer-marks.test.ts'],
  },
  {
    name: 'the watcher takes the API’s own error for a sled’s answer',
    why: 'a sled at the address of the API counts as one that answers, and is placed on',
    edits: [
      {
        file: 'activities/watcher.ts',
        find: "inventory.status === 'rejected' && (isNobody || ",
        replace: "inventory.status === 'rejected' && (",
      },
    ],
    caughtBy: ['test/trust/one-host-one-sled.test.ts'],
  },
  {
    name: 'an agent that others wrote must know who it is',
    why: 'section 7 asks nothing of the kind: it is added with a warning, and counts as silent',
    edits: [
      {
        file: 'activities/sled-client.ts',
        find: 'if (isSuccess(inventory) && sledInventory.safeParse(parseJson(inventory.text)).success) return null;',
        replace: '',
      },
    ],
    caughtBy: ['test/rules/answer-marks.test.ts'],
  },
  {
    name: 'a sled that leaves hears only that its certificate was revoked',
    why: 'its agent never ends the guests, and the expunge waits for ever',
    edits: [
      {
        file: 'db/transactions/apply-report.ts',
        find: "IS NULL THEN 'revoked' ELSE 'expunged' END",
        replace: "IS NULL THEN 'revoked' ELSE 'revoked' END",
      },
    ],
    caughtBy: [SILENT_DATABASE_TEST],
  },
  {
    name: 'an expunge seems to wait for a sled that is not believed',
    why: 'nobody says that only the operator’s word ends it',
    edits: [{ file: 'api/views/sled.ts', find: "unheard ? 'word' : 'sled'", replace: "'sled'" }],
    caughtBy: [SILENT_DATABASE_TEST],
  },
  {
    name: 'a sled joins elsewhere without a look at where it was',
    why: 'a copy of its data joins, and the guests that its own agent has there are never told to end',
    edits: [
      {
        file: 'api/routes/sled-identity.ts',
        find: 'former: moves ? await askFormerAddress(sleds, known) : null,',
        replace: 'former: moves ? { askedAddress: known.address, answers: false } : null,',
      },
    ],
    caughtBy: [IDENTITY_TEST],
  },
  {
    name: 'who joins elsewhere is believed though an agent answers where the sled was',
    why: 'a copy of its data has the same id and the same records',
    edits: [
      {
        file: JOIN_SLED,
        find: 'former: known.address === address ? null : former,',
        replace: 'former: { askedAddress: known.address, answers: false },',
      },
    ],
    caughtBy: [SILENT_DATABASE_TEST],
  },
  {
    name: 'a sled moves from an address that nobody has asked',
    why: 'its agent may answer at the one that it has got meanwhile',
    edits: [
      { file: MOVE_SLED, find: 'former === null ? from !== to : former.askedAddress !== from', replace: 'false' },
    ],
    caughtBy: [SILENT_DATABASE_TEST],
  },
  {
    name: 'another agent than the sled’s own reports of its VMMs',
    why: 'one that lacks the guests reports them failed, and they are started elsewhere while they run',
    edits: [
      {
        file: 'db/transactions/apply-report.ts',
        find: 'WHEN NOT sled.identified AND sled.kept_agent_id::text <> ',
        replace: 'WHEN false AND sled.kept_agent_id::text <> ',
      },
    ],
    caughtBy: [SILENT_DATABASE_TEST],
  },
  {
    name: 'an agent forgets what it reported while it was not taken for the sled’s own',
    why: 'it is taken for it a moment later, and the end of its VMM is never heard of',
    edits: [
      {
        file: 'sled-agent/reporter.ts',
        find: 'isFinalRefusal(status) && error.error_code !== FOREIGN_AGENT',
        replace: 'isFinalRefusal(status)',
      },
    ],
    caughtBy: ['test/rules/answer-marks.test.ts'],
  },
  {
    name: 'an agent’s reports don’t say who gives them',
    why: 'nobody can tell that it is another one than the sled’s own',
    edits: [{ file: 'sled-agent/reporter.ts', find: '{ [AGENT_ID_HEADER]: agentId }', replace: '{}' }],
    caughtBy: [DESCRIPTION_TEST],
  },
  {
    name: 'an agent starts with a copy of another one’s data',
    why: 'it speaks for the same sled, finds no guests, and reports them failed while they run',
    edits: [
      {
        file: 'sled-agent/server.ts',
        find: 'if (dataDir !== null) requireOwnPlace(dataDir, disk, options.movedData);',
        replace: '',
      },
    ],
    caughtBy: [DESCRIPTION_TEST],
  },
  {
    name: 'a folder of data that is another one is taken for the first',
    why: 'a copy on the same machine speaks for the sled',
    edits: [{ file: 'sled-agent/data-place.ts', find: 'known.inode !== here.inode', replace: 'false' }],
    caughtBy: [DESCRIPTION_TEST],
  },
  {
    name: 'hardware whose own id can’t be read is any hardware',
    why: 'a copy of a whole machine speaks for the sled, as an agent that is no superuser',
    edits: [
      {
        file: 'sled-agent/data-place.ts',
        find: 'return known.interfaces.some((address) => here.interfaces.includes(address));',
        replace: 'return null;',
      },
    ],
    caughtBy: [DESCRIPTION_TEST],
  },
  {
    name: 'a sled joins with a copy of another one’s data',
    why: 'it is taken for the sled’s own agent, and the sled is moved away from its guests',
    edits: [{ file: 'sled-agent/join.ts', find: '  requireOwnPlace(folder, disk, options.movedData);', replace: '' }],
    caughtBy: [DESCRIPTION_TEST],
  },
  {
    name: 'an agent’s answers don’t say who gives them',
    why: 'nobody hears that it is another one than the sled’s own',
    edits: [
      {
        file: 'sled-agent/agent-routes.ts',
        find: 'if (agentId !== null) reply.header(AGENT_ID_HEADER, agentId);',
        replace: '',
      },
    ],
    caughtBy: [DESCRIPTION_TEST],
  },
  {
    name: 'one agent may be two sleds',
    why: 'its room is counted twice, and members of a group share its host',
    edits: [{ file: SCHEMA, find: 'CREATE UNIQUE INDEX sled_agent ON', replace: 'CREATE INDEX sled_agent ON' }],
    caughtBy: [SILENT_DATABASE_TEST],
  },
  {
    name: 'a sled with VMMs may be moved to an agent that nothing proves to be its own',
    why: 'they are not found there, are called lost, and run twice',
    edits: [
      {
        file: MOVE_SLED,
        find: 'const own = knownAgentId !== null && knownAgentId === agentId;',
        replace: 'const own = true;',
      },
    ],
    caughtBy: [SILENT_DATABASE_TEST],
  },
  {
    name: 'an equal agent id moves the VMMs of a sled, whether or not it has them',
    why: 'those that a copy of the agent lacks are called lost, and run twice',
    edits: [
      {
        file: MOVE_SLED,
        find: 'const arrived = own && vmmIds !== null && missing.length === 0;',
        replace: 'const arrived = own;',
      },
    ],
    caughtBy: [SILENT_DATABASE_TEST],
  },
  {
    name: 'an agent that has not said what it has is taken to have everything',
    why: 'one that is not ready yet may have nothing',
    edits: [
      {
        file: MOVE_SLED,
        find: 'own && vmmIds !== null && missing.length === 0',
        replace: 'own && (vmmIds === null || missing.length === 0)',
      },
    ],
    caughtBy: [SILENT_DATABASE_TEST],
  },
  {
    name: 'a sled that answers at its address may be moved away from it',
    why: 'two agents speak for it, and its guests run at the former one',
    edits: [
      {
        file: WORD,
        find: "      if (answers) return refuse('answers');\n      if (!guests || off || arrived)",
        replace: '      if (!guests || off || arrived)',
      },
    ],
    caughtBy: [WORD_RULES_TEST],
  },
  {
    name: 'a sled that may hold its lease is moved on the operator’s word',
    why: 'its guests are called lost while the lease lets them run',
    edits: [
      {
        file: WORD,
        find: "      if (leased) return refuse('lease');\n      return poweredOff",
        replace: '      return poweredOff',
      },
    ],
    caughtBy: [WORD_RULES_TEST],
  },
  {
    name: 'join: the VMMs in the agent’s records are not named',
    why: 'a sled whose VMs run on can join nowhere else again',
    edits: [
      {
        file: 'sled-agent/vmm-store.ts',
        find: 'if (!holdsRecords(directory)) return [];',
        replace: 'if (directory !== "") return [];',
      },
    ],
    caughtBy: ['test/sled-agent/strangers.test.ts'],
  },
  {
    name: 'stop: told to one side of a migration only',
    why: 'the guest arrives on the other side and runs on',
    edits: [{ file: STOP, find: 'for (const vmm of living) {', replace: 'for (const vmm of living.slice(0, 1)) {' }],
    caughtBy: [ACTIVITIES_TEST],
  },
  {
    name: 'stop: a Failed instance stays Failed',
    why: 'who asks for stop gets Stopped',
    edits: [
      {
        file: RECORD_STOP,
        find: "if (instance.state === 'failed') {",
        replace: "if (instance.state === 'creating') {",
      },
    ],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'auto-restart: no pause after starts that failed',
    why: 'what is refused for good is tried at each pass, for ever, and each try is on record',
    edits: [{ file: AUTO_RESTART, find: 'refused ? count - 1 : count - 2', replace: '-1' }],
    caughtBy: [PAUSES_TEST],
  },
  {
    name: 'auto-restart: a pass does not look at how starts failed',
    why: 'the pause is decided, and nobody keeps it',
    edits: [
      {
        file: 'activities/auto-restart.ts',
        find: 'failedStarts: record.failedStarts }',
        replace: 'failedStarts: null }',
      },
    ],
    caughtBy: [PAUSES_TEST],
  },
  {
    name: 'auto-restart: failures before a start that succeeded count',
    why: 'an instance that ran is left alone for a quarter of an hour when it fails',
    edits: [
      {
        file: 'db/queries/find-restart-candidates.ts',
        find: "coalesce((SELECT max(time_ended) FROM operation ${recentStarts} AND succeeded), '-infinity')",
        replace: "'-infinity'",
      },
    ],
    caughtBy: [PAUSES_TEST],
  },
  {
    name: 'auto-restart: those that fail again and again are looked at first',
    why: 'enough of them hide all that are less urgent, for ever',
    edits: [
      {
        file: 'db/queries/find-restart-candidates.ts',
        find: 'OR failures > 1 OR coalesce(last_status < 500, false)',
        replace: '',
      },
    ],
    caughtBy: [PAUSES_TEST],
  },
  {
    name: 'auto-restart: one that failed lately comes after those that are less urgent',
    why: 'critical before normal before low',
    edits: [
      {
        file: 'activities/auto-restart.ts',
        find: 'eligible.sort((a, b) => urgencyOf(a) - urgencyOf(b));',
        replace: 'void urgencyOf;',
      },
    ],
    caughtBy: [PAUSES_TEST],
  },
  {
    name: 'auto-restart: ignores the intent',
    why: 'an instance that the user stopped starts by itself',
    edits: [
      {
        file: CLAIM,
        find: "if (request.reason === 'auto_restart') {",
        replace: "if (request.reason === 'auto_restart' && instance.intendedState === 'running') {",
      },
    ],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'auto-restart: ignores the cooldown',
    why: 'an instance that fails at once is started for ever, as fast as it can fail',
    edits: [
      {
        file: AUTO_RESTART,
        find: 'Math.max(cooldownEnd(facts)?.getTime() ?? 0, paused)',
        replace: 'Math.max(0, paused)',
      },
    ],
    caughtBy: [AUTO_RESTART_TEST],
  },
  {
    name: 'force-stop: believes a statement about a sled that answers',
    why: 'its guest runs on while the instance is started elsewhere',
    edits: [
      {
        file: FORCE_STOP,
        find: "sides.filter((side) => side.standing === 'silent').map(",
        replace:
          "sides.filter((side) => side.standing === 'silent' || (sledPoweredOff && side.standing === 'answers')).map(",
      },
    ],
    caughtBy: [FORCE_STOP_TEST],
  },

  // --- Claims ---
  {
    name: 'claim: the generation guard is dropped',
    why: 'two starts at once overwrite each other (here the index of active reservations refuses the second)',
    edits: [UNGUARDED_CLAIM],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'claim: the generation guard is dropped, and no index watches',
    why: 'two starts at once both run the guest',
    edits: [
      UNGUARDED_CLAIM,
      {
        file: SCHEMA,
        find: 'CREATE UNIQUE INDEX sled_reservation_one_active',
        replace: 'CREATE INDEX sled_reservation_one_active',
      },
    ],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'claim: one that comes again after its unwind is refused',
    why: 'a saga whose task was lost as it ended says that nothing was written',
    edits: [
      {
        file: CLAIM,
        find: "if (refused.outcome === 'unwound') throw",
        replace: "if (refused.outcome === 'unwound' && false) throw",
      },
    ],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'claim: charges another amount than it takes',
    why: 'the quota drifts with every start',
    edits: [
      {
        file: CLAIM,
        find: 'SELECT id, project_id, ncpus, memory_bytes FROM claimed',
        replace: 'SELECT id, project_id, ncpus + 1, memory_bytes FROM claimed',
      },
    ],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'claim: releases another amount than it charged',
    why: 'the quota drifts with every stop',
    edits: [
      {
        file: SCHEMA,
        find: 'charged_cpus = charged_cpus - OLD.cpus,',
        replace: 'charged_cpus = charged_cpus - OLD.cpus + 1,',
      },
    ],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'claim: reserves for another kind',
    why: 'at most one active reservation an instance: the next start would pass',
    edits: [
      {
        file: CLAIM,
        find: "ncpus, memory_bytes, 'active' FROM claimed",
        replace: "ncpus, memory_bytes, 'tombstoned' FROM claimed",
      },
    ],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'placement: no trigger watches the groups that must not be broken',
    why: 'two starts at once put members that must be apart on one sled',
    edits: [
      {
        file: SCHEMA,
        find: 'CREATE TRIGGER sled_reservation_affinity BEFORE INSERT OR UPDATE OF sled_id ON sled_reservation\n  FOR EACH ROW EXECUTE FUNCTION guard_affinity();',
        replace: 'SELECT 1;',
      },
    ],
    caughtBy: [PLACEMENT_TEST],
  },

  // --- Unwinds ---
  {
    name: 'unwind: the VMM id is not burnt',
    why: 'a claim that arrives after its saga has unwound makes a VMM that nobody ends',
    edits: [{ file: BEGIN_UNWIND, find: '    await burnVmmId(db, request);\n', replace: '' }],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'unwind: raises the generation of the instance',
    why: 'it races every other writer of the ids (here the trigger refuses it)',
    edits: [GENERATION_BUMPED],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'unwind: raises the generation of the instance, and no trigger watches',
    why: 'it races every other writer of the ids',
    edits: [GENERATION_BUMPED, NO_GENERATION_TRIGGER],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'unwind: clears the id itself',
    why: 'only the update saga clears ids',
    edits: [
      {
        ...GENERATION_BUMPED,
        replace: GENERATION_BUMPED.replace.replace(
          'SET state_generation',
          "SET state = 'no_vmm', active_vmm_id = NULL, target_vmm_id = NULL, migration_id = NULL, state_generation",
        ),
      },
    ],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'unwind: forgets to release the charge',
    why: 'the quota leaks with every failed start',
    edits: [
      {
        file: FINISH_UNWIND,
        find: 'AND linked.active_vmm_id = ${vmmId}\n',
        replace: 'AND linked.active_vmm_id IS NULL\n',
      },
    ],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'unwind: releases the charge of whoever has it',
    why: 'an unwind that ends twice releases the charge of the next start',
    edits: [{ file: FINISH_UNWIND, find: ' AND linked.active_vmm_id = ${vmmId}\n', replace: '\n' }],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'unwind: releases the reservation without the sled’s word',
    why: 'the place is given away while the VMM may still be there',
    edits: [
      {
        file: FINISH_UNWIND,
        find: 'SELECT ${request.confirmed} OR coalesce((SELECT given_up FROM placed), false) AS definitely',
        replace: 'SELECT true AS definitely',
      },
    ],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'unwind: keeps the reservation',
    why: 'a leaked reservation makes every later start fail',
    edits: [
      {
        file: FINISH_UNWIND,
        find: 'WHERE vmm_id = ${vmmId} AND definitely RETURNING',
        replace: 'WHERE vmm_id = ${vmmId} AND NOT definitely RETURNING',
      },
    ],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'unwind: does not write over a VMM that failed meanwhile',
    why: 'a 404 between the sled’s answer and ours turns an unwound start into Failed',
    edits: [
      {
        file: FINISH_UNWIND,
        find: "vmm.state <> 'saga_unwound' AND",
        replace: "vmm.state NOT IN ('failed', 'destroyed', 'saga_unwound') AND",
      },
    ],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'unwind: ends a guest that runs after all',
    why: 'a second word that was refused kills what the first one started',
    edits: [
      {
        file: BEGIN_UNWIND,
        find: 'OR ${spareRunning} AND CASE',
        replace: 'OR NOT ${spareRunning} AND CASE',
      },
    ],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'unwind: leaves the source’s side of a migration that never began open',
    why: 'the source looks as if it were handing its guest over',
    edits: [
      {
        file: FINISH_UNWIND,
        find: 'CASE WHEN ${request.neverCommanded} AND source_state',
        replace: 'CASE WHEN NOT ${request.neverCommanded} AND source_state',
      },
    ],
    caughtBy: [DATABASE_TEST],
  },

  // --- A step beside another run of the same saga ---
  {
    name: 'again: an unwind is begun although the operation has succeeded',
    why: 'the caller was told that the guest runs, and a run that was late ends it',
    edits: [{ file: BEGIN_UNWIND, find: 'EXISTS (SELECT 1 FROM own WHERE succeeded)\n', replace: 'false\n' }],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'again: the unwind reads the outcome as it was when it began to wait',
    why: 'the success that was written meanwhile is overlooked',
    edits: [{ file: BEGIN_UNWIND, find: ' FOR UPDATE OF operation\n', replace: '\n' }],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'again: the unwind reads the migration as it was when it began to wait',
    why: 'a migration whose guest is on its way is torn down',
    edits: [{ file: BEGIN_UNWIND, find: ' FOR UPDATE OF migration\n', replace: '\n' }],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'again: what spares a guest leaves the outcome open',
    why: 'another run may unwind it before the success is written',
    edits: [
      {
        file: BEGIN_UNWIND,
        find: 'WHERE operation.id = own.id AND spared',
        replace: 'WHERE operation.id = own.id AND NOT spared',
      },
    ],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'again: an answer records success over an unwind that has begun',
    why: 'the caller is told that it runs, and it is unwound',
    edits: [
      {
        file: REPORT,
        find: 'UPDATE operation SET succeeded = true, time_ended = now() FROM open\n',
        replace: 'UPDATE operation SET succeeded = true, time_ended = now() FROM subject\n',
      },
    ],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'again: a success without an answer is recorded over an unwind that has begun',
    why: 'the caller is told that it runs, and it is unwound',
    edits: [
      {
        file: 'db/transactions/succeed-operation.ts',
        find: 'true, now() FROM own WHERE stands',
        replace: 'true, now() FROM own',
      },
    ],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'again: a claim that was made is refused',
    why: 'the operation has failed, and its VMM lives on',
    edits: [
      { file: 'db/transactions/refuse-operation.ts', find: 'AND (operation.vmm_id IS NULL\n', replace: 'AND (true\n' },
    ],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'again: a claim passes whose operation is over',
    why: 'a late run starts an instance that nobody asked for any more',
    edits: [
      {
        file: SCHEMA,
        find: 'CREATE TRIGGER operation_guard BEFORE UPDATE ON operation FOR EACH ROW WHEN (OLD.time_ended IS NOT NULL) EXECUTE FUNCTION guard_operation();',
        replace: 'SELECT 1;',
      },
    ],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'again: an id is burnt whose operation has succeeded',
    why: 'an operation that succeeded has a VMM that was unwound',
    edits: [{ file: 'db/transactions/burn-vmm-id.ts', find: ' WHERE operation.time_ended IS NULL\n', replace: '\n' }],
    caughtBy: [DATABASE_TEST],
  },

  // --- Verdicts ---
  {
    name: 'verdict: fails a VMM that is still being created',
    why: 'its sled may not have heard of it yet',
    edits: [{ file: FAIL, find: "NOT IN ('creating', 'destroyed'", replace: "NOT IN ('destroyed'" }],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'verdict: fails a VMM that is being unwound',
    why: 'an unwound start shows Failed',
    edits: [{ file: FAIL, find: 'AND unwinding_since IS NULL', replace: '' }],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'watcher: calls a VMM lost because the call timed out',
    why: 'its guest runs on while the instance is started elsewhere',
    edits: [
      {
        file: WATCHER,
        find: "if (!(error instanceof SledError) || error.kind !== 'gone') throw error;\n      if (",
        replace: 'if (!(error instanceof SledError)) throw error;\n      if (',
      },
    ],
    caughtBy: [ACTIVITIES_TEST],
  },
  {
    name: 'watcher: fails a VMM that is still being created',
    why: 'its sled may not have heard of it yet',
    edits: [
      { file: WATCHER, find: "vmm.state !== 'creating' && ", replace: '' },
      { file: FAIL, find: "NOT IN ('creating', 'destroyed'", replace: "NOT IN ('destroyed'" },
    ],
    caughtBy: [ACTIVITIES_TEST],
  },
  {
    name: 'watcher: leaves a VMM that the database does not know',
    why: 'it runs for ever, and holds what nobody accounts for',
    edits: [
      {
        file: WATCHER,
        find: 'if (vmm === undefined || vmm.deleted',
        replace: 'if (vmm === undefined) continue;\n        if (vmm.deleted',
      },
    ],
    caughtBy: [ACTIVITIES_TEST],
  },
  {
    name: 'scan: signals nobody',
    why: 'a lost signal is never made up for',
    edits: [
      {
        file: UPDATER,
        find: '    await workflows.signalUpdate(instanceId, snapshot.names);\n    signalled',
        replace: '    signalled',
      },
    ],
    caughtBy: [ACTIVITIES_TEST],
  },
  {
    name: 'expunge: keeps what was held for an unwound VMM',
    why: 'the row is never retired: its sled’s answer never comes',
    edits: [{ file: FAIL_SLED, find: "AND vmm.state = 'saga_unwound'\n", replace: "AND vmm.state = 'failed'\n" }],
    caughtBy: [DATABASE_TEST],
  },

  // --- An operator's word ---
  {
    name: 'expunge: the word is believed of a sled that answers',
    why: 'its guests are started elsewhere while they run there',
    edits: [{ file: WORD, find: "answers ? 'when told' : 'at once'", replace: "'at once'" }],
    caughtBy: [WORD_RULES_TEST],
  },
  {
    name: 'expunge: no word is asked for of a sled that answers',
    why: 'a typo takes a sled that works out of service for ever',
    edits: [
      {
        file: WORD,
        find: "        if (answers) return refuse('answers');\n        if (leased)",
        replace: '        if (leased)',
      },
    ],
    caughtBy: [WORD_RULES_TEST],
  },
  {
    name: 'expunge: a lease that is held counts for nothing',
    why: 'its guests are started elsewhere while it may run them',
    edits: [{ file: WORD, find: "if (leased) return take('when lapsed');", replace: '' }],
    caughtBy: [WORD_RULES_TEST],
  },
  {
    name: 'declare-dead and force-stop: a lease that is held counts for nothing',
    why: 'its guests are started elsewhere while it may run them',
    edits: [{ file: WORD, find: "leased ? 'when lapsed' : 'at once'", replace: "'at once'" }],
    caughtBy: [WORD_RULES_TEST],
  },
  {
    name: 'expunge: completed whatever lives there',
    why: 'what the sled has not ended, and no lease has, is called lost',
    edits: [{ file: EXPUNGE, find: "if (guests && lease !== 'dead') return null;", replace: '' }],
    caughtBy: [LEASES_TEST],
  },
  {
    name: 'expunge: a sled that leaves renews its lease',
    why: 'it runs its guests for ever, and the expunge waits for ever',
    edits: [
      {
        file: RENEW,
        find: " AND policy <> 'expunged' AND expunging_since IS NULL",
        replace: " AND policy <> 'expunged'",
      },
    ],
    caughtBy: [LEASES_TEST],
  },
  {
    name: 'expunge: an agent that hears of it keeps its guests',
    why: 'they run for ever without fencing, and elsewhere too where the operator was wrong',
    edits: [{ file: AGENT, find: '    await this.#end(living);\n  }\n\n  #sledOf', replace: '  }\n\n  #sledOf' }],
    caughtBy: [EXPUNGED_AGENT_TEST],
  },
  {
    name: 'expunge: a sled that answers afterwards is not told to end what it has',
    why: 'a second copy of a guest runs for ever on an agent that does not hear of it',
    edits: [{ file: WATCHER, find: '        await unregister(sled, vmmId);\n', replace: '' }],
    caughtBy: [WORD_TEST],
  },
  {
    name: 'doctor: expunged sleds are not asked',
    why: 'the second copies of guests there are found by nobody',
    edits: [
      {
        file: DOCTOR_SLEDS,
        find: '[...known, ...expunged]',
        replace: '[...known, ...expunged.slice(0, 0)]',
      },
    ],
    caughtBy: [WORD_TEST],
  },
  {
    name: 'probe: who shows no good certificate is silent',
    why: 'a sled whose certificates were revoked is believed to be off',
    edits: [
      {
        file: CLIENT,
        find: "socket.once('secureConnect', () => end(() => resolve(true)));",
        replace: "socket.once('secureConnect', () => end(() => resolve(socket.authorized)));",
      },
    ],
    caughtBy: [IDENTITY_TEST],
  },
  {
    name: 'join: a sled moves away from its VMMs',
    why: 'they are not found at the new address, and started elsewhere while they run at the old one',
    edits: [{ file: JOIN_SLED, find: '(known.address !== address || !isSilent)', replace: 'false' }],
    caughtBy: [IDENTITY_TEST],
  },
  {
    name: 'join: a sled joins again at its own address with data of which its VMMs are no part',
    why: 'its agent does not know them, and they are started elsewhere while they run on there',
    edits: [
      { file: JOIN_SLED, find: '(known.address !== address || !isSilent)', replace: 'known.address !== address' },
    ],
    caughtBy: [SILENT_DATABASE_TEST],
  },

  // --- Leases ---
  {
    name: 'lease: no margin',
    why: 'the guests are started elsewhere while the watchdog of their sled kills them',
    edits: [{ file: LEASE, find: 'return leaseMs / 2;', replace: 'return 0;' }],
    caughtBy: [LEASE_TEST],
  },
  {
    name: 'lease: our own absence counts',
    why: 'every sled is declared dead after an outage of the control plane',
    edits: [{ file: LEASE, find: '...away.map(({ endedMs }) => endedMs)', replace: '' }],
    caughtBy: [LEASE_TEST],
  },
  {
    name: 'lease: judged while nobody can renew',
    why: 'a sled is declared dead because no API runs',
    edits: [{ file: LEASE, find: 'if (nowMs - lastBeatMs > tolerable ||', replace: 'if (' }],
    caughtBy: [LEASE_TEST],
  },
  {
    name: 'lease: a shorter one takes the longer one away',
    why: 'a renewal that was long on its way lets a sled be declared dead whose guests run',
    edits: [{ file: RENEW, find: 'true)`;', replace: 'true) OR true`;' }],
    caughtBy: [LEASES_TEST],
  },
  {
    name: 'lease: a dead sled comes back without a proof',
    why: 'what it still runs runs twice',
    edits: [{ file: RENEW, find: 'epoch !== sled.epoch || lostVmmIds.length > 0', replace: 'epoch !== sled.epoch' }],
    caughtBy: [LEASES_TEST],
  },
  {
    name: 'lease: an old proof counts',
    why: 'a report that was composed before the declaration takes the sled back into service',
    edits: [{ file: RENEW, find: '(epoch !== sled.epoch || lostVmmIds.length > 0)', replace: 'lostVmmIds.length > 0' }],
    caughtBy: [LEASES_TEST],
  },
  {
    name: 'lease: verdict without the lock',
    why: 'a renewal that comes between the facts and the verdict is ignored',
    edits: [
      {
        file: DECLARE,
        find: 'AS judged FROM sled WHERE id = ${sledId} FOR UPDATE`);\n      const facts',
        replace: 'AS judged FROM sled WHERE id = ${sledId}`);\n      const facts',
      },
    ],
    caughtBy: [LEASES_TEST],
  },
  {
    name: 'lease: gaps are not written down',
    why: 'after an outage nobody knows of it',
    edits: [
      {
        file: BEAT,
        find: 'WHERE ended_at < began_at OR ended_at - began_at >',
        replace: "WHERE ended_at - began_at < interval '0' AND ended_at - began_at >",
      },
    ],
    caughtBy: [LEASES_TEST],
  },

  // --- What an answer means ---
  {
    name: 'a 404 without the code means gone',
    why: 'a wrong address, or a proxy, would lose every VMM',
    edits: [{ file: ANSWER, find: "errorCode === 'NO_SUCH_INSTANCE' ? 'gone' : 'retry'", replace: "'gone'" }],
    caughtBy: [ANSWERS_TEST],
  },
  {
    name: 'a time-out means gone',
    why: 'a time-out proves nothing',
    edits: [
      {
        file: CLIENT,
        find: "throw new SledError('unavailable', `${what}: no answer",
        replace: "throw new SledError('gone', `${what}: no answer",
      },
    ],
    caughtBy: [ANSWERS_TEST],
  },
  {
    name: '410 is final',
    why: 'terminating is not gone',
    edits: [{ file: ANSWER, find: '403, 409,', replace: '403, 409, 410,' }],
    caughtBy: [ANSWERS_TEST],
  },
  {
    name: 'a refused unregister is final',
    why: 'the unwind ends while the VMM is there',
    edits: [{ file: ANSWER, find: "  if (command === 'unregister') return 'retry';\n", replace: '' }],
    caughtBy: [ANSWERS_TEST],
  },
  {
    name: 'a sled that gives no answer ends the saga',
    why: 'every hiccup of the network fails a start',
    edits: [
      {
        file: MEANINGS,
        find: "SledUnavailable: { final: false, code: 'ServiceUnavailable' },",
        replace: "SledUnavailable: { final: true, code: 'ServiceUnavailable' },",
      },
    ],
    caughtBy: [ANSWERS_TEST],
  },

  // --- The update's decision ---
  {
    name: 'moved: waits for the source’s word',
    why: 'a source that died after handing over costs the guest (KubeVirt issue 13112)',
    edits: [
      {
        file: DECISION,
        find: "if (migration.targetState === 'completed') {",
        replace: "if (migration.targetState === 'completed' && migration.sourceState === 'completed') {",
      },
    ],
    caughtBy: [DECISION_TEST],
  },
  {
    name: 'left: promoted although the target has failed',
    why: 'the instance names a VMM without a guest',
    edits: [
      {
        file: DECISION,
        find: "    if (targetEnded) return { case: 'lost', active: null, keepMigration: false, guestLost: true };\n",
        replace: '',
      },
    ],
    caughtBy: [DECISION_TEST],
  },
  {
    name: 'unknown: a source that died is taken for a lost guest',
    why: 'the guest may be running at the target: a restart would make two',
    edits: [
      {
        file: DECISION,
        find: "return { case: 'unknown', active, keepMigration: true, guestLost: false };",
        replace: "return { case: 'not-moved', active, keepMigration: false, guestLost: false };",
      },
    ],
    caughtBy: [DECISION_TEST],
  },
  {
    name: 'unlink: the ids survive a VMM that is gone',
    why: 'an old target is promoted later: two guests',
    edits: [
      {
        file: DECISION,
        find: 'const unlink = incarnated && activeGone && !unknown;',
        replace: 'const unlink = false && incarnated && activeGone && !unknown;',
      },
    ],
    caughtBy: [DECISION_TEST],
  },
  {
    name: 'a saga_unwound VMM is not gone',
    why: 'rule 4: its id is never cleared, and nothing can be started over it',
    edits: [
      {
        file: STATES,
        find: "return isTerminalVmmState(state) || state === 'saga_unwound';",
        replace: 'return isTerminalVmmState(state);',
      },
    ],
    caughtBy: [DECISION_TEST, SHOWN_TEST],
  },
  {
    name: 'unlink: an instance that was asked to stop becomes Failed',
    why: 'who asks for stop gets Stopped',
    edits: [{ file: DECISION, find: "snapshot.intendedState !== 'stopped' && (guestLost", replace: '(guestLost' }],
    caughtBy: [DECISION_TEST],
  },
  {
    name: 'a guest’s own shutdown overwrites a newer intent',
    why: 'a stop, or a delete, is forgotten',
    edits: [
      {
        file: DECISION,
        find: "placement.active?.state === 'destroyed' && snapshot.intendedState === 'running' && !snapshot.deleted",
        replace: "placement.active?.state === 'destroyed' && !snapshot.deleted",
      },
    ],
    caughtBy: [DECISION_TEST],
  },
  {
    name: 'a source whose guest has left is unregistered',
    why: 'a destination that has not heard the source’s last word could not ask for it',
    edits: [{ file: DECISION, find: '&& !vmm.unwinding && !vmm.guestLeft)', replace: '&& !vmm.unwinding)' }],
    caughtBy: [DECISION_TEST],
  },
  {
    name: 'an unwound VMM is retired while its sled is silent',
    why: 'its place is given away while it may still be there',
    edits: [{ file: DECISION, find: "if (vmm.state === 'saga_unwound') return !vmm.hasReservation;\n", replace: '' }],
    caughtBy: [DECISION_TEST],
  },
  {
    name: 'update: a retired VMM keeps its reservation',
    why: 'a leaked reservation makes every later start fail',
    edits: [
      {
        file: COMMIT,
        find: 'USING guarded WHERE vmm_id = ANY(${sql.param(retire)}::uuid[])',
        replace: 'USING guarded WHERE vmm_id = ANY(${sql.param(retire.slice(1))}::uuid[])',
      },
    ],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'update: the charge is never released',
    why: 'the quota leaks with every stop',
    edits: [
      { file: COMMIT, find: 'AND ${decision.releaseCharge} AND', replace: 'AND NOT ${decision.releaseCharge} AND' },
    ],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'update: the target’s reservation stays a target’s after the move',
    why: 'the next migration of the instance is refused',
    edits: [
      {
        file: COMMIT,
        find: 'WHERE vmm_id = ${activateReservation} AND',
        replace: 'WHERE vmm_id IS NULL AND ${activateReservation}::uuid IS NOT NULL AND',
      },
    ],
    caughtBy: [DATABASE_TEST],
  },
  {
    name: 'delete: clears the ids itself',
    why: 'only the update saga clears ids',
    edits: [
      {
        file: DELETE_INSTANCE,
        find: "if (instance.state === 'vmm') {",
        replace: "if (instance.state === 'creating') {",
      },
      {
        file: DELETE_INSTANCE,
        find: "state = 'destroyed',\n",
        replace: "state = 'destroyed', active_vmm_id = NULL, target_vmm_id = NULL, migration_id = NULL,\n",
      },
    ],
    caughtBy: [DATABASE_TEST],
  },

  // --- What is shown, and what is legal ---
  {
    name: 'a saga_unwound VMM shows Failed',
    why: 'rule 2: the instance is Stopped',
    edits: [
      {
        file: SHOWN,
        find: "if (active === 'saga_unwound') return 'stopped';",
        replace: "if (active === 'saga_unwound') return 'failed';",
      },
    ],
    caughtBy: [SHOWN_TEST],
  },
  {
    name: 'a saga_unwound target shows Migrating',
    why: 'rule 3: it changes nothing',
    edits: [{ file: SHOWN, find: 'if (isGoneVmmState(target.state) || target.unwinding) return false;', replace: '' }],
    caughtBy: [SHOWN_TEST],
  },
  {
    name: 'a failed migration still shows Migrating',
    why: 'the next operation is refused for nothing',
    edits: [
      {
        file: SHOWN,
        find: "if (!aSideFailed || migration.targetState === 'completed') return true;",
        replace: 'return true;',
      },
    ],
    caughtBy: [SHOWN_TEST],
  },
  {
    name: 'start is legal while Stopping',
    why: 'two guests: the old one is not down yet',
    edits: [{ file: LEGALITY, find: "stopping: { start: 'conflict'", replace: "stopping: { start: 'act'" }],
    caughtBy: [LEGALITY_TEST],
  },
  {
    name: 'delete is legal while Migrating',
    why: 'a guest runs that no instance names',
    edits: [
      {
        file: LEGALITY,
        find: "reboot: 'conflict', migrate: 'conflict', delete: 'invalid' },\n  stopping",
        replace: "reboot: 'conflict', migrate: 'conflict', delete: 'act' },\n  stopping",
      },
    ],
    caughtBy: [LEGALITY_TEST],
  },
  {
    name: 'another destination is a no-op while Migrating',
    why: 'the caller is told that it goes where it does not',
    edits: [
      {
        file: LEGALITY,
        find: "externalState === 'migrating' && targetSledId === destinationSledId",
        replace: "externalState === 'migrating'",
      },
    ],
    caughtBy: [LEGALITY_TEST],
  },

  // --- The sled agent ---
  {
    name: 'agent: an unregistered id may be registered again',
    why: 'a late register brings back what was unwound',
    edits: [
      { file: AGENT, find: '    this.#dying.add(vmmId);\n', replace: '' },
      {
        file: AGENT,
        find: '    this.#disk.eventually(`that VMM ${vmmId} is dead`, () => this.#markDead(vmmId));\n',
        replace: '',
      },
      {
        file: AGENT,
        find: '    this.#markDead(vmmId);\n    return this.#store.get',
        replace: '    return this.#store.get',
      },
    ],
    caughtBy: [AGENT_TEST],
  },
  {
    name: 'agent: a dead id is in memory before it is on disk',
    why: 'the second try is acknowledged from memory, and a restarted agent registers the id again (newcomer report F3)',
    edits: [
      {
        file: STORE,
        find: '    this.#deadFile?.append(vmmId, true);\n    this.#dead.add(vmmId);',
        replace: '    this.#dead.add(vmmId);\n    this.#deadFile?.append(vmmId, true);',
      },
    ],
    caughtBy: [DISK_FULL_TEST, DISK_TEST],
  },
  {
    name: 'agent: a record is in memory before it is on disk',
    why: 'what could not be written is answered from memory, and stands still for ever',
    edits: [
      {
        file: STORE,
        find: '    const path = this.#pathOf(record.vmmId);\n    if (path !== null) {',
        replace:
          '    const path = this.#pathOf(record.vmmId);\n    this.#vmms.set(record.vmmId, record);\n    if (path !== null) {',
      },
    ],
    caughtBy: [DISK_TEST],
  },
  {
    name: 'agent: a register that could not be written leaves its record',
    why: 'the retry finds a VMM that has no process, and is answered 200',
    edits: [
      {
        file: AGENT,
        find: '      this.#store.abandon(vmmId);\n      if (asDiskError(error) !== null) throw error;',
        replace: '      if (asDiskError(error) !== null) throw error;',
      },
    ],
    caughtBy: [QEMU_DISK_TEST],
  },
  {
    name: 'agent: answers for a VMM of which something is not on disk',
    why: 'a stop is acknowledged that a restart undoes',
    edits: [
      {
        file: AGENT,
        find: '    this.#writeChanges(vmmId);\n    return stateOf(this.#require(vmmId));',
        replace: '    return stateOf(this.#require(vmmId));',
      },
    ],
    caughtBy: [DISK_FULL_TEST],
  },
  {
    name: 'agent: an event that could not be written is lost',
    why: 'the guest is off, and its VMM is Stopping for ever (newcomer report F2)',
    edits: [
      {
        file: DISK,
        find: '      failed(error);\n    }\n  }',
        replace: '      failed(error);\n      done();\n    }\n  }',
      },
    ],
    caughtBy: [DISK_FULL_TEST, DISK_TEST],
  },
  {
    name: 'agent: a terminal report that was delivered is forgotten though its dead id is not on disk',
    why: 'a late register brings back a VMM whose end the control plane has taken',
    edits: [
      {
        file: AGENT,
        find: '      this.#markDead(vmmId);\n      await this.#options.hypervisor.kill(vmmId);',
        replace:
          '      try {\n        this.#markDead(vmmId);\n      } catch {}\n      await this.#options.hypervisor.kill(vmmId);',
      },
    ],
    caughtBy: [DISK_TEST],
  },
  {
    name: 'agent: a torn line of the dead ids is gone on with',
    why: 'two ids become one that nobody knows',
    edits: [
      { file: DISK, find: '        this.#files.truncate(file, before);\n', replace: '' },
      { file: DISK, find: "`${wasTorn ? '\\n' : ''}${line}\\n`", replace: '`${line}\\n`' },
    ],
    caughtBy: [DISK_TEST],
  },
  {
    name: 'simulated: the destination gets the guest before that is on disk',
    why: 'an agent that ends then says that the guest is its own: two copies',
    edits: [
      {
        file: SIMULATED,
        find: "    await vm.emit({ kind: 'migration-out', migrationId, state: 'completed' });\n    vm.given.add(migrationId);",
        replace:
          "    void vm.emit({ kind: 'migration-out', migrationId, state: 'completed' });\n    vm.given.add(migrationId);",
      },
    ],
    caughtBy: [DISK_FULL_TEST],
  },
  {
    name: 'watchdog: believes the file alone',
    why: 'a disk that fails powers off every guest of a sled that renews',
    edits: [
      {
        file: 'sled-agent/watchdog.ts',
        find: 'last.heard = parseLease(line) ?? last.heard;',
        replace: 'parseLease(line);',
      },
    ],
    caughtBy: [DISK_FULL_TEST],
  },
  {
    name: 'lease: is replaced as a whole',
    why: 'it needs room, and a full disk powers off every guest',
    edits: [
      {
        file: 'sled-agent/lease-file.ts',
        find: 'this.#disk.writeAt(this.#file, this.#path, `${line}\\n`, next * PLACE_BYTES);',
        replace: 'this.#disk.replaceFile(this.#path, `${line}\\n`);',
      },
    ],
    caughtBy: [DISK_FULL_TEST],
  },
  {
    name: 'lease: is written over the only whole one',
    why: 'a torn write leaves none, and the agent can not start again',
    edits: [
      {
        file: 'sled-agent/lease-file.ts',
        find: 'const next = (this.#whole + 1) % PLACES;',
        replace: 'const next = this.#whole;',
      },
    ],
    caughtBy: [DISK_FULL_TEST],
  },
  {
    name: 'QEMU: its time to power off counts on the clock of the day',
    why: 'a clock that is put back by an hour makes a stop take an hour',
    edits: [
      {
        file: 'sled-agent/qemu/guest-power.ts',
        find: 'monotonicMs()',
        replace: 'Date.now()',
        times: 4,
      },
    ],
    caughtBy: [GUEST_POWER_TEST],
  },
  {
    name: 'QEMU: its journal is in memory before it is on disk',
    why: 'a stop on arrival is acknowledged that a restarted agent knows nothing of',
    edits: [
      {
        file: 'sled-agent/qemu/vm-journal.ts',
        find: '    this.#disk.replaceFile(this.#path, JSON.stringify(entries));\n    this.#entries = entries;',
        replace: '    this.#entries = entries;\n    this.#disk.replaceFile(this.#path, JSON.stringify(entries));',
      },
    ],
    caughtBy: [GUEST_POWER_TEST],
  },
  {
    name: 'QEMU: the process of a guest that is off ends before that is on disk',
    why: 'a restarted agent calls a guest failed that powered itself off, and it is started again',
    edits: [
      {
        file: 'sled-agent/qemu/guest-power.ts',
        find: 'if (unwritten === null || reason === OVERDUE) this.#vm.endInOrder();',
        replace: 'if (unwritten !== undefined) this.#vm.endInOrder();',
      },
    ],
    caughtBy: [GUEST_POWER_TEST],
  },
  {
    name: 'QEMU: a VM that has ended goes on',
    why: 'a process that dies while it is taken up is shown running',
    edits: [
      {
        file: 'sled-agent/qemu/vm-state.ts',
        find: "if (this.#phase !== 'ended') this.#phase = phase;",
        replace: 'this.#phase = phase;',
      },
    ],
    caughtBy: [GUEST_POWER_TEST],
  },
  {
    name: 'agent: starts at a generation of its own',
    why: 'its first reports are older than the row, and never written',
    edits: [{ file: AGENT, find: 'gen: request.vmm_runtime.gen,', replace: 'gen: 1,' }],
    caughtBy: [AGENT_TEST],
  },
  {
    name: 'agent: takes more than it has room for',
    why: 'the server runs out of memory',
    edits: [
      {
        file: AGENT,
        find: 'if (ncpus > threadsLeft || memoryBytes > memoryLeft) {',
        replace: 'if (ncpus > threadsLeft && memoryBytes > memoryLeft) {',
      },
    ],
    caughtBy: [AGENT_TEST],
  },
  {
    name: 'access: a revoked token is good until it expires',
    why: 'who has stolen a token keeps it',
    edits: [
      { file: ACCESS, find: 'if (token.timeRevoked !== null)', replace: 'if (token.timeRevoked !== null && expired)' },
    ],
    caughtBy: [TOKENS_TEST],
  },
  {
    name: 'access: an expired token is good',
    why: 'a token that was forgotten opens the door for ever',
    edits: [{ file: ACCESS, find: '  if (expired)\n', replace: '  if (expired && mode === "open")\n' }],
    caughtBy: [TOKENS_TEST],
  },
  {
    name: 'access: another project’s instance is found by its id',
    why: 'who may see one project sees all of them',
    edits: [
      {
        file: ACCESS,
        find: 'if ((await readProjectOf(db, kind, id)) !== own)',
        replace: "if ((await readProjectOf(db, kind, id)) === '')",
      },
    ],
    caughtBy: [TOKENS_TEST, ENDPOINTS_TEST],
  },
  {
    name: 'access: any role will do',
    why: 'a viewer deletes what it sees',
    edits: [
      { file: ACCESS_RULES, find: "if (!includesRole(token.role, needed.role)) return 'forbidden';", replace: '' },
    ],
    caughtBy: [ACCESS_RULES_TEST],
  },
  {
    name: 'access: a role on one project is one on the fleet',
    why: 'who administers a project expunges sleds',
    edits: [
      {
        file: ACCESS_RULES,
        find: "if (token.projectId !== null && needed.on === 'fleet') return 'forbidden';",
        replace: '',
      },
    ],
    caughtBy: [ACCESS_RULES_TEST],
  },
  {
    name: 'access: a page of another site is the local operator',
    why: 'a page that an operator looks at commands the stack on this machine',
    edits: [
      {
        file: ACCESS,
        find: "  if (isOfForeignPage(headers, own) && !(mayBeLed && method === 'GET')) throw foreignPage();\n",
        replace: '',
      },
    ],
    caughtBy: [LIMITS_TEST],
  },
  {
    name: 'keys: a create that was refused frees its key',
    why: 'another request under the key is done, and the first one is answered anew',
    edits: [
      {
        file: 'db/transactions/create-instance.ts',
        find: 'if (error instanceof Refusal) await keepRefusal(db, key, error);',
        replace: '',
      },
    ],
    caughtBy: ['test/sagas/idempotency.test.ts'],
  },
  {
    name: 'keys: a saga that was refused is tried anew under its key',
    why: 'one request has two answers',
    edits: [{ file: OPERATIONS, find: 'await giveBack(error);', replace: 'await giveBack();' }],
    caughtBy: ['test/sagas/idempotency.test.ts'],
  },
  {
    name: 'keys: a field that says nothing makes another request',
    why: 'a client that writes null where it wrote nothing gets 422 for its own request',
    edits: [{ file: 'api/request-key.ts', find: '.filter(([, field]) => !isUnset(field))', replace: '' }],
    caughtBy: ['test/rules/request-keys.test.ts'],
  },
  {
    name: 'addresses: what a translator writes is a host of its own',
    why: 'one host is several sleds: its room is counted as often, and groups are kept apart on it',
    edits: [
      {
        file: 'model/host-address.ts',
        find: 'found?.why == null ? address',
        replace: 'found?.why == null || found.why === OF_A_TRANSLATOR ? address',
      },
    ],
    caughtBy: ['test/rules/host-address.test.ts'],
  },
  {
    name: 'migrations: a record without its tables is up to date',
    why: 'with another search_path there is no table, and every process starts',
    edits: [{ file: MIGRATE_DATABASE, find: 'rows[0]?.found === false', replace: 'rows[0]?.found === null' }],
    caughtBy: [MIGRATIONS_TEST],
  },
  {
    name: 'commands: a silent PostgreSQL is told as the statement that it did not answer',
    why: 'nobody learns which server it is, or what names it',
    edits: [{ file: 'db/errors.ts', find: 'error instanceof DrizzleQueryError || ', replace: '' }],
    caughtBy: ['test/processes/silent-peers.test.ts'],
  },
  {
    name: 'access: any host is the open API’s own',
    why: 'a page at a name of the network’s, http://router, reads everything',
    edits: [
      {
        file: ACCESS,
        find: 'if (host === undefined || isOwnHost(host, own)) return;',
        replace: 'if (host !== "") return;',
      },
    ],
    caughtBy: [LIMITS_TEST],
  },
  {
    name: 'access: every bare name is this machine’s',
    why: 'whoever answers for a network’s names gives it to a page',
    edits: [
      {
        file: PAGES,
        find: 'isOneOf(nameIn(url), own));',
        replace: "isOneOf(nameIn(url), own) || !nameIn(url).includes('.'));",
      },
    ],
    caughtBy: ['test/rules/web-pages.test.ts'],
  },
  {
    name: 'access: what a browser marks as another site’s is the local operator’s',
    why: 'a page that shows no origin commands the stack on this machine',
    edits: [{ file: PAGES, find: '    default:\n      return true;', replace: '    default:\n      return false;' }],
    caughtBy: ['test/rules/web-pages.test.ts'],
  },
  {
    name: 'access: a page of any address is this machine’s',
    why: 'a page at http://203.0.113.7 commands the stack on this machine',
    edits: [{ file: PAGES, find: 'return isNamed && host', replace: 'return isNamed || host' }],
    caughtBy: ['test/rules/web-pages.test.ts'],
  },
  {
    name: 'marks: a gateway’s refusal is the control plane’s',
    why: 'a proxy’s 404 makes an agent forget that its guest has ended: it is called failed, and started again',
    edits: [{ file: MARKS, find: '  request_id: z.string().min(1),\n', replace: '' }],
    caughtBy: ['test/rules/answer-marks.test.ts'],
  },
  {
    name: 'marks: an error without a code is the control plane’s',
    why: 'as for the one without a request id',
    edits: [
      {
        file: MARKS,
        find: '  error_code: z.string().min(1),\n  message: z.string(),',
        replace: '  error_code: z.string().optional(),\n  message: z.string(),',
      },
    ],
    caughtBy: ['test/rules/answer-marks.test.ts'],
  },
  {
    name: 'marks: what answers at a sled’s address is the sled',
    why: 'a proxy that says that the sled is gone keeps its operator from saying that it is off',
    edits: [{ file: CLIENT, find: ': status >= 400 && readSledError(text) !== null;', replace: ': status >= 400;' }],
    caughtBy: ['test/rules/answer-marks.test.ts'],
  },
  {
    name: 'marks: a 403 without a code is a sled’s refusal',
    why: 'a gateway ends a saga in the sled’s place',
    edits: [{ file: ANSWER, find: " && errorCode !== undefined ? 'refused'", replace: " ? 'refused'" }],
    caughtBy: [ANSWERS_TEST],
  },
  {
    name: 'marks: a 204 of anybody is the control plane’s',
    why: 'the report of a guest’s end is lost to who answers in its place',
    edits: [
      {
        file: 'sled-agent/reporter.ts',
        find: 'return !this.#marks.seen && !isTerminalVmmState(report.vmm_state.state);',
        replace: 'return true;',
      },
    ],
    caughtBy: ['test/rules/answer-marks.test.ts'],
  },
  {
    name: 'marks: the end of a VMM is forgotten on a 204 of anybody, by an agent that has heard no control plane yet',
    why: 'the control plane never hears of it, and takes a guest that has shut itself down for one that is lost',
    edits: [
      {
        file: 'sled-agent/reporter.ts',
        find: ' && !isTerminalVmmState(report.vmm_state.state);',
        replace: ';',
      },
    ],
    caughtBy: ['test/rules/answer-marks.test.ts'],
  },
  {
    name: 'marks: that the control plane marks its answers is forgotten with the agent’s process',
    why: 'an agent that was started again believes what the one before it would not have',
    edits: [
      {
        file: 'sled-agent/control-plane-marks.ts',
        find: 'this.#seen = this.#path !== null && existsSync(this.#path);',
        replace: 'this.#seen = false;',
      },
    ],
    caughtBy: ['test/rules/answer-marks.test.ts'],
  },
  {
    name: 'keys: what a request asks for is not compared',
    why: 'another request under the same key is answered with the first one’s success, and is not done',
    edits: [
      { file: TAKE_KEY, find: ' && taken.digest === key.digest', replace: '' },
      { file: 'db/queries/find-created-instance.ts', find: ' || row.digest !== key.digest', replace: '' },
    ],
    caughtBy: [KEYS_TEST],
  },
  {
    name: 'keys: every sending of a request may begin its saga',
    why: 'two at once under one key are two attempts where the first is refused in between',
    edits: [{ file: TAKE_KEY, find: 'mine: takenBy === sending', replace: "mine: takenBy !== '' && sending !== ''" }],
    caughtBy: [KEYS_TEST],
  },
  {
    name: 'create: says nothing of a start that failed',
    why: 'its caller takes the instance for started',
    edits: [
      {
        file: 'api/routes/instance-records.ts',
        find: 'return { operationId: error.operationId, error: error.body };',
        replace: 'return { operationId: error.operationId, error: null };',
      },
    ],
    caughtBy: [OPERATIONS_TEST],
  },
  {
    name: 'audit: a record is written beside the transaction of its change',
    why: 'a change that was rolled back is on record, or one that was not is missing',
    edits: [
      {
        file: WRITE_AUDIT,
        find: 'await writeAudit(inner, record(result));',
        replace: 'await writeAudit(db, record(result));',
      },
    ],
    caughtBy: [ENDPOINTS_TEST],
  },
  {
    name: 'watcher: passes over a deleted VMM that an unwind was once begun on',
    why: 'a sled that was declared dead and still has it never comes back into service',
    edits: [{ file: WATCHER, find: 'vmm?.unwinding && !vmm.deleted && vmm', replace: 'vmm?.unwinding && vmm' }],
    caughtBy: ['test/trust/declare-dead.test.ts'],
  },
  {
    name: 'operations: joins a run that is over',
    why: 'a start after a failed one is answered with the failure of the one before',
    edits: [
      {
        file: OPERATIONS,
        find: 'if ((await readOperation(this.#db, runId))?.timeEnded != null) {',
        replace: "if ((await readOperation(this.#db, runId))?.kind === 'migrate') {",
      },
    ],
    caughtBy: [OPERATIONS_TEST],
  },
  {
    name: 'operations: hears no outcome',
    why: 'a caller waits until the workflow has closed, for ten seconds where its worker has died',
    edits: [{ file: OPERATIONS, find: 'this.#heard(operationId, signal), this', replace: 'this' }],
    caughtBy: [OPERATIONS_TEST],
  },
  {
    name: 'operations: relies on what it hears',
    why: 'a caller waits in vain where the word was lost',
    edits: [
      {
        file: OPERATIONS,
        find: 'await this.#outcomes.whileItHears(LISTEN_FIRST_MS',
        replace: 'await this.#outcomes.whileItHears(request.waitMs',
      },
    ],
    caughtBy: [OPERATIONS_TEST],
  },
  {
    name: 'outcomes: nobody announces them',
    why: 'a caller waits until the workflow has closed, for ten seconds where its worker has died',
    edits: [{ file: SCHEMA, find: "IF TG_OP = 'INSERT' OR OLD.time_ended IS NULL THEN", replace: 'IF false THEN' }],
    caughtBy: [OUTCOMES_TEST],
  },
  {
    name: 'outcomes: a listener trusts a connection over which nothing comes',
    why: 'behind a pooler that does not deliver, each call is answered a second late',
    edits: [{ file: OUTCOMES, find: "return wasSaid ? 'deaf' : 'unsaid';", replace: "return 'heard';" }],
    caughtBy: [OUTCOMES_TEST],
  },
  {
    name: 'update: one that runs is not signalled',
    why: 'what came while it looked is seen by nobody until the scan',
    edits: [
      {
        file: STARTER,
        find: '      await workflow.signalWithStart<',
        replace: "      if (instanceId === '') await workflow.signalWithStart<",
      },
    ],
    caughtBy: ['test/sagas/four-rules.test.ts'],
  },
  {
    name: 'audit: a restart by itself leaves no record',
    why: 'nobody can tell who started the guest',
    edits: [
      {
        file: CLAIM,
        find: "const recorded = request.reason === 'auto_restart' ?",
        replace: "const recorded = request.reason === 'auto_restart' && request.vmmId === '' ?",
      },
    ],
    caughtBy: [AUDIT_TEST],
  },
  {
    name: 'connection: one that gave no answer is kept',
    why: 'the pool gives it to the next call, which hangs as well, and never recovers',
    edits: [{ file: CONNECTION, find: 'this.cut(new DatabaseSilent(', replace: 'void (new DatabaseSilent(' }],
    caughtBy: [HUNG_TEST],
  },
  {
    name: 'connection: a transaction that never began keeps it',
    why: 'each such transaction takes a place of the pool with it, until none is left',
    edits: [{ file: CONNECTION, find: 'if (isBegin(config)) this', replace: 'if (isBegin(undefined)) this' }],
    caughtBy: [HUNG_TEST],
  },
  {
    name: 'connection: idle ones are trusted though one fell silent',
    why: 'after a fail-over each hung connection costs a call of its own nine seconds',
    edits: [{ file: CONNECTION, find: 'this.#peer.onSilence?.(this);', replace: '' }],
    caughtBy: [HUNG_TEST],
  },
  {
    name: 'connection: a read-only server is kept by transactions',
    why: 'they stay with a primary that has become a standby',
    edits: [{ file: CONNECTION, find: 'this.unfit ||= UNFIT.test', replace: 'this.unfit ||= /^never$/.test' }],
    caughtBy: [HUNG_TEST],
  },
  {
    name: 'connection: the defaults of the role count',
    why: 'with another datestyle every read is answered with 500',
    edits: [{ file: CONNECTION, find: 'return { ...asked, ...WRITING, ...running };', replace: 'return asked;' }],
    caughtBy: [SESSIONS_TEST],
  },
  {
    name: 'connection: behind a pooler a transaction has no limits',
    why: 'one that nobody goes on with keeps its locks for ever',
    edits: [{ file: CONNECTION, find: "[begin, ...settings, setSinceOpen(true)].join('; ')", replace: 'begin' }],
    caughtBy: [SESSIONS_TEST],
  },
  {
    name: 'connection: a pooler that forgets settings is believed to keep them',
    why: 'transactions have no limits, and those of the role end or hold up sagas',
    edits: [
      { file: CONNECTION, find: 'direct === false) this.#peer.isShared = true;', replace: 'direct === false) return;' },
    ],
    caughtBy: [SESSIONS_TEST],
  },
  {
    name: 'connection: what is set for a session stays with the server of a pooler',
    why: 'whoever else uses that pooler runs with our settings',
    edits: [{ file: CONNECTION, find: '${setSinceOpen(false)} AND ${isDirect};', replace: '${setSinceOpen(false)};' }],
    caughtBy: [SESSIONS_TEST],
  },
  {
    name: 'connection: what a start-up can not ask for is left to the defaults',
    why: 'a transaction_timeout of the database ends migrations and sagas, and exit_on_error every connection',
    edits: [{ file: CONNECTION, find: 'if (this.#peer.takesSettings) await this.#setSinceOpen();', replace: '' }],
    caughtBy: [SESSION_DEFAULTS_TEST],
  },
  {
    name: 'sessions: a role for which no trigger runs is taken',
    why: 'capacity, quota and history are kept by triggers',
    edits: [
      {
        file: 'db/check-sessions.ts',
        find: "isDirect && name !== 'session_replication_role'",
        replace: 'isDirect',
      },
    ],
    caughtBy: [SESSION_DEFAULTS_TEST],
  },
  {
    name: 'migrations: wait for a lock as long as they may take',
    why: 'every reader queues behind them until a dump is over',
    edits: [{ file: MIGRATE_DATABASE, find: 'LOCK_TIMEOUT_MS = 1_500', replace: 'LOCK_TIMEOUT_MS = 600_000' }],
    caughtBy: [MIGRATIONS_TEST],
  },
  {
    name: 'outcomes: who waits to hear goes on waiting when nothing is heard any more',
    why: 'each call in the moment of a break costs a second',
    edits: [
      { file: OUTCOMES, find: 'const ends = [signal, this.#hearing.signal];', replace: 'const ends = [signal];' },
    ],
    caughtBy: [SESSIONS_TEST],
  },
  {
    name: 'retention: an operation is forgotten that a key still names',
    why: 'the same call again, which is to get the outcome of the first, begins another operation',
    edits: [{ file: REAP_EXPIRED, find: 'WHERE key.operation_id = operation.id', replace: 'WHERE false' }],
    caughtBy: [RETENTION_TEST],
  },
  {
    name: 'retention: an operation is forgotten whose workflow is open',
    why: 'its saga runs again from its beginning, and starts an instance that was stopped long ago',
    edits: [{ file: REAP_EXPIRED, find: 'AND operation.id NOT IN (${openOperations(request)})', replace: '' }],
    caughtBy: [RETENTION_TEST],
  },
  {
    name: 'retention: a VMM is forgotten whose operation is open',
    why: 'its id is no longer burnt, and its claim can still arrive',
    edits: [{ file: REAP_EXPIRED, find: 'AND (maker.time_ended IS NULL OR', replace: 'AND (' }],
    caughtBy: [RETENTION_TEST],
  },
  {
    name: 'retention: a migration is forgotten whose source has given the guest away and lives',
    why: 'the guest that left it counts as one that shut itself down',
    edits: [{ file: REAP_EXPIRED, find: "past.source_state <> 'completed' AND target_due", replace: 'target_due' }],
    caughtBy: [RETENTION_TEST],
  },
  {
    name: 'retention: nobody writes down which removals were forgotten',
    why: 'a sled that was away keeps an instance in its network for ever',
    edits: [{ file: REAP_EXPIRED, find: 'WHERE newest.changed_in > forgotten_to', replace: 'WHERE false' }],
    caughtBy: [RETENTION_TEST],
  },
  {
    name: 'network: a restored table is not numbered anew',
    why: 'every poll of every sled lists all of it',
    edits: [{ file: NETWORK_CHANGES, find: 'if (page.foreign) {', replace: "if (page.xmin === '') {" }],
    caughtBy: [POLLING_TEST],
  },
  {
    name: 'network: a cursor of another history goes on',
    why: 'what has a lower number here is never read',
    edits: [{ file: NETWORK_CHANGES, find: "if ((at.history ?? '') !== history || ", replace: 'if (' }],
    caughtBy: [POLLING_TEST],
  },
  {
    name: 'search attributes: a refused start is not made again without',
    why: 'an attribute that somebody removed keeps every start from beginning',
    edits: [
      {
        file: 'temporal/client.ts',
        find: 'if (!refusesSearchAttributes(error)) throw error;',
        replace: 'throw error;',
      },
    ],
    caughtBy: [SURROUNDINGS_TEST],
  },
  {
    name: 'search attributes: a worker does not tell its workflows that they have vanished',
    why: 'an upsert fails its workflow task, and the task is done again for ever',
    edits: [
      {
        file: 'worker/attribute-notices.ts',
        find: 'return attributes.usable ? result : withNotice(result);',
        replace: 'return attributes.usable ? result : result;',
      },
    ],
    caughtBy: [SURROUNDINGS_TEST],
  },
  {
    name: 'search attributes: a workflow that was told by nobody does not ask',
    why: 'what went on as an activity ends with an upsert that fails its task for ever',
    edits: [
      {
        file: 'workflows/interceptors.ts',
        find: '    this.#told = null;\n',
        replace: '',
      },
    ],
    caughtBy: [SURROUNDINGS_TEST],
  },
  {
    name: 'surroundings: what is missing is looked for at the start alone',
    why: 'a Temporal that lost its store stands still until every process is restarted',
    edits: [{ file: 'temporal/surroundings.ts', find: '    surroundings.#schedule();\n', replace: '' }],
    caughtBy: [SURROUNDINGS_TEST],
  },
  {
    name: 'deployment: a build that nobody polls for is promoted',
    why: 'all work stops, and the promotion says that it is done',
    edits: [
      {
        file: 'temporal/deployment.ts',
        find: 'return queues.length === 0',
        replace: 'return queues.length >= 0',
      },
    ],
    caughtBy: ['test/cli/deployment.test.ts'],
  },
  {
    name: 'deployment: a build is served by whoever polls',
    why: 'a deploy that nobody promoted is called healthy',
    edits: [
      {
        file: 'temporal/pollers.ts',
        find: '.filter(({ buildId }) => !pollers.some((poller) => poller.buildId === buildId))\n      .map',
        replace: '.filter(() => pollers.length === 0)\n      .map',
      },
    ],
    caughtBy: ['test/rules/pollers.test.ts'],
  },
  {
    name: 'deployment: a ramp to workers without a version is none',
    why: 'a part of the work, or all of it, goes to nobody, and everything is called healthy',
    edits: [
      {
        file: 'temporal/pollers.ts',
        find: 'percentage > 0 ? {',
        replace: 'percentage > 0 && info?.rampingDeploymentVersion != null ? {',
      },
    ],
    caughtBy: ['test/rules/pollers.test.ts', 'test/cli/deployment.test.ts'],
  },
  {
    name: 'deployment: another deployment’s build counts as workers without a version',
    why: 'work that goes to a foreign build without workers is called served, or is not named',
    edits: [
      {
        file: 'temporal/pollers.ts',
        find: ": `${version.buildId}${OF_DEPLOYMENT}${version.deploymentName ?? ''}`;",
        replace: ': null;',
      },
    ],
    caughtBy: ['test/rules/pollers.test.ts'],
  },
  {
    name: 'clocks: the ages of Temporal’s times are judged by this machine’s wall clock',
    why: 'a clock that is off by minutes makes every API and worker not ready, or a dead worker a living one',
    edits: [
      {
        file: 'temporal/server-ages.ts',
        find: 'this.#anchor === null ? Math.max(0, ...times.values()) : this.#anchor.timeMs + (at - this.#anchor.at)',
        replace: 'Date.now()',
      },
    ],
    caughtBy: ['test/rules/server-ages.test.ts'],
  },
  {
    name: 'installation: a run of another installation with our id is joined',
    why: 'a copy’s calls wait for ever on the original’s runs, or the original’s on a copy without workers',
    edits: [
      {
        file: 'temporal/foreign-runs.ts',
        find: 'if (other === null || other === id) return null;',
        replace: 'if (other === null || id !== null) return null;',
      },
    ],
    caughtBy: ['test/rules/foreign-runs.test.ts'],
  },
  {
    name: 'installation: whose run has an id is not asked where a call would join it',
    why: 'a stop, an unwind or a drain is another installation’s, and called done',
    edits: [
      {
        file: 'temporal/foreign-runs.ts',
        find: 'const joins = workflowIdConflictPolicy === WorkflowIdConflictPolicy.USE_EXISTING;',
        replace: 'const joins = false;',
      },
    ],
    caughtBy: ['test/rules/foreign-runs.test.ts'],
  },
  {
    name: 'clocks: a time that has changed since the last look is as old as it says',
    why: 'when Temporal’s own clock is set back, no worker is seen any more',
    edits: [
      {
        file: 'temporal/server-ages.ts',
        find: 'Math.min(sinceMs, Math.max(0, nowMs - timeMs))',
        replace: 'Math.max(0, nowMs - timeMs)',
      },
    ],
    caughtBy: ['test/rules/server-ages.test.ts'],
  },
  {
    name: 'installation: its id is not in the name of its queues',
    why: 'two installations on one namespace take each other’s work',
    edits: [
      {
        file: 'model/workflow-names.ts',
        find: '? `${queue}-${installation}` : queue',
        replace: '? queue : queue',
      },
    ],
    caughtBy: ['test/processes/start-and-end.test.ts'],
  },
  {
    name: 'installation: a copy of a database works beside it',
    why: 'the workers of a restored copy take the work of the original, and know nothing of its instances',
    edits: [
      {
        file: 'temporal/pollers.ts',
        find: '!identity.endsWith(`${MARK}${mark}`)',
        replace: "identity === ''",
      },
    ],
    caughtBy: ['test/rules/pollers.test.ts', 'test/processes/start-and-end.test.ts'],
  },
  {
    name: 'errors: a call that the server ended at our deadline is an internal error',
    why: 'an operator is told of a fault of ours while Temporal is away',
    edits: [{ file: 'temporal/errors.ts', find: 'new Set([1, 4, ', replace: 'new Set([4, ' }],
    caughtBy: ['test/rules/temporal-errors.test.ts'],
  },
  {
    name: 'CPU: placement takes any sled for a guest that runs',
    why: 'a drain moves it to where its CPU is not offered, and it dies there',
    edits: [{ file: PICK_SLED, find: 'AND ${offersCpu(request)} AND sled.id NOT IN', replace: 'AND sled.id NOT IN' }],
    caughtBy: [CPU_PLACEMENT_TEST],
  },
  {
    name: 'CPU: a migration is not refused',
    why: 'its guest is paused and sent, and dies there',
    edits: [{ file: CLAIM_MIGRATION, find: 'if (!destination.offersCpu)', replace: 'if (false)' }],
    caughtBy: [CPU_PLACEMENT_TEST],
  },
  {
    name: 'CPU: the target of a migration gets the model of a new guest there',
    why: 'two machines that could exchange the guest refuse each other',
    edits: [{ file: CLAIM_MIGRATION, find: "'creating', ${active.cpuModel}::text", replace: "'creating', NULL::text" }],
    caughtBy: [CPU_PLACEMENT_TEST],
  },
  {
    name: 'CPU: an agent makes a guest with a CPU that it does not offer',
    why: 'QEMU ends, or leaves features out that the guest has found before',
    edits: [
      { file: 'sled-agent/hypervisor.ts', find: 'if (wanted == null || offered === null ||', replace: 'if (true ||' },
    ],
    caughtBy: ['test/sled-agent/qemu-cpu.test.ts'],
  },
  {
    name: 'CPU: two hosts of one maker count as the same',
    why: 'a guest that was given all of one of them dies on the other',
    edits: [{ file: CPU_MODELS, find: "field('flags')", replace: "field('vendor_id')" }],
    caughtBy: [CPU_RULES_TEST],
  },
  {
    name: 'CPU: the host of another QEMU, or of KVM loaded otherwise, counts as the same',
    why: 'after the upgrade of one server its guests move to those whose QEMU or KVM gives them another CPU',
    edits: [{ file: CPU_MODELS, find: '  parts.push(facts.version, [...facts.kvm].sort());\n', replace: '' }],
    caughtBy: [CPU_RULES_TEST],
  },
  {
    name: "hand-over: whoever has the address of the source's agent is believed",
    why: 'another agent knows no such VMM: the guest is started here, and runs on where it was',
    edits: [
      {
        file: 'sled-agent/qemu/hand-over.ts',
        find: "if (agentId !== null && agentShownIn(headers) !== agentId) return 'unreachable';",
        replace: '',
      },
    ],
    caughtBy: ['test/rules/source-agent.test.ts'],
  },
  {
    name: 'CPU: a source gives its guest to a machine with another one',
    why: 'it is the last who can refuse, where sleds do not say what they offer',
    edits: [{ file: SEND_GUEST, find: "'ncpus', 'cpuModel'] as const", replace: "'ncpus'] as const" }],
    caughtBy: [CPU_RULES_TEST],
  },
  {
    name: 'disk: a removal does not wait for the one before it',
    why: 'a guest loses its folder to the removal of what was there before it',
    edits: [{ file: 'sled-agent/disk.ts', find: 'await before?.catch(() => {});', replace: '' }],
    caughtBy: ['test/sled-agent/disk-faults.test.ts'],
  },
  {
    name: 'names: as many are looked up at a time as are asked for',
    why: 'a name service that hangs takes every thread, and PostgreSQL does not answer any more',
    edits: [
      { file: 'platform/host/name-lookups.ts', find: 'while (running.length < atOnce) {', replace: 'while (true) {' },
    ],
    caughtBy: ['test/rules/name-lookups.test.ts'],
  },
  {
    name: 'names: those that hang take every turn',
    why: 'two names of a rack whose name server is gone, and no sled of another rack is found',
    edits: [
      { file: 'platform/host/name-lookups.ts', find: 'running.filter(isHung).length < mostHung', replace: 'true' },
    ],
    caughtBy: ['test/rules/name-lookups.test.ts'],
  },
  {
    name: 'names: the last address of one that hangs is forgotten',
    why: 'sleds that answer count as silent for as long as a name server does not',
    edits: [
      {
        file: 'platform/host/name-lookups.ts',
        find: 'if (error === null) keep(key, found);',
        replace: 'if (error === null) keep(key, null);',
      },
    ],
    caughtBy: ['test/rules/name-lookups.test.ts'],
  },
  {
    name: 'names: a name that is gone keeps its address',
    why: 'what was said to be nowhere is called as soon as nothing is said',
    edits: [
      {
        file: 'platform/host/name-lookups.ts',
        find: "else if (error.code === 'ENOTFOUND') keep(key, null);",
        replace: '',
      },
    ],
    caughtBy: ['test/rules/name-lookups.test.ts'],
  },
  {
    name: 'another agent than the sled’s own renews its lease while VMMs live there',
    why: 'their guests count as running for ever, and no word of an operator ends that',
    edits: [{ file: RENEW, find: '\n      AND NOT ${isForeign(sledId, agentId)}', replace: '' }],
    caughtBy: ['test/trust/leases.test.ts'],
  },
  {
    name: 'another agent’s renewal is judged as its sled’s own, once the quick way has refused it',
    why: 'a sled that was declared dead is taken back on the word of who has nothing of it',
    edits: [{ file: RENEW, find: "if (sled.foreign_agent) return { outcome: 'foreign-agent' };", replace: '' }],
    caughtBy: ['test/trust/leases.test.ts'],
  },
  {
    name: 'a renewal does not say whose agent it is of',
    why: 'an agent that has lost its data renews the lease of guests that it does not know',
    edits: [
      {
        file: 'sled-agent/lease-keeper.ts',
        find: 'agentId === null ? {} : { [AGENT_ID_HEADER]: agentId };',
        replace: '{};',
      },
    ],
    caughtBy: ['test/sled-agent/strangers.test.ts'],
  },
  {
    name: 'a plain sled is believed about another plain sled’s VMMs',
    why: 'a copy of an agent’s data, or who has its former address, has guests ended that run elsewhere',
    edits: [
      {
        file: 'db/queries/read-sled-vmms.ts',
        find: "AND owner.policy <> 'expunged', false)",
        replace: 'AND owner.identified, false)',
      },
    ],
    caughtBy: [ACTIVITIES_TEST],
  },
  {
    name: 'an agent that does not say who it is never takes the place of one that did',
    why: 'VMMs are placed on its sled, and every wait for its answer is for ever',
    edits: [
      {
        file: WATCHER,
        find: "if (inventory.status === 'fulfilled' && (await adoptAgent(db, sled.id, null))) return 'new';",
        replace: '',
      },
    ],
    caughtBy: [ACTIVITIES_TEST],
  },
  {
    name: 'a sled that is declared dead can’t move while somebody answers where it was',
    why: 'its former address has another host by now, and it never joins again',
    edits: [{ file: WORD, find: "if (dead && !guests) return take('at once');", replace: '' }],
    caughtBy: [WORD_RULES_TEST],
  },
  {
    name: 'an agent does not say that its reports are refused',
    why: 'its guests’ states stand still, and nobody knows why',
    edits: [
      {
        file: 'sled-agent/reporter.ts',
        find: 'if (refusal === this.#refusal) return;',
        replace: 'if (refusal !== "") return;',
      },
    ],
    caughtBy: ['test/sled-agent/strangers.test.ts'],
  },
  {
    name: 'what another installation has is refused for good',
    why: 'a key keeps it for a week, though the copy has a namespace of its own by then',
    edits: [
      {
        file: 'temporal/foreign-runs.ts',
        find: 'throw Refusal.unavailable(problem);',
        replace: 'throw Refusal.conflict(problem);',
      },
    ],
    caughtBy: ['test/rules/foreign-runs.test.ts'],
  },
  {
    name: 'a setting that is empty is set',
    why: 'an environment file that names a setting without a value keeps the process from starting',
    edits: [{ file: 'cli/program.ts', find: "value?.trim() === ''", replace: 'value === undefined' }],
    caughtBy: ['test/rules/empty-settings.test.ts'],
  },
  {
    name: 'an id in upper case is another one',
    why: 'an agent that others wrote reports its guests by ids that the database does not find: the watcher ends them',
    edits: [{ file: 'wire/uuid.ts', find: '.overwrite((id) => id.toLowerCase())', replace: '' }],
    caughtBy: ['test/rules/spellings.test.ts'],
  },
  {
    name: 'what the API lacks itself is a sled’s silence',
    why: 'an API without file descriptors believes that every sled is off: guests run twice',
    edits: [
      {
        file: 'activities/silence.ts',
        find: "return typeof code === 'string' && OF_THE_PEER.test(code) && !/MALLOC/.test(code);",
        replace: 'return true;',
      },
    ],
    caughtBy: ['test/rules/cannot-ask.test.ts'],
  },
  {
    name: 'a process that was held up has heard that nobody answers',
    why: 'an API whose machine was paused for a moment believes that a sled is off which has answered',
    edits: [{ file: 'activities/silence.ts', find: '(isLimit && isOwn)', replace: '(isLimit && namesUnknown > 0)' }],
    caughtBy: ['test/rules/cannot-ask.test.ts'],
  },
  {
    name: 'an API that can’t ask answers that it is broken',
    why: 'whoever called doesn’t know that it may be tried again',
    edits: [
      {
        file: 'api/errors.ts',
        find: 'if (error instanceof CannotAsk) return',
        replace: 'if (error === null) return',
      },
    ],
    caughtBy: ['test/rules/cannot-ask.test.ts'],
  },
  {
    name: 'an inventory with a state that is not known is no sign of life',
    why: 'a sled whose agent is newer counts as off: its guests are started elsewhere, too',
    edits: [
      {
        file: 'activities/sled-client.ts',
        find: 'const inventoryShape = z.object({ vmms: z.array(z.unknown()) });',
        replace: 'const inventoryShape = sledInventory;',
      },
    ],
    caughtBy: [ANOTHER_AGENT_TEST],
  },
  {
    name: 'a word is believed of a sled whose own agent says what is not understood',
    why: 'an agent of a newer version, whose guests run, counts as silent: they are started elsewhere, too',
    edits: [
      {
        file: 'activities/sled-client.ts',
        find: 'if (shown !== undefined) return keptAgentId == null || shown === keptAgentId;',
        replace: 'if (keptAgentId != null && shown !== undefined && shown !== keptAgentId) return false;',
      },
      {
        file: 'activities/sled-client.ts',
        find: 'if (keptAgentId != null && asked !== undefined) return asked === keptAgentId;',
        replace: 'if (asked !== undefined && asked !== keptAgentId) return false;',
      },
    ],
    caughtBy: [ANOTHER_AGENT_TEST],
  },
  {
    name: 'an agent whose data go with it says that its id is kept',
    why: 'started again it is another one to everybody, and its guests, which are gone, count as running for ever',
    edits: [
      {
        file: 'sled-agent/agent-description.ts',
        find: 'this.#isKept = dataDir !== null && !isThrownAway;',
        replace: 'this.#isKept = dataDir !== null;',
      },
    ],
    caughtBy: ['test/sled-agent/agent-description.test.ts'],
  },
  {
    name: 'a process without file descriptors keeps its reserve to itself',
    why: 'its lease is not renewed, and every guest is powered off, for want of a descriptor that it holds',
    edits: [
      {
        file: 'platform/host/descriptor-reserve.ts',
        find: '    this.#change(lacking);\n    this.#giveUp();',
        replace: '    this.#change(lacking);',
      },
    ],
    caughtBy: ['test/rules/descriptor-reserve.test.ts', 'test/sled-agent/no-descriptors.test.ts'],
  },
  {
    name: 'a guest is begun with what the reserve has',
    why: 'guests take the last descriptors, and nothing is left by which their lease is renewed or they are ended',
    edits: [
      {
        file: 'sled-agent/agent.ts',
        find: 'const lacking = processDescriptors.whyNotFor(DESCRIPTORS_OF_A_GUEST);',
        replace: 'const lacking = null;',
      },
    ],
    caughtBy: ['test/sled-agent/no-descriptors.test.ts'],
  },
  {
    name: "the agent's listener takes any number of connections",
    why: 'a scanner that says nothing takes every descriptor of the agent',
    edits: [{ file: 'sled-agent/agent-app.ts', find: '  limitConnections(app.server);\n', replace: '' }],
    caughtBy: ['test/processes/connection-limits.test.ts'],
  },
  {
    name: "the API's listeners take any number of connections",
    why: 'idle connections take the descriptors by which PostgreSQL is reached, and with them the leases of all sleds',
    edits: [
      {
        file: 'api/app.ts',
        find: '  limitConnections(app.server, { share: isForSleds ? SHARES.sleds : SHARES.operators });\n',
        replace: '',
      },
    ],
    caughtBy: ['test/processes/connection-limits.test.ts'],
  },
  {
    name: 'a connection that is being answered makes room for a new one',
    why: 'whoever opens connections cuts the calls that wait for a saga',
    edits: [
      {
        file: 'platform/http/connection-limits.ts',
        find: "return !request.complete || response.writableEnded ? 'stuck' : null;",
        replace: "return 'stuck';",
      },
    ],
    caughtBy: ['test/processes/connection-limits.test.ts'],
  },
  {
    name: 'a full server closes the new connection rather than an idle one',
    why: 'connections that say nothing keep everybody else out',
    edits: [
      {
        file: 'platform/http/connection-limits.ts',
        find: 'if (!giveUpOne(room)) return void socket.destroy();',
        replace: 'return void socket.destroy();',
      },
    ],
    caughtBy: ['test/processes/connection-limits.test.ts'],
  },
  {
    name: 'a shortage of descriptors gives up connections that are asked on',
    why: 'every sled opens others with a handshake each, which are cut in turn: no lease is renewed',
    edits: [
      {
        file: 'platform/http/connection-limits.ts',
        find: " || (rank === 'served' && isShort && !connection.isLate)",
        replace: '',
      },
    ],
    caughtBy: ['test/processes/connection-limits.test.ts'],
  },
  {
    name: 'a handshake gives way before a connection that waits',
    why: 'where a server is full nobody new is ever done with his handshake',
    edits: [
      {
        file: 'platform/http/connection-limits.ts',
        find: "const first = areTooMany ? best.get('young') : undefined;",
        replace: "const first = best.get('young');",
      },
    ],
    caughtBy: ['test/processes/connection-limits.test.ts'],
  },
  {
    name: 'connections that only open are young without a limit',
    why: 'whoever opens enough of them drives out every sled',
    edits: [
      {
        file: 'platform/http/connection-limits.ts',
        find: "const first = areTooMany ? best.get('young') : undefined;",
        replace: 'const first = undefined;',
      },
    ],
    caughtBy: ['test/processes/connection-limits.test.ts'],
  },
  {
    name: 'a connection that was only refused counts as one that was answered',
    why: 'whoever asks for nothing that he may have keeps out those who do',
    edits: [
      {
        file: 'platform/http/connection-limits.ts',
        find: "return isServed ? 'served' : 'refused';",
        replace: "return 'served';",
      },
    ],
    caughtBy: ['test/processes/connection-limits.test.ts'],
  },
  {
    name: 'those that were used last are given up first',
    why: 'a full server cuts whoever asks most',
    edits: [
      {
        file: 'platform/http/connection-limits.ts',
        find: 'one.since < other.since);',
        replace: 'one.since > other.since);',
      },
    ],
    caughtBy: ['test/processes/connection-limits.test.ts'],
  },
  {
    name: 'a server has no more connections however many its process may have',
    why: 'a larger limit is of no use to more sleds',
    edits: [
      {
        file: 'platform/http/connection-limits.ts',
        find: 'Math.floor(Math.min(limit, UNLIMITED) * share)',
        replace: 'Math.min(16_384, Math.floor(Math.min(limit, UNLIMITED) * share))',
      },
    ],
    caughtBy: ['test/processes/connection-limits.test.ts'],
  },
  {
    name: 'a folder named temporal on PATH is taken for the program',
    why: 'an installation does not start, for want of what stands later on PATH',
    edits: [{ file: 'stack/temporal-binary.ts', find: 'return (await stat(path)).isFile();', replace: 'return true;' }],
    caughtBy: ['test/rules/temporal-binary.test.ts'],
  },
  {
    name: 'a simulated guest that is killed keeps what it was doing',
    why: 'one that was powered off comes back when its connection breaks: two copies of a guest',
    edits: [
      {
        file: SIMULATED,
        find: "    vm.state = 'ended';\n    vm.outgoing = null;\n    this.#release(vm);",
        replace: '    this.#release(vm);',
      },
      {
        file: SIMULATED,
        find: "vm.guest.since !== null || vm.state === 'ended') return;",
        replace: 'vm.guest.since !== null) return;',
      },
      {
        file: SIMULATED,
        find: '    if (this.#vms.get(vm.spec.vmmId) !== vm) return;\n    const timer',
        replace: '    const timer',
      },
    ],
    caughtBy: ['test/sled-agent/killed-guests.test.ts'],
  },
  {
    name: 'a connection outlives the authority that it was made by',
    why: 'whoever has a stolen certificate and a connection goes on commanding sleds',
    edits: [
      {
        file: 'platform/identity/peer.ts',
        find: "  if (!own.trusts(known.issuer)) return refuse('other_authority');\n",
        replace: '',
      },
    ],
    caughtBy: ['test/trust/authority-rotation.test.ts'],
  },
  {
    name: 'a sled does not learn of other authorities',
    why: 'when the next one signs, no sled believes the control plane',
    edits: [
      {
        file: 'sled-agent/sled-identity.ts',
        find: '    await this.holder.renewNow();',
        replace: '',
      },
    ],
    caughtBy: ['test/trust/authority-rotation.test.ts'],
  },
  {
    name: 'a build that is gone back to takes over what runs',
    why: 'it can’t replay what the newer one has written: workflows stand still',
    edits: [
      {
        file: 'temporal/deployment.ts',
        find: '      \'TemporalWorkflowVersioningBehavior = "AutoUpgrade"\',',
        replace: '      \'TemporalWorkflowVersioningBehavior = "Pinned"\',',
      },
    ],
    caughtBy: ['test/upgrade/upgrade.test.ts'],
  },
  {
    name: 'nothing can listen at every address of its machine',
    why: 'metrics are seen by nobody else, and an image does not start',
    edits: [
      {
        file: 'model/host-address.ts',
        find: 'const one = listensEverywhere(address) ?',
        replace: 'const one = address === "" ?',
      },
    ],
    caughtBy: ['test/rules/settings.test.ts'],
  },
  {
    name: 'who says nothing of the search attributes is told apart by the form of the failure',
    why: 'a run whose worker ran out of time goes otherwise when its history is read: it is stuck for ever (soak 2143248970)',
    edits: [
      {
        file: 'workflows/interceptors.ts',
        find: 'if (!(error instanceof TemporalFailure)) throw error;',
        replace: "if (!(error instanceof TemporalFailure) || error.name === 'TimeoutFailure') throw error;",
      },
    ],
    caughtBy: ['test/replay/replay.test.ts'],
  },
  {
    name: 'a stream shows every project to who is on one',
    why: 'a token hears of what it may not see',
    edits: [
      {
        file: 'api/events/event-stream.ts',
        find: 'FLEET_EVENT_KINDS.has(kind) || projectId === filter.projectId',
        replace: 'FLEET_EVENT_KINDS.has(kind) || true',
      },
    ],
    caughtBy: ['test/rules/event-stream.test.ts', 'test/trust/event-stream.test.ts'],
  },
  {
    name: 'a stream shows what is the fleet’s to who is on a project',
    why: 'a token on a project hears of sleds, and of who did what',
    edits: [
      {
        file: 'api/routes/events.ts',
        find: 'if (hidden !== undefined)',
        replace: 'if (hidden === null)',
      },
    ],
    caughtBy: ['test/trust/event-stream.test.ts'],
  },
  {
    name: 'a revoked token goes on reading',
    why: 'who was shut out hears of everything, as long as he stays',
    edits: [
      {
        file: 'api/events/change-feed.ts',
        find: "stream.end(why === 'revoked' ? 'token_revoked' : 'token_expired');",
        replace: '',
      },
      { file: 'api/events/change-feed.ts', find: '      this.leave(stream);\n    }\n  }', replace: '    }\n  }' },
    ],
    caughtBy: ['test/trust/event-stream.test.ts'],
  },
  {
    name: 'a reader of changes who has missed some is not told',
    why: 'it shows what is no more, for ever',
    edits: [
      {
        file: 'db/queries/read-changes.ts',
        find: 'if (isForeign || isForgotten || read.changes.length > MOST_CHANGES)',
        replace: 'if (isForeign || read.changes.length > MOST_CHANGES)',
      },
    ],
    caughtBy: ['test/database/changes.test.ts'],
  },
  {
    name: 'a change that commits late is missed',
    why: 'a reader never hears of it',
    edits: [
      {
        file: 'db/queries/read-changes.ts',
        find: ' OR changed_in = ANY(${`{${open}}`}::xid8[])',
        replace: '',
      },
    ],
    caughtBy: ['test/database/changes.test.ts'],
  },
  {
    name: 'what a slow reader of changes does not take is dropped without a word',
    why: 'its picture has gaps that nobody knows of',
    edits: [
      {
        file: 'api/events/event-stream.ts',
        find: "this.#write(writeReset('slow', id));",
        replace: 'this.#write(writeId(id));',
      },
    ],
    caughtBy: ['test/rules/event-stream.test.ts'],
  },
  {
    name: 'the console may run what stands on it',
    why: 'a script that somebody wrote into a name is run as whoever looks',
    edits: [
      {
        file: 'api/routes/console.ts',
        find: '"script-src \'self\'"',
        replace: "\"script-src 'self' 'unsafe-inline'\"",
      },
    ],
    caughtBy: ['test/rules/console-pages.test.ts'],
  },
  {
    name: 'any frame counts as a person who looks at the console',
    why: 'another site shows it within its own page, and has it clicked',
    edits: [
      {
        file: 'platform/http/web-pages.ts',
        find: " && headers['sec-fetch-dest'] === 'document'",
        replace: '',
      },
    ],
    caughtBy: ['test/rules/console-pages.test.ts'],
  },
  {
    name: 'the console offers what another project’s token may not do',
    why: 'buttons that are refused, and nobody knows why',
    edits: [
      {
        file: 'console/api/permitted.ts',
        find: 'projectId === undefined ? [] : [projectId]',
        replace: '[]',
      },
    ],
    caughtBy: ['test/console/picture.test.ts'],
  },
  {
    name: 'the console follows any address as a link',
    why: 'a stranger’s javascript: address is run by who presses it',
    edits: [
      {
        file: 'console/words.ts',
        find: '/^https?:\\/\\//i.test(address)',
        replace: 'true',
      },
    ],
    caughtBy: ['test/console/picture.test.ts'],
  },
  {
    name: 'the console draws every row there is',
    why: 'with 200 sleds the page stands still',
    edits: [
      {
        file: 'console/store/window.ts',
        find: 'const end = Math.min(rowCount, Math.ceil((offset + sightHeight) / rowHeight) + 1);',
        replace: 'const end = rowCount;',
      },
    ],
    caughtBy: ['test/console/picture.test.ts'],
  },
  {
    name: 'the console forgets what comes while it lists',
    why: 'a change that comes between is shown when it changes again, or never',
    edits: [
      {
        file: 'console/store/fleet.ts',
        find: 'else if (waiting !== null) waiting.push(event);',
        replace: 'else if (waiting !== null) continue;',
      },
    ],
    caughtBy: ['test/console/console.test.ts'],
  },
];

/** Thrown when a mutant's text does not stand in its file as the list says. */
export class StaleMutant extends Error {
  override readonly name = 'StaleMutant';
}

/** Applies edits to a file's text. Throws {@link StaleMutant} when the text that is to be replaced isn't there as often as it says. */
export function applyEdit(text: string, edit: Edit, mutant: string): string {
  const found = text.split(edit.find).length - 1;
  const expected = edit.times ?? 1;
  if (found !== expected)
    throw new StaleMutant(
      `"${mutant}": ${edit.file} holds ${found} times, not ${expected}, what is to be replaced; write the mutant anew:\n${edit.find}`,
    );
  return text.replaceAll(edit.find, () => edit.replace);
}
