import type { Connection } from '@temporalio/client';
import type { Database } from '../db/connect.ts';
import { probeWrites } from '../db/transactions/probe-writes.ts';
import { WriteProbe } from '../platform/telemetry/write-probe.ts';
import { probeTemporalWrites } from './probe-writes.ts';

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
