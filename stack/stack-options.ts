/** How a stack is brought up. Options of its parts have their parts' names and are handed on as they are. */
import type { ApiOptions } from '../api/server.ts';
import type { SledAgentOptions } from '../sled-agent/server.ts';
import type { WorkerOptions } from '../worker/worker.ts';

/** The options that are handed on to the worker. */
export const WORKER_OPTIONS = [
  'updates',
  'reconcileEveryMs',
  'reconcilersOff',
  'metricsListen',
  'testInterceptors',
  'bundle',
  'lookEveryMs',
] as const;
/** The options that are handed on to the API. */
export const API_OPTIONS = [
  'waitMs',
  'registerTimeoutMs',
  'leaseBeatMs',
  'outcomeProofMs',
  'consoleFolder',
  'limits',
  'hosts',
  'lookEveryMs',
] as const;
/** The options that are handed on to each sled agent. */
export const SLED_AGENT_OPTIONS = ['transitionMs', 'networkPollMs', 'testEndpoints'] as const;

/** What a stack is brought up with. */
export interface StackOptions
  extends Pick<WorkerOptions, (typeof WORKER_OPTIONS)[number]>,
    Pick<ApiOptions, (typeof API_OPTIONS)[number]>,
    Pick<SledAgentOptions, (typeof SLED_AGENT_OPTIONS)[number]> {
  /** Kept between runs; a throw-away directory when absent. */
  readonly dataDir?: string | undefined;
  /** Brings the schema of a PostgreSQL that is not the stack's own up to date; `false` only checks it. Default true. */
  readonly migrate?: boolean | undefined;
  /** 0 chooses a free one. */
  readonly apiPort?: number | undefined;
  readonly temporalUiPort?: number | undefined;
  /** How many sleds. */
  readonly sleds: number;
  /** What runs their VMs; simulated by default. */
  readonly hypervisor?: 'simulated' | 'qemu' | undefined;
  /** How fast a real VM's migration may be, in bytes per second; without limit when absent. */
  readonly migrationBandwidth?: number | undefined;
  /** Asks every operator for a token; by default a request without one is this machine's operator's. */
  readonly requireTokens?: boolean | undefined;
  /** Sleds join by invitation and speak by certificates, and no sled is added without; default false. */
  readonly sledTls?: boolean | undefined;
  /** How long their certificates are good, in milliseconds. */
  readonly certificateLifetimeMs?: number | undefined;
  /** Dynamic configuration of the embedded Temporal server; for tests and recordings. */
  readonly temporalDynamicConfig?: Readonly<Record<string, string | number>> | undefined;
  readonly env?: NodeJS.ProcessEnv | undefined;
  /** Fills the folder of the embedded PostgreSQL before it is started; for tests. */
  readonly preparePostgres?: ((dataDir: string) => Promise<void>) | undefined;
  /** Aborted while it comes up: no further part is begun, and what is up is stopped. */
  readonly signal?: AbortSignal | undefined;
  /** Called with each part that is up, described for people. */
  readonly onProgress?: ((message: string) => void) | undefined;
}

/** A stack that is being brought up. */
export interface StackSetup {
  readonly options: StackOptions;
  readonly env: NodeJS.ProcessEnv;
  readonly dataDir: string;
  /** What stops the parts that are up, in the order in which they came up. */
  readonly stops: (() => Promise<unknown>)[];
  /** Reports a part that is up. */
  readonly report: (message: string) => void;
}

/** The named properties of an object; one that is absent there is absent here. */
export function pick<Source extends object, Key extends keyof Source>(
  source: Source,
  keys: readonly Key[],
): Pick<Source, Key> {
  return Object.fromEntries(keys.flatMap((key) => (key in source ? [[key, source[key]]] : []))) as Pick<Source, Key>;
}
