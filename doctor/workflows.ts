/** Checks in Temporal: invariant 8, at rest no workflow of an instance is open. */
import type { Client } from '@temporalio/client';
import type { Database } from '../db/connect.ts';
import { findOwningInstances } from '../db/queries/find-owning-instances.ts';
import { readInstallation } from '../db/queries/read-installation.ts';
import { installationOf, workflowIds } from '../model/workflow-names.ts';
import { WorkflowStarter } from '../temporal/workflow-starter.ts';
import type { Finding } from './finding.ts';

/** The beginnings of the ids of an instance's, a VMM's and a migration's workflows: every kind there is. */
const { drain: _drain, reconcileOnce: _reconcileOnce, ...OF_INSTANCES } = workflowIds;
const PREFIXES = Object.values(OF_INSTANCES).map((idOf) => idOf(''));

/** Finds open workflows of this database's instances and VMMs. */
export async function findOpenWorkflows(db: Database, client: Client): Promise<Finding[]> {
  const suspects: { workflowId: string; runId: string; type: string; subject: string }[] = [];
  const { id: installation } = await readInstallation(db);
  for await (const run of client.workflow.list({ query: 'ExecutionStatus = "Running"' })) {
    const prefix = PREFIXES.find((start) => run.workflowId.startsWith(start));
    // Another installation's is no workflow of these instances, though it has their ids: the surroundings speak of it.
    if (prefix === undefined || (installationOf(run.taskQueue) ?? installation) !== installation) continue;
    suspects.push({ ...run, subject: run.workflowId.slice(prefix.length) });
  }
  if (suspects.length === 0) return [];
  const owners = await findOwningInstances(
    db,
    suspects.map(({ subject }) => subject),
  );
  const workflows = new WorkflowStarter(client);
  const findings: Finding[] = [];
  for (const { workflowId, runId, type, subject } of suspects) {
    const instanceId = owners.get(subject);
    // Temporal's list is a moment behind: the run itself is looked up before it is reported.
    if (instanceId === undefined || !(await workflows.isOpen(workflowId, runId))) continue;
    findings.push({
      invariant: 8,
      rule: 'no workflow open',
      holds: 'at rest',
      instanceId,
      sledId: null,
      message: `workflow ${workflowId} (${type}, run ${runId}) is still open`,
    });
  }
  return findings;
}
