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
