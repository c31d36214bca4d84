/** The reconciling loops, as operators see them. */
import { z } from 'zod';
import { RECONCILERS } from '../../model/reconcilers.ts';
import { timestamp } from '../sled-protocol.ts';

export const reconcilerName = z.enum(RECONCILERS);
export const reconcilerUpdate = z.object({ enabled: z.boolean() });
export const reconcilerView = z.object({
  name: reconcilerName,
  purpose: z.string(),
  /** Whether a worker has made its schedule. */
  scheduled: z.boolean(),
  enabled: z.boolean(),
  every_seconds: z.number().nullable(),
  note: z.string().nullable(),
  time_last_run: timestamp.nullable(),
  time_next_run: timestamp.nullable(),
  /** What its last run found and did, as a sentence; `null` while it runs. */
  last_summary: z.string().nullable(),
});
export type ReconcilerView = z.infer<typeof reconcilerView>;
/** One pass: what it found and did, as a sentence and as counts and ids. */
export const reconcilerPassView = z.object({
  name: reconcilerName,
  summary: z.string(),
  found: z.record(z.string(), z.union([z.number(), z.array(z.string())])),
});
export type ReconcilerPassView = z.infer<typeof reconcilerPassView>;
