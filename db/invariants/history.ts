/** What the journal shows: invariants 2, 3, 5, 6 and 7 checked against what happened, and by whom. */
import type { DatabaseRule } from './rule.ts';

/**
 * Who may do what to an instance's ids and state, by the tags of the statements in `db/transactions`. A new transaction
 * that may joins here, and nowhere else.
 */
export const WRITERS = {
  /** Invariant 3: the update saga is the only one that clears ids, and the only one that lets the target become active. */
  clears: ['commit-update'],
  /** From NULL, or over `saga_unwound`. */
  setsActive: ['claim-start'],
  setsTarget: ['claim-migration'],
  /** States without a change of ids: a Failed instance that is stopped, and one that is deleted. */
  settles: ['record-stop', 'delete-instance'],
  /** The compensation of start and migrate, and nobody else. */
  unwinds: ['finish-unwind', 'burn-vmm-id'],
  /** Who may call a VMM lost, so that its instance is started anew: by its sled's answer, an operator's statement, or its lapsed lease. */
  fails: ['apply-report', 'fail-vmm', 'force-stop', 'expunge-sled', 'declare-dead'],
  reserves: ['claim-start', 'claim-migration'],
  charges: ['claim-start'],
  /** The reaper only what is orphaned. */
  refunds: ['commit-update', 'finish-unwind', 'reap'],
  /** That a guest is off, whatever its sled says or fails to say. */
  vouches: ['declare-dead', 'force-stop'],
  /** Rows go for good only when what they tell of has long been over. */
  forgets: ['reap-expired'],
} as const;

/** What may become known of a VMM when it has been unwound: somebody answers for it that it is off, and its row is deleted. */
const LATER = `'{time_deleted,vouched_gone_at}'::text[]`;

const tags = (...lists: (readonly string[])[]) => `(${[...new Set(lists.flat())].map((tag) => `'${tag}'`).join(', ')})`;

const old = (column: string) => `entry.before->>'${column}'`;
const now = (column: string) => `entry.after->>'${column}'`;
const changed = (column: string) => `${old(column)} IS DISTINCT FROM ${now(column)}`;
const FROM = 'FROM doctor.journal entry';
const IDS = ['state', 'active_vmm_id', 'target_vmm_id', 'migration_id'];

/** Rules that need the journal. */
export const HISTORY_RULES: readonly DatabaseRule[] = [
  {
    name: 'instance generation plus one',
    invariant: 2,
    holds: 'always',
    query: `
      SELECT entry.instance_id, NULL::uuid, format('instance %s: %s wrote generation %s over %s%s (journal entry %s)', ${now('name')}, entry.writer,
        ${now('state_generation')}, ${old('state_generation')}, CASE WHEN ${IDS.map(changed).join(' OR ')} THEN ' with a change of state or ids' ELSE '' END, sequence)
      ${FROM} WHERE relation = 'instance' AND change = 'update'
        AND (${now('state_generation')})::bigint <> (${old('state_generation')})::bigint + CASE WHEN ${IDS.map(changed).join(' OR ')} THEN 1 ELSE 0 END`,
  },
  {
    name: 'VMM generation rises',
    invariant: 2,
    holds: 'always',
    query: `
      SELECT entry.instance_id, (${now('sled_id')})::uuid, format('VMM %s: %s wrote %s, generation %s, over %s, generation %s (journal entry %s)', row_id, entry.writer,
        ${now('state')}, ${now('state_generation')}, ${old('state')}, ${old('state_generation')}, sequence)
      ${FROM} WHERE relation = 'vmm' AND change = 'update'
        AND ((${now('state_generation')})::bigint < (${old('state_generation')})::bigint
          OR (${changed('state')} AND ${now('state_generation')} = ${old('state_generation')}))`,
  },
  {
    name: 'migration generation rises',
    invariant: 2,
    holds: 'always',
    query: `
      SELECT entry.instance_id, NULL::uuid, format('migration %s: %s wrote its %s side %s, generation %s, over %s, generation %s (journal entry %s)', row_id, entry.writer,
        side.name, side.after, side.generation_after, side.before, side.generation_before, sequence)
      ${FROM} CROSS JOIN LATERAL (VALUES
        ('source', ${old('source_state')}, ${now('source_state')}, (${old('source_generation')})::bigint, (${now('source_generation')})::bigint),
        ('target', ${old('target_state')}, ${now('target_state')}, (${old('target_generation')})::bigint, (${now('target_generation')})::bigint)
      ) AS side (name, before, after, generation_before, generation_after)
      WHERE relation = 'migration' AND change = 'update'
        AND (generation_after < generation_before OR (side.after <> side.before AND generation_after = generation_before)
          OR (side.before IN ('completed', 'failed') AND side.after <> side.before))`,
  },
  {
    name: 'gone stays gone',
    invariant: 2,
    holds: 'always',
    query: `
      SELECT entry.instance_id, (${now('sled_id')})::uuid, format('VMM %s: %s brought it back from %s to %s (journal entry %s)', row_id, entry.writer,
        ${old('state')}, ${now('state')}, sequence)
      ${FROM} WHERE relation = 'vmm' AND change = 'update' AND ${old('state')} IN ('destroyed', 'failed')
        AND ${changed('state')} AND ${now('state')} <> 'saga_unwound'`,
  },
  {
    name: 'only the update clears ids',
    invariant: 3,
    holds: 'always',
    query: `
      SELECT entry.instance_id, NULL::uuid, format('instance %s: %s cleared %s (journal entry %s)', ${now('name')}, entry.writer, link.name, sequence)
      ${FROM} CROSS JOIN LATERAL (VALUES
        ('active_vmm_id', ${old('active_vmm_id')}, ${now('active_vmm_id')}), ('target_vmm_id', ${old('target_vmm_id')}, ${now('target_vmm_id')}),
        ('migration_id', ${old('migration_id')}, ${now('migration_id')})
      ) AS link (name, before, after)
      WHERE relation = 'instance' AND change = 'update' AND link.before IS NOT NULL AND link.after IS NULL
        AND entry.writer NOT IN ${tags(WRITERS.clears)}`,
  },
  {
    name: 'only start sets active',
    invariant: 3,
    holds: 'always',
    query: `
      SELECT entry.instance_id, NULL::uuid, format('instance %s: %s set active VMM %s over %s (journal entry %s)', ${now('name')}, entry.writer,
        ${now('active_vmm_id')}, coalesce(${old('active_vmm_id')} || ', which was ' || coalesce(context->>'active_was', 'unknown'), 'none'), sequence)
      ${FROM} WHERE relation = 'instance' AND ${now('active_vmm_id')} IS NOT NULL AND ${changed('active_vmm_id')}
        AND NOT (entry.writer IN ${tags(WRITERS.setsActive)} AND (${old('active_vmm_id')} IS NULL OR context->>'active_was' = 'saga_unwound'))
        -- The guest moved: the target becomes active (cases 1 and 2).
        AND NOT (entry.writer IN ${tags(WRITERS.clears)} AND ${now('active_vmm_id')} = ${old('target_vmm_id')})`,
  },
  {
    name: 'only migrate sets target',
    invariant: 3,
    holds: 'always',
    query: `
      SELECT entry.instance_id, NULL::uuid, format('instance %s: %s set target VMM %s and migration %s over %s (journal entry %s)', ${now('name')}, entry.writer,
        coalesce(${now('target_vmm_id')}, 'none'), coalesce(${now('migration_id')}, 'none'),
        coalesce(${old('target_vmm_id')} || ', which was ' || coalesce(context->>'target_was', 'unknown'), 'none'), sequence)
      ${FROM} WHERE relation = 'instance'
        AND ((${now('target_vmm_id')} IS NOT NULL AND ${changed('target_vmm_id')}) OR (${now('migration_id')} IS NOT NULL AND ${changed('migration_id')}))
        AND NOT (entry.writer IN ${tags(WRITERS.setsTarget)} AND (${old('target_vmm_id')} IS NULL OR context->>'target_was' = 'saga_unwound'))`,
  },
  {
    name: 'state written by its writers',
    invariant: 3,
    holds: 'always',
    query: `
      SELECT entry.instance_id, NULL::uuid, format('instance %s: %s wrote state %s over %s (journal entry %s)', ${now('name')}, entry.writer, ${now('state')}, ${old('state')}, sequence)
      ${FROM} WHERE relation = 'instance' AND change = 'update' AND ${changed('state')} AND NOT CASE
        WHEN ${now('state')} = 'vmm' THEN entry.writer IN ${tags(WRITERS.setsActive)}
        WHEN ${old('state')} = 'vmm' THEN entry.writer IN ${tags(WRITERS.clears)}
        ELSE entry.writer IN ${tags(WRITERS.settles, WRITERS.clears)} END`,
  },
  {
    name: 'only an unwind writes saga_unwound',
    invariant: 3,
    holds: 'always',
    query: `
      SELECT entry.instance_id, (${now('sled_id')})::uuid, format('VMM %s: %s wrote saga_unwound over %s (journal entry %s)', row_id, entry.writer, coalesce(${old('state')}, 'nothing'), sequence)
      ${FROM} WHERE relation = 'vmm' AND ${now('state')} = 'saga_unwound' AND ${changed('state')} AND entry.writer NOT IN ${tags(WRITERS.unwinds)}`,
  },
  {
    name: 'failed by its writers',
    invariant: 4,
    holds: 'always',
    query: `
      SELECT entry.instance_id, (${now('sled_id')})::uuid, format('VMM %s: %s wrote failed over %s (journal entry %s)', row_id, entry.writer, coalesce(${old('state')}, 'nothing'), sequence)
      ${FROM} WHERE relation = 'vmm' AND ${now('state')} = 'failed' AND ${changed('state')} AND entry.writer NOT IN ${tags(WRITERS.fails)}`,
  },
  {
    name: 'outcome written once',
    invariant: 5,
    holds: 'always',
    query: `
      SELECT entry.instance_id, NULL::uuid, format('%s %s: %s changed its outcome from %s to %s (journal entry %s)', ${now('kind')}, row_id, entry.writer,
        CASE ${old('succeeded')} WHEN 'true' THEN 'succeeded' ELSE 'failed' END, CASE ${now('succeeded')} WHEN 'true' THEN 'succeeded' WHEN 'false' THEN 'failed' ELSE 'none' END, sequence)
      ${FROM} WHERE relation = 'operation' AND change = 'update' AND ${old('time_ended')} IS NOT NULL
        AND (${changed('succeeded')} OR ${changed('error')})`,
  },
  {
    name: 'charged and refunded by its writers',
    invariant: 5,
    holds: 'always',
    query: `
      SELECT entry.instance_id, NULL::uuid, format('instance %s: the charge was touched (%s) by %s (journal entry %s)', entry.instance_id, change, entry.writer, sequence)
      ${FROM} WHERE relation = 'provisioning_charge' AND NOT CASE change
        WHEN 'insert' THEN entry.writer IN ${tags(WRITERS.charges)} WHEN 'delete' THEN entry.writer IN ${tags(WRITERS.refunds)} ELSE false END`,
  },
  {
    name: 'quota not exceeded',
    invariant: 1,
    holds: 'always',
    query: `
      SELECT entry.instance_id, NULL::uuid, format('instance %s was charged to project %s beyond its quota: %s CPUs of %s, %s bytes of %s (journal entry %s)',
        entry.instance_id, ${now('project_id')}, context->>'charged_cpus', coalesce(context->>'quota_cpus', 'any number'),
        context->>'charged_memory_bytes', coalesce(context->>'quota_memory_bytes', 'any number'), sequence)
      ${FROM} WHERE relation = 'provisioning_charge' AND change = 'insert'
        AND ((context->>'charged_cpus')::bigint > (context->>'quota_cpus')::bigint
          OR (context->>'charged_memory_bytes')::bigint > (context->>'quota_memory_bytes')::bigint)`,
  },
  {
    name: 'unwound row final',
    invariant: 6,
    holds: 'always',
    query: `
      SELECT entry.instance_id, (${old('sled_id')})::uuid, format('VMM %s was unwound, and then %s wrote %s, generation %s (journal entry %s)', row_id, entry.writer,
        coalesce(${now('state')}, 'nothing'), coalesce(${now('state_generation')}, 'none'), sequence)
      -- That it may be forgotten once it is deleted is the next rule's.
      ${FROM} WHERE relation = 'vmm' AND ${old('state')} = 'saga_unwound' AND change <> 'delete'
        AND (entry.before - ${LATER} <> entry.after - ${LATER} OR ${old('time_deleted')} IS NOT NULL
          OR ${changed('vouched_gone_at')} AND NOT (${old('vouched_gone_at')} IS NULL AND entry.writer IN ${tags(WRITERS.vouches)}))`,
  },
  {
    name: 'only what is over is forgotten',
    invariant: 6,
    holds: 'always',
    query: `
      SELECT entry.instance_id, (${old('sled_id')})::uuid, format('%s %s was forgotten by %s (journal entry %s)%s', relation, row_id, entry.writer, sequence,
        CASE WHEN entry.writer IN ${tags(WRITERS.forgets)} THEN ', but it was not over' ELSE '' END)
      ${FROM} WHERE change = 'delete' AND relation IN ('instance', 'vmm', 'migration', 'operation')
        AND NOT (entry.writer IN ${tags(WRITERS.forgets)} AND CASE relation
          WHEN 'operation' THEN ${old('time_ended')} IS NOT NULL
          -- Its VMMs tell: a side of it may never have been settled.
          WHEN 'migration' THEN true
          ELSE ${old('time_deleted')} IS NOT NULL END)`,
  },
  {
    name: 'unwinding row closed to others',
    invariant: 6,
    holds: 'always',
    query: `
      SELECT entry.instance_id, (${now('sled_id')})::uuid, format('VMM %s was being unwound, but %s wrote %s over %s (journal entry %s)', row_id, entry.writer,
        CASE WHEN ${changed('state')} THEN ${now('state')} ELSE 'an end of the unwind' END, ${old('state')}, sequence)
      ${FROM} WHERE relation = 'vmm' AND change = 'update' AND ${old('unwinding_since')} IS NOT NULL AND ${old('state')} <> 'saga_unwound'
        AND ((${changed('state')} AND ${now('state')} <> 'saga_unwound') OR ${changed('unwinding_since')})`,
  },
  {
    name: 'unwound attempt takes nothing',
    invariant: 6,
    holds: 'always',
    query: `
      SELECT entry.instance_id, (${now('sled_id')})::uuid, format('VMM %s was unwound, and then %s made it a %s reservation (journal entry %s)', row_id, entry.writer, ${now('kind')}, sequence)
      ${FROM} WHERE relation = 'sled_reservation' AND change <> 'delete' AND ${now('kind')} <> 'tombstoned' AND context->>'vmm' = 'saga_unwound'
      UNION ALL
      SELECT entry.instance_id, (${now('sled_id')})::uuid, format('the reservation of VMM %s was made by %s (journal entry %s)', row_id, entry.writer, sequence)
      ${FROM} WHERE relation = 'sled_reservation' AND change = 'insert' AND entry.writer NOT IN ${tags(WRITERS.reserves)}`,
  },
  {
    name: 'no unwind past the point of no return',
    invariant: 7,
    holds: 'always',
    query: `
      SELECT entry.instance_id, (${now('sled_id')})::uuid, format('VMM %s: %s began to unwind it when its side of the migration was %s (journal entry %s)', row_id, entry.writer,
        context->>'target_side', sequence)
      ${FROM} WHERE relation = 'vmm' AND change = 'update' AND ${old('unwinding_since')} IS NULL AND ${now('unwinding_since')} IS NOT NULL
        AND context->>'target_side' IN ('in_progress', 'completed')`,
  },
];
