import { setTimeout as pause } from 'node:timers/promises';
import { Connection, defaultGrpcRetryOptions, makeGrpcRetryInterceptor } from '@temporalio/client';
import { loadClientConnectConfig } from '@temporalio/envconfig';
import type { NativeConnectionOptions } from '@temporalio/worker';
import { isNamespaceMissing, oneLine } from './errors.ts';

/** How to reach a Temporal namespace. */
export interface TemporalSettings {
  readonly connection: Pick<NativeConnectionOptions, 'address' | 'tls' | 'apiKey' | 'metadata'>;
  readonly namespace: string;
}

/** Settings for a server without TLS or keys, as the embedded one is. */
export function plainTemporal(address: string, namespace = 'default'): TemporalSettings {
  return { connection: { address }, namespace };
}

/**
 * Reads the settings from the environment by the SDK's own configuration (`TEMPORAL_ADDRESS`, `TEMPORAL_NAMESPACE`,
 * `TEMPORAL_API_KEY`, `TEMPORAL_TLS_*`, `TEMPORAL_PROFILE`, a `temporal.toml`). Throws when it can't be understood; the
 * message names no secret. Source: https://docs.temporal.io/develop/environment-configuration
 */
export function readTemporalSettings(env: NodeJS.ProcessEnv): TemporalSettings {
  try {
    const overrideEnvVars = Object.fromEntries(
      Object.entries(env).filter((entry): entry is [string, string] => entry[1] !== undefined),
    );
    const { connectionOptions, namespace } = loadClientConnectConfig({ overrideEnvVars });
    return {
      connection: {
        address: connectionOptions.address ?? '127.0.0.1:7233',
        ...(connectionOptions.tls === undefined ? {} : { tls: connectionOptions.tls }),
        ...(connectionOptions.apiKey === undefined ? {} : { apiKey: connectionOptions.apiKey }),
        ...(connectionOptions.metadata === undefined ? {} : { metadata: connectionOptions.metadata }),
      },
      namespace: namespace ?? 'default',
    };
  } catch (error) {
    throw new Error(
      `the Temporal settings in the environment (TEMPORAL_*) can't be read: ${error instanceof Error ? error.message : error}`,
    );
  }
}

/**
 * What kept a process from connecting to Temporal, in one sentence that names what to set. `error` is the client's, or the
 * worker's, which speaks of transports.
 */
export function explainUnreachable(error: unknown, { connection, namespace }: TemporalSettings): Error {
  const address = connection.address ?? 'its address';
  const message =
    isNamespaceMissing(error) || /namespace .* (was )?not found/i.test(error instanceof Error ? error.message : '')
      ? `Temporal at ${address} has no namespace "${namespace}": create it ("temporal operator namespace create --namespace ${namespace}"), or name another in TEMPORAL_NAMESPACE`
      : `Temporal at ${address} can't be used (${oneLine(error)}): is it there, and does TEMPORAL_ADDRESS name it?`;
  return new Error(message, { cause: error });
}

/** A client's connection that can be closed at any time. */
export interface ClientConnection {
  readonly connection: Connection;
  /** Lets no call be tried again, waits for the one that is about to be, and closes. */
  close(): Promise<void>;
}

/**
 * How long one call to Temporal may take where its caller sets no deadline, in milliseconds. The SDK sets none: a server that
 * has frozen would hold every call for as long as it stays so. Source: the note on `withDeadline` in the SDK's connection.ts.
 */
export const CALL_TIMEOUT_MS = 10_000;
/**
 * The same, in milliseconds, for calls that the server itself holds open: longer than it does (a history's long poll: 20 s,
 * a query: as long as its own limit). Who waits on asks again.
 */
const HELD_CALL_TIMEOUT_MS = 70_000;
const HELD_CALLS = /\/(GetWorkflowExecutionHistory|QueryWorkflow|UpdateWorkflowExecution|PollWorkflowExecutionUpdate)$/;

/** Gives every call that has no deadline of its own one, `callTimeoutMs` from now; what the server holds open gets longer. */
function withDeadlines(next: GrpcInterceptor, callTimeoutMs: number): GrpcInterceptor {
  return (options, nextCall) => {
    const limitMs = HELD_CALLS.test(options.method_definition.path)
      ? Math.max(callTimeoutMs, HELD_CALL_TIMEOUT_MS)
      : callTimeoutMs;
    return next({ ...options, deadline: options.deadline ?? Date.now() + limitMs }, nextCall);
  };
}
type GrpcInterceptor = ReturnType<typeof makeGrpcRetryInterceptor>;

/** The longest pause before a call is tried again, in milliseconds: a close waits for it. */
const MAX_RETRY_PAUSE_MS = 1_000;

/**
 * Connects a client. The SDK's own retry of a call throws, outside of every promise, when its connection was closed during
 * the pause before it: so the pauses are known here, and a close waits for the last one. Every call has a deadline, by default
 * {@link CALL_TIMEOUT_MS}; past it the call throws, and may have taken effect or not. Throws when no server answers.
 */
export async function connectClient(
  settings: TemporalSettings['connection'],
  callTimeoutMs = CALL_TIMEOUT_MS,
): Promise<ClientConnection> {
  const retry = defaultGrpcRetryOptions();
  let closing = false;
  let pausedUntil = 0;
  const connection = await Connection.connect({
    ...settings,
    interceptors: [
      withDeadlines(
        makeGrpcRetryInterceptor({
          retryableDecider: (attempt, status) => !closing && retry.retryableDecider(attempt, status),
          delayFunction: (attempt, status) => {
            const ms = Math.min(MAX_RETRY_PAUSE_MS, retry.delayFunction(attempt, status));
            pausedUntil = Math.max(pausedUntil, performance.now() + ms);
            return ms;
          },
        }),
        callTimeoutMs,
      ),
    ],
  });
  return {
    connection,
    async close() {
      closing = true;
      const left = pausedUntil - performance.now();
      // A timer may fire a little late.
      if (left > -50) await pause(left + 100);
      await connection.close();
    },
  };
}
