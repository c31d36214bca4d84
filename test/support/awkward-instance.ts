import { randomUUID } from 'node:crypto';
import type { Database } from '../../db/connect.ts';
import { createInstance } from '../../db/transactions/create-instance.ts';
import { createProject } from '../../db/transactions/create-project.ts';

/** The description of an instance that a session with other settings would write or read otherwise. */
export const AWKWARD_TEXT = "\\x00 '' \\' ä";

/** Makes a project and an instance in it, by the same name of its own, with texts that are hard to write. */
export async function makeAwkwardInstance(db: Database): Promise<{ name: string; instanceId: string }> {
  const name = `p${randomUUID().slice(0, 8)}`;
  const project = await createProject(db, { name, description: "it's \\ a 'text'" });
  const instanceId = await createInstance(db, {
    projectId: project.id,
    name,
    description: AWKWARD_TEXT,
    hostname: name,
    ncpus: 2,
    memoryBytes: 1024 ** 3,
    autoRestartPolicy: null,
  });
  return { name, instanceId };
}
