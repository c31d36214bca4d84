import { setTimeout as pause } from 'node:timers/promises';
import { Connection, defaultGrpcRetryOptions, makeGrpcRetryInterceptor } from '@temporalio/client';
import { loadClientConnectConfig } from '@temporalio/envconfig';
import type { NativeConnectionOptions } from '@temporalio/worker';

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

/** A client's connection that can be closed at any time. */
export interface ClientConnection {
  readonly connection: Connection;
  /** Lets no call be tried again, waits for the one that is about to be, and closes. */
  close(): Promise<void>;
}

/** The longest pause before a call is tried again, in milliseconds: a close waits for it. */
const MAX_RETRY_PAUSE_MS = 1_000;

/**
 * Connects a client. The SDK's own retry of a call throws, outside of every promise, when its connection was closed during
 * the pause before it: so the pauses are known here, and a close waits for the last one. Throws when no server answers.
 */
export async function connectClient(settings: TemporalSettings['connection']): Promise<ClientConnection> {
  const retry = defaultGrpcRetryOptions();
  let closing = false;
  let pausedUntil = 0;
  const connection = await Connection.connect({
    ...settings,
    interceptors: [
      makeGrpcRetryInterceptor({
        retryableDecider: (attempt, status) => !closing && retry.retryableDecider(attempt, status),
        delayFunction: (attempt, status) => {
          const ms = Math.min(MAX_RETRY_PAUSE_MS, retry.delayFunction(attempt, status));
          pausedUntil = Math.max(pausedUntil, performance.now() + ms);
          return ms;
        },
      }),
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
