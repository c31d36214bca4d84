/**
 * A plain Temporal version, as the SDK's own saga sample does it (https://github.com/temporalio/samples-typescript/tree/main/saga):
 * one activity a statement or call, its compensation registered after it, the worker with its default settings. The server
 * is the development server as it is shipped.
 */
import { fileURLToPath } from 'node:url';
import { Client, Connection } from '@temporalio/client';
import { ApplicationFailure } from '@temporalio/common';
import { NativeConnection, Worker } from '@temporalio/worker';
import { sql } from 'drizzle-orm';
import { SledClient, SledError } from '../../activities/sled-client.ts';
import { openDatabase } from '../../db/connect.ts';
import { createLog } from '../../platform/telemetry/log.ts';
import { installRuntime } from '../../worker/worker.ts';
import { runPart } from '../system/child.ts';
import { startFront } from './front.ts';
import type { PlacedVmm, PlainActivities } from './plain-temporal-workflow.ts';
import type { PartInput, PartReady } from './steps.ts';

const TASK_QUEUE = 'plain';
const SLED_CALL_MS = 4_000;

await runPart<PartInput, PartReady>(async ({ databaseUrl, port, temporalAddress }) => {
  installRuntime(createLog('plain-temporal', 'error'));
  const { db, close } = openDatabase(databaseUrl, { maxConnections: 20, applicationName: 'bench' });
  const sleds = new SledClient();
  const at = (vmm: PlacedVmm) => ({ name: vmm.sledName, address: vmm.sledAddress, keptAgentId: null });

  /** A refusal of a sled is final; everything else is tried again. */
  async function calling<T>(call: Promise<T>): Promise<T> {
    try {
      return await call;
    } catch (error) {
      if (error instanceof SledError && error.kind !== 'unavailable')
        throw ApplicationFailure.nonRetryable(error.message);
      throw error;
    }
  }

  // Counted: drawn at random, two of some thousand VMMs would sooner or later have one address.
  let ports = 0;
  const nextPort = () => 12_500 + (ports++ % 20_000);

  const activities: PlainActivities = {
    async readSize(instanceId) {
      const { rows } = await db.execute(
        sql`SELECT name, project_id, ncpus, memory_bytes FROM instance WHERE id = ${instanceId}`,
      );
      const row = rows[0] as { name: string; project_id: string; ncpus: number; memory_bytes: string };
      return { name: row.name, projectId: row.project_id, ncpus: row.ncpus, memoryBytes: Number(row.memory_bytes) };
    },
    async pickSled(size) {
      const { rows } = await db.execute(sql`
        SELECT id, name, address FROM sled WHERE policy = 'in_service' AND reserved_threads + ${size.ncpus} <= threads
          AND reserved_memory_bytes + ${size.memoryBytes}::bigint <= memory_bytes
        ORDER BY floor(10 * reserved_threads::float8 / threads), random() LIMIT 1`);
      const row = rows[0] as { id: string; name: string; address: string } | undefined;
      if (row === undefined) throw ApplicationFailure.nonRetryable('no sled has room');
      const ip = row.address.slice(0, row.address.lastIndexOf(':'));
      return { sledId: row.id, sledName: row.name, sledAddress: row.address, ip, port: nextPort() };
    },
    async insertVmm(vmm) {
      await db.execute(sql`INSERT INTO vmm (id, instance_id, sled_id, ip, port, state)
        VALUES (${vmm.vmmId}, ${vmm.instanceId}, ${vmm.sledId}, ${vmm.ip}, ${vmm.port}, 'creating') ON CONFLICT (id) DO NOTHING`);
    },
    async reserve(vmm) {
      await db.execute(sql`INSERT INTO sled_reservation (vmm_id, instance_id, sled_id, threads, memory_bytes, kind)
        VALUES (${vmm.vmmId}, ${vmm.instanceId}, ${vmm.sledId}, ${vmm.ncpus}, ${vmm.memoryBytes}, 'active') ON CONFLICT (vmm_id) DO NOTHING`);
    },
    async charge(vmm) {
      await db.execute(sql`INSERT INTO provisioning_charge (instance_id, project_id, cpus, memory_bytes)
        VALUES (${vmm.instanceId}, ${vmm.projectId}, ${vmm.ncpus}, ${vmm.memoryBytes}) ON CONFLICT (instance_id) DO NOTHING`);
    },
    async link(vmm) {
      await db.execute(sql`UPDATE instance SET state = 'vmm', active_vmm_id = ${vmm.vmmId}, intended_state = 'running',
        state_generation = state_generation + 1, time_state_updated = now()
        WHERE id = ${vmm.instanceId} AND active_vmm_id IS DISTINCT FROM ${vmm.vmmId}`);
    },
    async registerVmm(vmm) {
      const request = {
        instance_id: vmm.instanceId,
        vmm_runtime: { state: 'starting' as const, gen: 2, time_updated: new Date().toISOString() },
        vmm_spec: { name: vmm.name, ncpus: vmm.ncpus, memory_bytes: vmm.memoryBytes },
        vmm_addr: `${vmm.ip}:${vmm.port}`,
      };
      const { vmm_state } = await calling(sleds.register(at(vmm), vmm.vmmId, request, SLED_CALL_MS));
      return vmm_state;
    },
    async runVmm(vmm) {
      const { updated_runtime } = await calling(sleds.setState(at(vmm), vmm.vmmId, { type: 'running' }, SLED_CALL_MS));
      return updated_runtime?.vmm_state ?? null;
    },
    async writeState(vmm, { state, gen }) {
      await db.execute(sql`UPDATE vmm SET state = ${state}::vmm_state, state_generation = ${gen}, time_state_updated = now()
        WHERE id = ${vmm.vmmId} AND state_generation < ${gen}`);
    },
    async markUnwound(vmm) {
      // The sled's report that it was unregistered may have come first: a VMM that is gone stays as it is.
      await db.execute(sql`UPDATE vmm SET state = 'saga_unwound', failure_reason = NULL, unwinding_since = now(),
        state_generation = state_generation + 1, time_state_updated = now() WHERE id = ${vmm.vmmId} AND state NOT IN ('destroyed', 'failed', 'saga_unwound')`);
    },
    async release(vmm) {
      await db.execute(sql`DELETE FROM sled_reservation WHERE vmm_id = ${vmm.vmmId}`);
    },
    async refund(vmm) {
      await db.execute(sql`DELETE FROM provisioning_charge WHERE instance_id = ${vmm.instanceId}`);
    },
    async unregisterVmm(vmm) {
      await sleds.unregister(at(vmm), vmm.vmmId, SLED_CALL_MS).catch((error: unknown) => {
        if (!(error instanceof SledError) || error.kind !== 'gone') throw error;
      });
    },
  };

  const native = await NativeConnection.connect({ address: temporalAddress });
  const worker = await Worker.create({
    connection: native,
    taskQueue: TASK_QUEUE,
    workflowsPath: fileURLToPath(new URL('./plain-temporal-workflow.ts', import.meta.url)),
    activities,
  });
  const running = worker.run();
  const connection = await Connection.connect({ address: temporalAddress });
  const client = new Client({ connection });
  const front = await startFront({
    db,
    port,
    async start(instanceId) {
      await client.workflow.execute('plainStart', {
        workflowId: `plain-start/${instanceId}`,
        // A start whose answer was late is sent again by the client.
        workflowIdConflictPolicy: 'USE_EXISTING',
        taskQueue: TASK_QUEUE,
        args: [instanceId],
      });
    },
  });
  return {
    ready: { url: front.url },
    async stop() {
      await front.stop();
      worker.shutdown();
      await running;
      await Promise.allSettled([native.close(), connection.close(), close(), sleds.close()]);
    },
  };
});
