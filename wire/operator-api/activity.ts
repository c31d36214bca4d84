/** What an installation did lately, minute by minute. */
import { z } from 'zod';
import { timestamp } from '../sled-protocol.ts';

/** How many minutes are shown when nobody says, and at most. */
const DEFAULT_MINUTES = 60;
const MAX_MINUTES = 180;

export const activityParams = z.object({
  minutes: z.coerce.number().int().min(1).max(MAX_MINUTES).default(DEFAULT_MINUTES),
});

const outcomes = z.object({ succeeded: z.number().int(), failed: z.number().int() });

export const activityView = z.object({
  /** The API's own, when it answered. */
  time: timestamp,
  /** The oldest first, each of them there; the last is not over yet. */
  minutes: z.array(
    z.object({
      /** When it began. */
      time: timestamp,
      /** Those that ended in it. */
      starts: outcomes,
      migrations: outcomes,
      /** Attempts whose VMM was given up. */
      unwinds: z.number().int(),
      /** VMMs that failed. */
      failures: z.number().int(),
      /** From the end of a VMM until its instance showed it; `null` where none ended. */
      update_lag: z.object({ count: z.number().int(), mean_seconds: z.number(), max_seconds: z.number() }).nullable(),
    }),
  ),
});
export type ActivityView = z.infer<typeof activityView>;
