import { randomUUID } from 'node:crypto';
import type { Connection } from '@temporalio/client';

/** The workflow that is begun to see whether one can be: nobody runs it, and it is deleted at once. */
export const PROBE = 'mooring-write-probe';
/** How long it lasts at most, in seconds, where it could not be deleted. */
export const PROBE_SECONDS = 10;
/** The gRPC code of a workflow that runs already: another process has just written it. */
const ALREADY_EXISTS = 6;

/** The protobuf types ask for a `Long` and take a number as well; the library that makes one is not ours to depend on. */
export type Seconds = never;

/**
 * Tries whether Temporal takes writes, which one that answers may not: its disk, or its database's, is full. It begins a
 * workflow and deletes it. Throws what the server says, or that it took longer than `limitMs` milliseconds.
 */
export async function probeTemporalWrites(connection: Connection, namespace: string, limitMs: number): Promise<void> {
  const { workflowService } = connection;
  await connection.withDeadline(Date.now() + limitMs, async () => {
    try {
      await workflowService.startWorkflowExecution({
        namespace,
        workflowId: PROBE,
        requestId: randomUUID(),
        workflowType: { name: PROBE },
        taskQueue: { name: PROBE },
        workflowRunTimeout: { seconds: PROBE_SECONDS as unknown as Seconds },
      });
    } catch (error) {
      if ((error as { code?: unknown }).code === ALREADY_EXISTS) return;
      throw error;
    }
    // What is not deleted ends by itself, and is deleted with its namespace's retention.
    await workflowService
      .deleteWorkflowExecution({ namespace, workflowExecution: { workflowId: PROBE } })
      .catch(() => {});
  });
}
