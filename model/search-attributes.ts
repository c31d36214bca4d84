/**
 * The search attributes of the workflows: what an operator may look for in the Temporal Web UI and by `temporal workflow
 * list`. All are keywords. The client sets what it knows at the start (no event in the history); a workflow upserts what
 * it learns once, at its end, and before that when a step of it takes longer than its workflow task.
 *
 * A server on PostgreSQL or SQLite has ten custom keywords in all (Temporal's SQL visibility schema): these leave one.
 */
export const SEARCH_ATTRIBUTES = {
  /** The instance's id. */
  instanceId: 'MooringInstanceId',
  /** The instance's name when the workflow started. */
  instance: 'MooringInstance',
  /** The name of the instance's project. */
  project: 'MooringProject',
  /** The name of the sled that the workflow works on; of a migration: the destination. */
  sled: 'MooringSled',
  /** Migration only: the name of the sled that the instance leaves. */
  sourceSled: 'MooringSourceSled',
  /** The id of the VMM that the workflow makes or ends. */
  vmm: 'MooringVmm',
  /** `running`, and at the end what came of it: `started`, `migrating`, `unwound`, `refused`, `cancelled`, `failed`, an update's case… */
  outcome: 'MooringOutcome',
  /** The step (activity) that failed first; only where the workflow failed. */
  failedStep: 'MooringFailedStep',
  /** The type of that failure: `SledRefused`, `NoSuchVmm`, `StopRequested`, `Timeout`… */
  reason: 'MooringReason',
} as const;
export type SearchAttribute = keyof typeof SEARCH_ATTRIBUTES;

/** The outcome of a workflow that is not over. */
export const OUTCOME_RUNNING = 'running';

/**
 * The memo in which a start notes the attributes that it was given: whether there are any, and which, decides what a workflow
 * writes, and a replay must decide the same. The first event can't tell: a server that has lost an attribute, or registered it
 * anew, shows that event without it from then on.
 */
export const ATTRIBUTES_MEMO = 'searchAttributes';

/** The attributes that a memo notes; `null` where it notes none. */
export function readAttributesMemo(
  memo: Readonly<Record<string, unknown>> | undefined,
): Map<SearchAttribute, string> | null {
  const noted = memo?.[ATTRIBUTES_MEMO];
  if (typeof noted !== 'object' || noted === null) return null;
  const attributes = Object.keys(SEARCH_ATTRIBUTES) as SearchAttribute[];
  const values = noted as Partial<Record<SearchAttribute, unknown>>;
  return new Map(
    attributes.flatMap((attribute) => {
      const value = values[attribute];
      return typeof value === 'string' ? [[attribute, value] as const] : [];
    }),
  );
}
