import type { Database } from '../db/connect.ts';
import type { Metrics } from '../platform/telemetry/metrics.ts';
import type { WorkflowStarter } from '../temporal/workflow-starter.ts';
import type { SledClient } from './sled-client.ts';
import type { StepSledCalls } from './step-sleds.ts';

/** What the activities work with. */
export interface ActivityContext {
  readonly db: Database;
  readonly sleds: SledClient;
  readonly workflows: WorkflowStarter;
  readonly metrics?: Metrics;
  /** How long audit records are kept, in days; default 90. */
  readonly auditDays?: number | undefined;
  /** How long what is over (operations, VMMs, migrations, deleted instances) is kept, in days; default 30. */
  readonly retentionDays?: number | undefined;
}

/** What the steps of sagas work with. */
export interface SagaContext extends Omit<ActivityContext, 'sleds'> {
  readonly sleds: StepSledCalls;
}
