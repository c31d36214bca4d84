/** Checks the rules of the invariants on the database: all in one statement, so that they see one committed state. */
import { sql } from 'drizzle-orm';
import { z } from 'zod';
import type { Database, Queryable } from '../connect.ts';
import { databaseError } from '../errors.ts';
import { CONSTRAINT_RULES } from './constraints.ts';
import { HISTORY_RULES } from './history.ts';
import type { DatabaseRule } from './rule.ts';
import { STATE_RULES } from './state.ts';

/** Every rule on the stored state and on the journal. */
export const DATABASE_RULES: readonly DatabaseRule[] = [...CONSTRAINT_RULES, ...STATE_RULES, ...HISTORY_RULES];

/** At most so many violations of one rule are listed, so that one broken trigger does not hide the others. */
const MAX_VIOLATIONS_PER_RULE = 100;

const row = z.object({
  rule: z.coerce.number(),
  instance_id: z.string().nullable(),
  sled_id: z.string().nullable(),
  message: z.string(),
});
const header = z.object({ journal: z.boolean(), instances: z.coerce.number(), vmms: z.coerce.number() });

/** Something that breaks a rule. */
export interface Violation {
  readonly rule: DatabaseRule;
  readonly instanceId: string | null;
  readonly sledId: string | null;
  /** One line: names the instance, VMM or sled, and says what is wrong with it. */
  readonly message: string;
}

/** What was checked, and what was found. */
export interface CheckedInvariants {
  readonly violations: Violation[];
  readonly rules: number;
  readonly journal: boolean;
  readonly instances: number;
  readonly vmms: number;
}

/**
 * Checks every rule on one snapshot. `silentSleds` are the ids of sleds that gave no answer just now. With `journal`
 * `required` it throws when none is installed.
 */
export async function checkInvariants(
  db: Database,
  options: { atRest: boolean; journal: 'if installed' | 'required' | 'ignored'; silentSleds?: readonly string[] },
): Promise<CheckedInvariants> {
  return db.transaction(
    async (transaction) => {
      // Sets are joined by hashing whatever the statistics say: on fresh ones, a nested loop over tens of thousands of rows
      // never ends. Just-in-time compilation costs more than these queries. A large installation needs more time than usual.
      const prepared = await transaction.execute(sql`
        SELECT set_config('enable_nestloop', 'off', true), set_config('jit', 'off', true), set_config('statement_timeout', '120s', true),
          to_regclass('doctor.journal') IS NOT NULL AS journal,
          (SELECT count(*) FROM instance WHERE time_deleted IS NULL) AS instances,
          (SELECT count(*) FROM vmm WHERE time_deleted IS NULL) AS vmms`);
      const { journal: installed, ...counts } = header.parse(prepared.rows[0]);
      if (options.journal === 'required' && !installed)
        throw new Error('the journal is not installed in this database: installJournal() does that');
      const journal = installed && options.journal !== 'ignored';
      const rules = DATABASE_RULES.filter(
        (rule) => (rule.holds === 'always' || options.atRest) && (journal || !HISTORY_RULES.includes(rule)),
      );
      const found = await prepareCheck(
        transaction,
        rules,
        `doctor_${options.atRest ? 'at_rest' : 'always'}${journal ? '_journal' : ''}`,
      )
        .execute({
          silent: JSON.stringify(options.silentSleds ?? []),
        })
        .catch((error: unknown) => {
          // The text of the statement is very long, and helps nobody.
          throw new Error(`the database could not be examined: ${databaseError(error)?.message ?? error}`, {
            cause: databaseError(error),
          });
        });
      return {
        violations: found.map((each) => {
          const { rule: index, instance_id, sled_id, message } = row.parse(each);
          const rule = rules[index];
          if (rule === undefined) throw new Error(`there is no rule ${index}`);
          return { rule, instanceId: instance_id, sledId: sled_id, message };
        }),
        rules: rules.length,
        journal,
        ...counts,
      };
    },
    { isolationLevel: 'repeatable read', accessMode: 'read only' },
  );
}

/** The texts of the checks, by their names: each is long, and always the same. */
const checks = new Map<string, string>();

/**
 * All rules as one statement, prepared by name: a connection plans it once, which takes longer than to run it on a small
 * database.
 */
function prepareCheck(transaction: Pick<Queryable, 'select'>, rules: readonly DatabaseRule[], name: string) {
  const text =
    checks.get(name) ??
    rules
      .map(
        (rule, index) =>
          `SELECT ${index} AS rule, * FROM (SELECT * FROM (${rule.query}) found (instance_id, sled_id, message) LIMIT ${MAX_VIOLATIONS_PER_RULE}) limited`,
      )
      .join('\nUNION ALL\n');
  checks.set(name, text);
  return transaction
    .select({ rule: sql`rule`, instance_id: sql`instance_id`, sled_id: sql`sled_id`, message: sql`message` })
    .from(
      sql`(WITH silent_sled AS (SELECT value::uuid AS id FROM jsonb_array_elements_text(${sql.placeholder('silent')}::jsonb))
        ${sql.raw(text)}) violation`,
    )
    .prepare(name);
}
