import type { ProjectRow } from '../../db/queries/list-projects.ts';
import type { ProjectView, QuotaView } from '../../wire/operator-api/projects.ts';

/** A project as the API answers it. */
export function viewProject(row: ProjectRow): ProjectView {
  return {
    id: row.id,
    name: row.name,
    description: row.description,
    time_created: row.timeCreated.toISOString(),
    time_modified: row.timeModified.toISOString(),
  };
}

/** A project's quota and what is in use of it. */
export function viewQuota(row: ProjectRow): QuotaView {
  return {
    cpus: row.quotaCpus,
    memory: row.quotaMemoryBytes,
    cpus_in_use: row.chargedCpus,
    memory_in_use: row.chargedMemoryBytes,
  };
}
