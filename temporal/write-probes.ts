/** Trial writes to what an installation writes to: one whose disk is full answers questions as if nothing were wrong. */
import { randomUUID } from 'node:crypto';
import type { Connection } from '@temporalio/client';
import type { Database } from '../db/connect.ts';
import { probeWrites } from '../db/transactions/probe-writes.ts';
import { WriteProbe } from '../platform/telemetry/write-probe.ts';

/** How long a trial write may take, in milliseconds. */
const WRITE_MS = 3_000;

/** The trials of what an installation writes to: its PostgreSQL, and its namespace of Temporal. */
export function writeProbes(db: Database, connection: Connection, namespace: string): WriteProbe[] {
  return [
    new WriteProbe('PostgreSQL', () => probeWrites(db), WRITE_MS),
    // Its own limit comes first: it says what the server said.
    new WriteProbe('Temporal', () => probeTemporalWrites(connection, namespace, WRITE_MS), WRITE_MS + 500),
  ];
}

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
