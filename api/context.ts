/** What the endpoints of the API work with. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Client } from '@temporalio/client';
import type { FastifyBaseLogger, FastifyInstance, RawServerDefault } from 'fastify';
import type { ZodTypeProvider } from 'fastify-type-provider-zod';
import type { Logger } from 'pino';
import type { SledClient } from '../activities/sled-client.ts';
import type { Database } from '../db/connect.ts';
import type { Authority } from '../platform/identity/authority.ts';
import type { Metrics } from '../platform/telemetry/metrics.ts';
import type { WorkflowStarter } from '../temporal/workflow-starter.ts';
import type { Operations } from './operations.ts';

export type ApiApp = FastifyInstance<
  RawServerDefault,
  IncomingMessage,
  ServerResponse,
  FastifyBaseLogger,
  ZodTypeProvider
>;

export interface ApiContext {
  readonly db: Database;
  readonly temporal: Client;
  /** The id of the installation, which is in the names of its schedules. Throws while the database does not answer. */
  installation(): Promise<string>;
  readonly workflows: WorkflowStarter;
  readonly operations: Operations;
  readonly sleds: SledClient;
  readonly log: Logger;
  readonly metrics: Metrics;
  /** How sleds join with identities of their own; `null` where this API has no certificate authority. */
  readonly sledJoining: SledJoining | null;
  /** Whether a sled may be added whose agent uses plain HTTP, without an identity. */
  readonly plainSleds: boolean;
  /** How long a call waits for its saga's outcome when it asks for nothing less, in milliseconds. */
  readonly waitLimitMs: number;
  /** How long registering a VMM may take, in milliseconds; the sagas' own default when absent. */
  readonly registerTimeoutMs?: number | undefined;
  /** Where the Temporal Web UI shows a workflow's run; `null` when the API knows of no Web UI. */
  webUiLink(workflowId: string, runId: string): string | null;
}

/** What an API needs to let sleds join. */
export interface SledJoining {
  readonly authority: Authority;
  /** Where sleds reach the sled-facing listener. */
  readonly url: string;
}
