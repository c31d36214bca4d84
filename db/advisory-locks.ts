/**
 * PostgreSQL's advisory locks that this code takes, all of them: a number that stood here twice would make two things wait
 * for each other that have nothing to do with each other. The numbers mean nothing; processes of one installation must
 * agree on them. Each is a transaction's, never a session's: behind a pooler the next transaction has another session.
 */
export const ADVISORY_LOCKS = {
  /** Held by the process that migrates the database, until the transaction of one migration ends. */
  migration: 7_301_855,
  /** Held by one of the claims that lost several races for a place, until its transaction ends. */
  placement: 7_301_856,
  /** Held while the journal's triggers are installed, until the transaction ends. */
  journal: 7_301_857,
} as const;
