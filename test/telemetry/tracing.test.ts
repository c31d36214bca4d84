/** One trace, from the call through the saga and its steps to the sled agent and back, at a collector that only listens. */
import { createServer, type Server } from 'node:http';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { waitUntil } from '../../platform/host/child-process.ts';
import { type Harness, startHarness } from '../support/harness.ts';

interface ReceivedSpan {
  traceId: string;
  spanId: string;
  parentSpanId?: string;
  name: string;
}

const receivedSpans: ReceivedSpan[] = [];
let collector: Server;
let harness: Harness;
beforeAll(async () => {
  collector = createServer((request, response) => {
    let body = '';
    request.on('data', (chunk) => {
      body += chunk;
    });
    request.on('end', () => {
      for (const resource of JSON.parse(body).resourceSpans)
        for (const scope of resource.scopeSpans) receivedSpans.push(...scope.spans);
      response.end('{}');
    });
  });
  await new Promise<void>((resolve) => collector.listen(0, '127.0.0.1', resolve));
  const address = collector.address();
  const port = typeof address === 'object' && address !== null ? address.port : 0;
  process.env.OTEL_EXPORTER_OTLP_ENDPOINT = `http://127.0.0.1:${port}`;
  harness = await startHarness({ reconcileEveryMs: 0 });
});
afterAll(async () => {
  await harness?.close();
  await new Promise((resolve) => collector.close(resolve));
});

test('a start is one trace, whose spans hang together from the caller to the sled’s report', async () => {
  const id = await harness.create();
  const traceId = '0af7651916cd43dd8448eb211c80319c';
  const response = await fetch(`${harness.stack.apiUrl}/v1/instances/${id}/start`, {
    method: 'POST',
    headers: { traceparent: `00-${traceId}-b7ad6b7169203331-01` },
  });
  expect(response.status).toBe(202);
  await harness.shows(id, 'running');
  const names = () => receivedSpans.filter((span) => span.traceId === traceId).map((span) => span.name);
  const wanted = [
    'POST /v1/instances/:instance/start',
    'StartWorkflow:instanceStart',
    'RunWorkflow:instanceStart',
    'StartActivity:claimStart',
    'RunActivity:registerVmm',
    'RunActivity:runVmm',
    'sled PUT /vmms/{vmm_id}',
    'PUT /vmms/:vmm_id',
    'PUT /vmms/:vmm_id/state',
    'report VMM',
  ];
  await waitUntil(() => wanted.every((name) => names().includes(name)), 'some span never arrived', 20_000).catch(
    (error: Error) => {
      throw new Error(`${error.message}: ${wanted.filter((name) => !names().includes(name))}; there are ${names()}`);
    },
  );
  const mine = receivedSpans.filter((span) => span.traceId === traceId);
  const known = new Set([...mine.map((span) => span.spanId), 'b7ad6b7169203331']);
  expect(mine.filter((span) => !known.has(span.parentSpanId ?? ''))).toEqual([]);
});
