import type { OperationKind } from './states.ts';

/** One run of a start or a migration, and the VMM that it makes. Every step of the run, each time it is tried, speaks of the same one. */
export interface Attempt {
  readonly kind: OperationKind;
  readonly instanceId: string;
  /** Made in the workflow. */
  readonly vmmId: string;
  /** The first run id of the workflow: the operation that the caller may follow. */
  readonly operationId: string;
  readonly workflowId: string;
}
