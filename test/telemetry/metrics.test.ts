/** What a Prometheus server and a load balancer see of a worker and an API. */
import { readFile } from 'node:fs/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { startApi } from '../../api/server.ts';
import { dashboard, metricsOfDashboard } from '../../deploy/make-dashboard.ts';
import { workflowIds } from '../../model/workflow-names.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import { createLog } from '../../platform/telemetry/log.ts';
import type { startWorker } from '../../worker/worker.ts';
import { type Harness, refused, startHarness } from '../support/harness.ts';

let harness: Harness;
let api: Awaited<ReturnType<typeof startApi>>;
let worker: Awaited<ReturnType<typeof startWorker>>;
beforeAll(async () => {
  // The first worker of a process decides where the SDK shows its metrics: this one comes before the stack's own.
  harness = await startHarness({ reconcileEveryMs: 0, metricsListen: '127.0.0.1:0' });
  const { databaseUrl, temporal } = harness.stack;
  const log = createLog('test', 'fatal');
  api = await startApi({
    databaseUrl,
    temporal,
    host: '127.0.0.1',
    port: 0,
    authentication: 'open',
    plainSleds: true,
    log,
    metricsListen: '127.0.0.1:0',
  });
  worker = harness.stack.worker as typeof worker;
});
afterAll(async () => {
  await api?.stop();
  await harness?.close();
});

async function scrape(url: string | null): Promise<string> {
  const response = await fetch(`${url}/metrics`);
  expect(response.status).toBe(200);
  expect(response.headers.get('content-type')).toContain('version=0.0.4');
  return response.text();
}

test('a worker shows its steps, its calls to sleds and the SDK’s own metrics in one place', async () => {
  const id = await harness.running();
  const failing = await harness.create();
  harness.everywhere(({ agent }) => agent.faults.plant({ call: 'register', act: { type: 'refuse', status: 409 } }));
  await refused(harness.client.startInstance(failing));
  harness.everywhere(({ agent }) => agent.faults.clear());
  await harness.shows(id, 'running');
  await harness.rests(failing);
  // What they count, they count as they close, which may be after their caller and the database know.
  for (const workflowId of [workflowIds.start(failing), workflowIds.update(failing)])
    await harness.temporal.workflow
      .getHandle(workflowId)
      .result()
      .catch(() => {});

  const scraped = await scrape(worker.metricsUrl);
  expect(scraped).toMatch(/mooring_step_seconds_count\{step="claimStart",outcome="done"\} 2/);
  expect(scraped).toMatch(/mooring_step_seconds_count\{step="registerVmm",outcome="final"\} 1/);
  expect(scraped).toMatch(/mooring_sled_call_seconds_count\{sled="sled-\d",call="register",answer="refused"\} 1/);
  expect(scraped).toMatch(/mooring_update_lag_seconds_count\{case="unlinked"\} 1/);
  expect(scraped).toMatch(/mooring_sagas_total\{[^}]*outcome="unwound"[^}]*\} 1/);
  expect(scraped).toMatch(/temporal_local_activity_execution_latency/);

  // What is not settled within its workflow task goes on as an activity.
  harness.everywhere(({ agent }) =>
    agent.faults.plant({ call: 'state:stopped', act: { type: 'refuse', status: 503 }, times: 1 }),
  );
  await harness.client.stopInstance(id);
  await harness.shows(id, 'stopped');
  harness.everywhere(({ agent }) => agent.faults.clear());
  expect(await scrape(worker.metricsUrl)).toMatch(/temporal_activity_execution_latency/);
  await harness.client.startInstance(id);
});

test('an API shows its requests, reports and the capacity', async () => {
  await fetch(`${api.url}/v1/instances?limit=0`);
  await fetch(`${api.url}/v1/instances`);
  const scraped = await scrape(api.metricsUrl);
  expect(scraped).toMatch(/mooring_http_request_seconds_count\{method="GET",route="\/v1\/instances",status="400"\} 1/);
  expect(scraped).toMatch(/mooring_http_request_seconds_count\{method="GET",route="\/v1\/instances",status="200"\} 1/);
  expect(scraped).toMatch(/mooring_instances\{state="vmm"\} \d/);
  expect(scraped).toMatch(/mooring_sled_threads\{sled="sled-1",policy="in_service"\} 64/);
});

test('every metric that the dashboard asks for exists, and the dashboard’s file is what its maker writes', async () => {
  const scraped = `${await scrape(worker.metricsUrl)}\n${await scrape(api.metricsUrl)}`;
  const known = new Set([...scraped.matchAll(/^# TYPE (\S+)/gm)].map(([, name]) => name));
  expect(metricsOfDashboard().filter((name) => !known.has(name))).toEqual([]);
  const file = await readFile(new URL('../../deploy/grafana-dashboard.json', import.meta.url), 'utf8');
  expect(JSON.parse(file)).toEqual(dashboard());
});

test('healthy and ready; no longer ready once the worker has stopped working', async () => {
  for (const url of [api.url, api.metricsUrl, worker.metricsUrl]) {
    expect((await fetch(`${url}/healthz`)).status).toBe(200);
    const ready = await fetch(`${url}/readyz`);
    expect([ready.status, await ready.text()]).toEqual([200, 'ready\n']);
  }
  expect((await fetch(`${worker.metricsUrl}/else`)).status).toBe(404);
});

test('a process whose PostgreSQL is away is healthy and not ready, and says why', async () => {
  const { temporal } = harness.stack;
  const log = createLog('test', 'fatal');
  const databaseUrl = 'postgres://nobody@127.0.0.1:1/none';
  const alone = await startApi({ databaseUrl, temporal, host: '127.0.0.1', port: 0, authentication: 'open', log });
  try {
    expect((await fetch(`${alone.url}/healthz`)).status).toBe(200);
    await waitUntil(async () => (await fetch(`${alone.url}/readyz`)).status === 503, 'it called itself ready');
    expect(await (await fetch(`${alone.url}/readyz`)).text()).toMatch(/PostgreSQL/);
  } finally {
    await alone.stop();
  }
});
