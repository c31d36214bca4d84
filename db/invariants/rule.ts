import type { Invariant } from '../../model/invariants.ts';

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
