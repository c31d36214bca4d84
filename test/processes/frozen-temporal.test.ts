/** A Temporal server that holds its connections and answers nothing, as one does on a machine that has no time for it. */
import { randomUUID } from 'node:crypto';
import { Client, Connection } from '@temporalio/client';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { WorkflowStarter } from '../../activities/workflow-starter.ts';
import { describeError } from '../../api/errors.ts';
import { type OperationRequest, Operations } from '../../api/operations.ts';
import { findTemporalBinary, startTemporalServer, type TemporalServer } from '../../worker/temporal-server.ts';
import { startTestDatabase, type TestDatabase } from '../support/database.ts';

let server: TemporalServer;
let connection: Connection;
let database: TestDatabase;
beforeAll(async () => {
  database = await startTestDatabase();
  server = await startTemporalServer({ binary: (await findTemporalBinary()).path, uiPort: null });
  connection = await Connection.connect({ address: server.address });
  process.kill(server.pid, 'SIGSTOP');
});
afterAll(async () => {
  process.kill(server.pid, 'SIGCONT');
  await connection?.close();
  await server?.stop();
  await database?.stop();
});

test('a call gets 503 and does not wait for ever, whatever it asks of Temporal', async () => {
  const client = new Client({ connection });
  const workflows = new WorkflowStarter(client, 500);
  const operations = new Operations(client, database.db, 500);
  const instanceId = randomUUID();
  const request: OperationRequest = {
    kind: 'start',
    instanceId,
    workflowId: `instance-start/${instanceId}`,
    workflowType: 'instanceStart',
    args: [{ instanceId, reason: 'user' }],
    summary: '',
    waitMs: 0,
  };
  const calls = [
    () => workflows.signalUpdate(instanceId),
    () => workflows.carryStop(instanceId),
    () => workflows.isOpen(request.workflowId, randomUUID()),
    () => operations.run(request),
    () => operations.joinOpen(request),
  ];
  for (const call of calls) {
    const error = await call().catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(Error);
    expect(describeError(error)).toMatchObject({ status: 503, code: 'ServiceUnavailable' });
  }
});
