import type { Invariant } from '../model/invariants.ts';

/** One thing that is wrong: one line about one instance, VMM or sled. */
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

/** A line for each finding, aligned, in the order of the invariants. */
export function findingLines(findings: readonly Finding[]): string[] {
  const width = Math.max(0, ...findings.map((finding) => finding.rule.length));
  return [...findings]
    .sort((a, b) => a.invariant - b.invariant || a.rule.localeCompare(b.rule))
    .map((finding) => `${String(finding.invariant).padStart(2)}  ${finding.rule.padEnd(width)}  ${finding.message}`);
}
