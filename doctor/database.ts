/** Asks the database: every rule in one statement, so that all of them see one committed state. */
import { sql } from 'drizzle-orm';
import { z } from 'zod';
import type { Database, Queryable } from '../db/connect.ts';
import { databaseError } from '../db/errors.ts';
import type { DatabaseRule, Finding } from './finding.ts';
import { CONSTRAINT_RULES } from './rules/constraints.ts';
import { HISTORY_RULES } from './rules/history.ts';
import { STATE_RULES } from './rules/state.ts';

/** Every rule on the stored state and on the journal. */
export const DATABASE_RULES: readonly DatabaseRule[] = [...CONSTRAINT_RULES, ...STATE_RULES, ...HISTORY_RULES];

/** At most so many findings of one rule are told, so that one broken trigger does not hide the others. */
const MAX_FINDINGS_PER_RULE = 100;

const row = z.object({
  rule: z.coerce.number(),
  instance_id: z.string().nullable(),
  sled_id: z.string().nullable(),
  message: z.string(),
});
const header = z.object({ journal: z.boolean(), instances: z.coerce.number(), vmms: z.coerce.number() });

/** What the database was asked, and what it said. */
export interface DatabaseExamination {
  readonly findings: Finding[];
  readonly rules: number;
  readonly journal: boolean;
  readonly instances: number;
  readonly vmms: number;
}

/**
 * Checks every rule on one snapshot. `silentSleds` are the ids of sleds that gave no answer just now. With `journal`
 * `required` it throws when none is installed.
 */
export async function examineDatabase(
  db: Database,
  options: { atRest: boolean; journal: 'if installed' | 'required' | 'ignored'; silentSleds?: readonly string[] },
): Promise<DatabaseExamination> {
  return db.transaction(
    async (transaction) => {
      // Sets are joined by hashing whatever the statistics say: on fresh ones, a nested loop over tens of thousands of rows
      // never ends. Just-in-time compilation costs more than these queries. A large installation needs more time than usual.
      const found = await transaction.execute(sql`
        SELECT set_config('enable_nestloop', 'off', true), set_config('jit', 'off', true), set_config('statement_timeout', '120s', true),
          to_regclass('doctor.journal') IS NOT NULL AS journal,
          (SELECT count(*) FROM instance WHERE time_deleted IS NULL) AS instances,
          (SELECT count(*) FROM vmm WHERE time_deleted IS NULL) AS vmms`);
      const { journal: installed, ...counts } = header.parse(found.rows[0]);
      if (options.journal === 'required' && !installed)
        throw new Error('the journal is not installed in this database: installJournal() does that');
      const journal = installed && options.journal !== 'ignored';
      const rules = DATABASE_RULES.filter(
        (rule) => (rule.holds === 'always' || options.atRest) && (journal || !HISTORY_RULES.includes(rule)),
      );
      const commanded = await prepareQuestion(
        transaction,
        rules,
        `doctor_${options.atRest ? 'at_rest' : 'always'}${journal ? '_journal' : ''}`,
      )
        .execute({
          silent: JSON.stringify(options.silentSleds ?? []),
        })
        .catch((error: unknown) => {
          // The text of the question is very long, and helps nobody.
          throw new Error(`the database could not be examined: ${databaseError(error)?.message ?? error}`, {
            cause: databaseError(error),
          });
        });
      return {
        findings: commanded.map((each) => {
          const { rule: index, instance_id, sled_id, message } = row.parse(each);
          const rule = rules[index];
          if (rule === undefined) throw new Error(`there is no rule ${index}`);
          return {
            invariant: rule.invariant,
            rule: rule.name,
            holds: rule.holds,
            instanceId: instance_id,
            sledId: sled_id,
            message,
          };
        }),
        rules: rules.length,
        journal,
        ...counts,
      };
    },
    { isolationLevel: 'repeatable read', accessMode: 'read only' },
  );
}

/** The texts of the questions, by their names: each is long, and always the same. */
const questions = new Map<string, string>();

/**
 * All rules as one statement, prepared by name: a connection plans it once, which takes longer than to run it on a small
 * database.
 */
function prepareQuestion(transaction: Pick<Queryable, 'select'>, rules: readonly DatabaseRule[], name: string) {
  const text =
    questions.get(name) ??
    rules
      .map(
        (rule, index) =>
          `SELECT ${index} AS rule, * FROM (SELECT * FROM (${rule.query}) found (instance_id, sled_id, message) LIMIT ${MAX_FINDINGS_PER_RULE}) told`,
      )
      .join('\nUNION ALL\n');
  questions.set(name, text);
  return transaction
    .select({ rule: sql`rule`, instance_id: sql`instance_id`, sled_id: sql`sled_id`, message: sql`message` })
    .from(
      sql`(WITH silent_sled AS (SELECT value::uuid AS id FROM jsonb_array_elements_text(${sql.placeholder('silent')}::jsonb))
        ${sql.raw(text)}) told`,
    )
    .prepare(name);
}
