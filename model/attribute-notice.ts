/**
 * What a worker tells a workflow beside the result of a step: that the search attributes can't be used at the moment. It is
 * recorded with the result, so that a replay hears the same. While they can be used, nothing is added.
 */
const NOTICE = 'mooringWithoutSearchAttributes';

/** A step's result, with the notice that the search attributes can't be used. */
export function withNotice(result: unknown): Readonly<Record<string, unknown>> {
  return { [NOTICE]: true, result };
}

/** What a step's result says: itself, and whether the search attributes can be used. */
export function readNotice(value: unknown): { readonly usable: boolean; readonly result: unknown } {
  if (typeof value !== 'object' || value === null || !(NOTICE in value)) return { usable: true, result: value };
  return { usable: false, result: (value as { readonly result?: unknown }).result };
}

/** The worker's own activity by which a workflow asks whether search attributes can be used: no step of any saga. */
export const ASK_ATTRIBUTES = 'searchAttributesUsable';
