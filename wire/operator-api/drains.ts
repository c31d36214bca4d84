import { z } from 'zod';
import { DRAIN_STATES } from '../../model/drain.ts';
import { timestamp } from '../sled-protocol.ts';
import { uuid } from './names.ts';

/** How a drain is begun: how many instances are moved at a time. */
export const drainBegin = z.object({ parallel: z.number().int().min(1).max(64).default(4) });
export type DrainBegin = z.input<typeof drainBegin>;

const drainEntry = z.object({ instance_id: uuid, name: z.string() });
/** A drain: how far it has come, and what could not move. */
export const drainView = z.object({
  sled_id: uuid,
  state: z.enum(DRAIN_STATES),
  /** All of it in one line, for people. */
  summary: z.string(),
  total: z.number().int(),
  moved: z.number().int(),
  /** Instances that left the sled in another way: stopped, deleted or failed meanwhile. */
  ended: z.number().int(),
  moving: z.array(drainEntry.extend({ destination: z.string() })),
  waiting: z.array(drainEntry.extend({ until: z.string() })),
  could_not_move: z.array(drainEntry.extend({ reason: z.string() })),
  parallel: z.number().int(),
  time_started: timestamp,
  time_ended: timestamp.nullable(),
  web_ui: z.string().nullable(),
});
export type DrainView = z.infer<typeof drainView>;
