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
