import type { Database } from '../db/connect.ts';
import { type CheckedInvariants, checkInvariants } from '../db/invariants/check-invariants.ts';
import type { Finding } from './finding.ts';

/** What was checked on the database, and what was found. */
export interface DatabaseExamination extends Omit<CheckedInvariants, 'violations'> {
  readonly findings: Finding[];
}

/** Checks every rule on one snapshot of the database; the options, and what it throws, are those of {@link checkInvariants}. */
export async function examineDatabase(
  db: Database,
  options: Parameters<typeof checkInvariants>[1],
): Promise<DatabaseExamination> {
  const { violations, ...checked } = await checkInvariants(db, options);
  const findings = violations.map(({ rule, ...violation }) => ({
    invariant: rule.invariant,
    rule: rule.name,
    holds: rule.holds,
    ...violation,
  }));
  return { ...checked, findings };
}
