/**
 * What the doctor says and how its rules are written. A rule looks at one thing that section 8 of docs/design.md says must
 * hold; each finding of it is one line about one instance, VMM or sled.
 */

/** The invariants of section 8 of docs/design.md, by their numbers, in the words of a heading. */
export const INVARIANTS = {
  1: 'constraints and links',
  2: 'generations',
  3: 'who writes the ids',
  4: 'one guest at a time',
  5: 'steps that run twice',
  6: 'late steps',
  7: 'the point of no return',
  8: 'rest',
  9: 'nobody waits for ever',
  10: 'failed calls leave nothing',
} as const;
export type Invariant = keyof typeof INVARIANTS;

/** One thing that is wrong. */
export interface Finding {
  /** The invariant of section 8 of docs/design.md that does not hold. */
  readonly invariant: Invariant;
  /** The rule that found it. */
  readonly rule: string;
  /** `at rest`: it may be so for a while, and is wrong only when nothing is under way any more. */
  readonly holds: 'always' | 'at rest';
  readonly instanceId: string | null;
  readonly sledId: string | null;
  /** One line: names the instance, VMM or sled, and says what is wrong with it. */
  readonly message: string;
}

/**
 * A rule on the database: one query that finds what breaks it, with the columns `instance_id` and `sled_id` (uuid, may be
 * NULL) and `message`. It reads sets, never one instance at a time. Constants only: no value of a user's gets in.
 */
export interface DatabaseRule {
  readonly name: string;
  readonly invariant: Invariant;
  /** `always`: in every committed state. `at rest`: when nothing is under way any more. */
  readonly holds: 'always' | 'at rest';
  readonly query: string;
}

/** The states of a VMM that is gone, as SQL. */
export const GONE = `('destroyed', 'failed', 'saga_unwound')`;

/** A line for each finding, aligned, in the order of the invariants. */
export function findingLines(findings: readonly Finding[]): string[] {
  const width = Math.max(0, ...findings.map((finding) => finding.rule.length));
  return [...findings]
    .sort((a, b) => a.invariant - b.invariant || a.rule.localeCompare(b.rule))
    .map((finding) => `${String(finding.invariant).padStart(2)}  ${finding.rule.padEnd(width)}  ${finding.message}`);
}
