import { z } from 'zod';
import { OPERATION_KINDS } from '../../model/states.ts';
import { timestamp } from '../sled-protocol.ts';
import { nameOrId, uuid } from './names.ts';
import { pageParams } from './pages.ts';

/** What is asked of the list of operations, which are in the order of their beginning, the newest first. */
export const operationListParams = pageParams.omit({ sort_by: true }).extend({
  project: nameOrId.optional(),
  /** By id, or by name within `project`. */
  instance: nameOrId.optional(),
  state: z.enum(['running', 'done']).optional(),
  outcome: z.enum(['succeeded', 'failed']).optional(),
  /** Only those that began then or later. */
  start_time: timestamp.optional(),
});

/** An operation: one run of a saga, from the call that began it to its outcome. */
export const operationView = z.object({
  id: uuid,
  kind: z.enum(OPERATION_KINDS),
  instance_id: uuid,
  state: z.enum(['running', 'done']),
  outcome: z.enum(['succeeded', 'failed']).nullable(),
  error: z.object({ status: z.number().int(), error_code: z.string(), message: z.string() }).nullable(),
  /** What the saga is doing now; `null` when the operation is done, or between two steps. */
  progress: z
    .object({
      /** `undoing`: the saga compensates. */
      phase: z.enum(['doing', 'undoing']),
      /** The step's name, and what it does as a phrase. */
      step: z.string(),
      title: z.string(),
      /** How often it has been tried, this time included. */
      attempt: z.number().int(),
      /** Why the last attempt failed; `null` on the first. */
      last_failure: z.string().nullable(),
    })
    .nullable(),
  time_started: timestamp,
  time_ended: timestamp.nullable(),
  /** Where the Temporal Web UI shows it, when the API knows the address of one. */
  web_ui: z.string().nullable(),
  /** Of its instance; in lists and in events. */
  instance_name: z.string().nullish(),
  project_id: uuid.nullish(),
});
export type OperationView = z.infer<typeof operationView>;
export type OperationProgress = NonNullable<OperationView['progress']>;
