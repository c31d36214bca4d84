/** How the stream is written. Source: https://html.spec.whatwg.org/multipage/server-sent-events.html */
import type { EndReason, ResetReason } from '../../wire/operator-api/events.ts';
import type { ChangedObject } from './read-objects.ts';

/** The stream's first words, and what keeps a quiet one alive. */
export const COMMENT = ': mooring\n\n';

/** An object's event, without the empty line that ends it. JSON has no line break. */
export function writeObject({ kind, id, projectId, object }: ChangedObject): string {
  return `event: ${kind}\ndata: ${JSON.stringify({ id, project_id: projectId, object })}\n`;
}

/** Says that changes may be missing up to the cursor `id`. */
export function writeReset(reason: ResetReason, id: string): string {
  const data = { reason, time: new Date().toISOString() };
  return `event: reset\ndata: ${JSON.stringify(data)}\n${writeId(id)}`;
}

/** Says that the stream ends. */
export function writeEnd(reason: EndReason): string {
  return `event: end\ndata: ${JSON.stringify({ reason })}\n\n`;
}

/** The cursor, and the empty line that ends an event; with no event before it, the cursor alone. */
export function writeId(id: string): string {
  return `id: ${id}\n\n`;
}
