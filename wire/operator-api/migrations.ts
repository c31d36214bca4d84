import { z } from 'zod';
import { MIGRATION_STATES } from '../../model/states.ts';
import { uuid } from './names.ts';

/** How far an instance's newest migration is, or how it ended. */
export const migrationView = z.object({
  id: uuid,
  /** `null` while it is under way. */
  outcome: z.enum(['completed', 'failed']).nullable(),
  source_sled: z.string(),
  target_sled: z.string(),
  source_state: z.enum(MIGRATION_STATES),
  target_state: z.enum(MIGRATION_STATES),
  /** What the sleds report of the transfer; `null` where they give no figures, as simulated ones, or not any more. */
  progress: z
    .object({
      bytes_total: z.number(),
      bytes_sent: z.number(),
      bytes_left: z.number(),
      bytes_per_second: z.number().nullable(),
      expected_downtime_ms: z.number().nullable(),
      /** How long the guest stood still; `null` until it is known. */
      downtime_ms: z.number().nullable(),
      elapsed_ms: z.number(),
    })
    .nullable(),
  /** The same in one line. */
  summary: z.string(),
});
export type MigrationView = z.infer<typeof migrationView>;
