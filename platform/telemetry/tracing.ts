/**
 * OpenTelemetry traces, from a caller through the API, the saga and its steps to the sled agent and back by its report. On
 * when the environment names a collector (`OTEL_EXPORTER_OTLP_ENDPOINT`, as OpenTelemetry's specification has it);
 * otherwise the API of OpenTelemetry does nothing, at no cost.
 */

import type { IncomingHttpHeaders } from 'node:http';
import { context, propagation, type Span, SpanKind, SpanStatusCode, trace } from '@opentelemetry/api';
import type { Resource } from '@opentelemetry/resources';
import type { SpanProcessor } from '@opentelemetry/sdk-trace-node';
import { withinTime } from '../host/with-limit.ts';
import { setting } from '../settings.ts';

/** What the Temporal SDK's interceptors need to send the spans of workflows. */
interface InstalledTracing {
  readonly resource: Resource;
  readonly spanProcessor: SpanProcessor;
  /** Sends the spans that are not sent yet. */
  flush(): Promise<void>;
}

/** How long a collector may take to answer, in milliseconds. */
const EXPORT_MS = 5_000;

let installed: Promise<InstalledTracing | null> | undefined;

/**
 * Sets tracing up for this process, once; `null` when the environment names no collector. `service` is the name that spans
 * carry unless `OTEL_SERVICE_NAME` names another.
 */
export function installTracing(
  service: string,
  env: NodeJS.ProcessEnv = process.env,
): Promise<InstalledTracing | null> {
  installed ??= install(service, env);
  return installed;
}

async function install(service: string, env: NodeJS.ProcessEnv): Promise<InstalledTracing | null> {
  const wanted = setting('OTEL_EXPORTER_OTLP_TRACES_ENDPOINT', env) ?? setting('OTEL_EXPORTER_OTLP_ENDPOINT', env);
  if (wanted === undefined || setting('OTEL_SDK_DISABLED', env)) return null;
  // Loaded only where it is used: loading takes a quarter of a second.
  const [{ BatchSpanProcessor, NodeTracerProvider }, { OTLPTraceExporter }, { Resource: Attributes }] =
    await Promise.all([
      import('@opentelemetry/sdk-trace-node'),
      import('@opentelemetry/exporter-trace-otlp-http'),
      import('@opentelemetry/resources'),
    ]);
  const resource = new Attributes({ 'service.name': setting('OTEL_SERVICE_NAME', env) ?? service });
  const spanProcessor = new BatchSpanProcessor(new OTLPTraceExporter({ timeoutMillis: EXPORT_MS }), {
    scheduledDelayMillis: 1_000,
    exportTimeoutMillis: EXPORT_MS,
  });
  const provider = new NodeTracerProvider({ resource, spanProcessors: [spanProcessor] });
  provider.register();
  return { resource, spanProcessor, flush };

  /** What is not sent by then is lost: no process is kept from ending by where its traces go. */
  function flush(): Promise<void> {
    return withinTime(provider.forceFlush(), EXPORT_MS);
  }
}

const tracer = () => trace.getTracer('mooring');
/** A request of an HTTP server, as its framework hands it to its hooks. */
export interface TracedRequest {
  readonly id: string;
  readonly method: string;
  readonly headers: IncomingHttpHeaders;
  readonly params: unknown;
  readonly routeOptions: { readonly url?: string | undefined };
}
const spans = new WeakMap<TracedRequest, Span>();

/** A hook for an HTTP server's `onRequest`: opens a span for the request, below the caller's if it names one. */
export function beginRequestSpan(request: TracedRequest, _: unknown, done: () => void): void {
  const route = request.routeOptions.url ?? 'unknown route';
  const caller = propagation.extract(context.active(), request.headers);
  const span = tracer().startSpan(
    `${request.method} ${route}`,
    {
      kind: SpanKind.SERVER,
      attributes: { 'http.request.method': request.method, 'http.route': route, 'mooring.request_id': request.id },
    },
    caller,
  );
  for (const [name, value] of Object.entries((request.params ?? {}) as Record<string, unknown>)) {
    if (typeof value === 'string') span.setAttribute(`mooring.${name}`, value);
  }
  spans.set(request, span);
  context.with(trace.setSpan(caller, span), done);
}

/** A hook for `onResponse`: ends the request's span. */
export async function endRequestSpan(request: TracedRequest, reply: { readonly statusCode: number }): Promise<void> {
  const span = spans.get(request);
  span?.setAttribute('http.response.status_code', reply.statusCode);
  if (reply.statusCode >= 500) span?.setStatus({ code: SpanStatusCode.ERROR });
  span?.end();
}

/** Runs an outgoing HTTP call in a span of its own; `call` gets the headers that carry the trace on. */
export async function inCallSpan<Answer>(
  name: string,
  attributes: Readonly<Record<string, string>>,
  call: (headers: Record<string, string>) => Promise<Answer>,
): Promise<Answer> {
  const span = tracer().startSpan(name, { kind: SpanKind.CLIENT, attributes });
  return context.with(trace.setSpan(context.active(), span), async () => {
    const headers: Record<string, string> = {};
    propagation.inject(context.active(), headers);
    try {
      return await call(headers);
    } catch (error) {
      span.setStatus({ code: SpanStatusCode.ERROR, message: error instanceof Error ? error.message : String(error) });
      throw error;
    } finally {
      span.end();
    }
  });
}
