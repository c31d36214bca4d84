import { z } from 'zod';
import { TIMELINE_KINDS } from '../../model/timeline.ts';
import { timestamp } from '../sled-protocol.ts';
import { uuid } from './names.ts';

/** An instance's history, oldest first. `complete` is false when Temporal could not be asked. */
export const historyView = z.object({
  instance_id: uuid,
  complete: z.boolean(),
  items: z.array(
    z.object({
      time: timestamp,
      kind: z.enum(TIMELINE_KINDS),
      text: z.string(),
      workflow_id: z.string().nullable(),
      web_ui: z.string().nullable(),
    }),
  ),
});
export type HistoryView = z.infer<typeof historyView>;
