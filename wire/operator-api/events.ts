/** The stream of changes, `GET /v1/events` (docs/events.md). */
import { z } from 'zod';
import { MIGRATION_STATES } from '../../model/states.ts';
import { timestamp } from '../sled-protocol.ts';
import { auditLogEntry } from './audit-log.ts';
import { instanceView } from './instances.ts';
import { nameOrId, uuid } from './names.ts';
import { operationView } from './operations.ts';
import { projectView } from './projects.ts';
import { sledView } from './sleds.ts';

/** A side of a live migration changed. */
export const migrationChange = z.object({
  id: uuid,
  instance_id: uuid,
  source_sled_id: uuid.nullable(),
  target_sled_id: uuid.nullable(),
  source_state: z.enum(MIGRATION_STATES),
  target_state: z.enum(MIGRATION_STATES),
  /** `null` while it is under way. */
  outcome: z.enum(['completed', 'failed']).nullable(),
});
export type MigrationChange = z.infer<typeof migrationChange>;

/** What the event of an object carries, by its kind. */
const OBJECTS = {
  instance: instanceView,
  operation: operationView,
  migration: migrationChange,
  project: projectView,
  sled: sledView,
  audit: auditLogEntry,
} as const;

/** The kinds of objects that the stream tells of. */
export const EVENT_KINDS = ['instance', 'operation', 'migration', 'project', 'sled', 'audit'] as const;
export type EventKind = (typeof EVENT_KINDS)[number];
/** The kinds that are the fleet's: who is on one project does not see them. */
export const FLEET_EVENT_KINDS: ReadonlySet<EventKind> = new Set(['sled', 'audit']);

/** Why a stream begins anew. */
export const RESET_REASONS = ['begin', 'too_old', 'other_history', 'slow'] as const;
export type ResetReason = (typeof RESET_REASONS)[number];
/** Why a stream ends. */
export const END_REASONS = ['token_revoked', 'token_expired', 'closing'] as const;
export type EndReason = (typeof END_REASONS)[number];

const about = <Object extends z.ZodType>(object: Object) =>
  z.object({
    id: uuid,
    /** `null`: it is the fleet's. */
    project_id: uuid.nullable(),
    /** As it is now; `null`: it was deleted, or expunged. */
    object: object.nullable(),
  });

/** An event: its name, and its data. */
export const streamEvent = z.discriminatedUnion('event', [
  z.object({ event: z.literal('instance'), data: about(OBJECTS.instance) }),
  z.object({ event: z.literal('operation'), data: about(OBJECTS.operation) }),
  z.object({ event: z.literal('migration'), data: about(OBJECTS.migration) }),
  z.object({ event: z.literal('project'), data: about(OBJECTS.project) }),
  z.object({ event: z.literal('sled'), data: about(OBJECTS.sled) }),
  z.object({ event: z.literal('audit'), data: about(OBJECTS.audit) }),
  z.object({ event: z.literal('reset'), data: z.object({ reason: z.enum(RESET_REASONS), time: timestamp }) }),
  z.object({ event: z.literal('end'), data: z.object({ reason: z.enum(END_REASONS) }) }),
]);
export type StreamEvent = z.infer<typeof streamEvent>;

/** The longest cursor, in characters. */
const MAX_CURSOR = 1024;

const kinds = z
  .string()
  .max(200)
  .transform((text) => text.split(','))
  .pipe(z.array(z.enum(EVENT_KINDS)).min(1));

/** What is asked of the stream. */
export const eventParams = z.object({
  /** With commas between; all that the caller may see when absent. */
  kinds: kinds.optional(),
  project: nameOrId.optional(),
  instance: nameOrId.optional(),
  /** What came after this `id`. The header `Last-Event-ID` goes first. */
  after: z.string().max(MAX_CURSOR).optional(),
  /** `false`: what is there is sent, and the answer ends. */
  follow: z.enum(['true', 'false']).optional(),
});
