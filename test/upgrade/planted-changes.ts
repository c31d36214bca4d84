/**
 * What a next version may change, planted in a copy of the working tree: workflows get a step more, workflows a field more in what
 * they are started with, the database a column and a table, and the protocol a field more in either direction. Done as
 * CONTRIBUTING.md asks for it: the old version must be able to live beside it.
 */
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { applyEdit, type Edit } from '../mutants/mutants.ts';

const EDITS: readonly Edit[] = [
  // --- Workflows: one that is pinned, and one that goes over in the middle ---
  {
    file: 'workflows/instance-start.ts',
    find: "import { isCancellation } from '@temporalio/workflow';",
    replace: "import { isCancellation, patched } from '@temporalio/workflow';",
  },
  {
    file: 'workflows/instance-start.ts',
    find: 'import { claimStart, DEFAULT_REGISTER_TIMEOUT_MS, readOtherSleds,',
    replace: 'import { claimStart, DEFAULT_REGISTER_TIMEOUT_MS, notePlanted, readOtherSleds,',
  },
  {
    file: 'workflows/instance-start.ts',
    find: '      const lookedAtMs = await register(claim);',
    replace: `      if (patched('planted')) await notePlanted({ instanceId, note: input.planted ?? 'started by an old API' });
      const lookedAtMs = await register(claim);`,
  },
  {
    file: 'workflows/instance-update.ts',
    find: 'import { continueAsNew, defineSignal,',
    replace: 'import { patched, continueAsNew, defineSignal,',
  },
  {
    file: 'workflows/instance-update.ts',
    find: "import { updateInstance } from './steps.ts';",
    replace: "import { notePlanted, updateInstance } from './steps.ts';",
  },
  {
    file: 'workflows/instance-update.ts',
    find: '    if (result !== null) last = result;',
    replace: `    if (result !== null) last = result;
    if (patched('planted')) await notePlanted({ instanceId: input.instanceId, note: 'updated' });`,
  },
  {
    file: 'workflows/steps.ts',
    find: "export const runVmm = step('runVmm', UNTIL_DEFINITIVE);",
    replace: `export const runVmm = step('runVmm', UNTIL_DEFINITIVE);
export const notePlanted = step('notePlanted', TRANSACTION);`,
  },
  {
    file: 'activities/sagas.ts',
    find: '    ...stopActivities(context),',
    replace: '    ...stopActivities(context),\n    ...plantedActivities(context),',
  },
  {
    file: 'activities/sagas.ts',
    find: "import { registerActivities } from './register-vmm.ts';",
    replace:
      "import { plantedActivities } from './planted.ts';\nimport { registerActivities } from './register-vmm.ts';",
  },
  // --- What a workflow is started with ---
  {
    file: 'model/workflow-inputs.ts',
    find: '  readonly reason: StartReason;',
    replace: '  readonly reason: StartReason;\n  readonly planted?: string;',
  },
  {
    file: 'api/operations.ts',
    find: "'instanceStart', { ...options, args: [request.input] }",
    replace: "'instanceStart', { ...options, args: [{ ...request.input, planted: 'started by a new API' }] }",
  },
  // --- The database ---
  {
    file: 'db/migrations/meta/_journal.json',
    find: '"tag": "0000_schema", "breakpoints": false }',
    replace:
      '"tag": "0000_schema", "breakpoints": false },\n    { "idx": 1, "version": "7", "when": 4102444800000, "tag": "0001_planted", "breakpoints": false }',
  },
  {
    file: 'db/schema.ts',
    find: "    hostname: text('hostname').notNull(),\n    ncpus:",
    replace:
      "    hostname: text('hostname').notNull(),\n    planted: text('planted').notNull().default(''),\n    ncpus:",
  },
  // --- The protocol ---
  {
    file: 'activities/register-vmm.ts',
    find: '            memory_bytes: claim.memoryBytes,',
    replace: "            memory_bytes: claim.memoryBytes,\n            planted: { by: 'a new control plane' },",
  },
  {
    file: 'sled-agent/agent.ts',
    find: '    vmm_state: vmm.runtime,',
    replace: "    ...{ planted: { by: 'a new agent' } },\n    vmm_state: { ...vmm.runtime, ...{ planted: true } },",
  },
  {
    file: 'sled-agent/agent-description.ts',
    find: '      agent_id_kept: this.#isKept,',
    replace: "      agent_id_kept: this.#isKept,\n      ...{ planted: ['a new agent'] },",
  },
];

const FILES: Readonly<Record<string, string>> = {
  'db/migrations/0001_planted.sql': `ALTER TABLE instance ADD COLUMN planted text NOT NULL DEFAULT '';
CREATE TABLE planted_visit (instance_id uuid PRIMARY KEY, visits integer NOT NULL);
`,
  'activities/planted.ts': `import { eq, sql } from 'drizzle-orm';
import { instance } from '../db/schema.ts';
import type { SagaContext } from './context.ts';

export function plantedActivities({ db }: SagaContext) {
  return {
    async notePlanted({ instanceId, note }: { instanceId: string; note: string }): Promise<void> {
      await db.update(instance).set({ planted: note }).where(eq(instance.id, instanceId));
      await db.execute(sql\`INSERT INTO planted_visit VALUES (\${instanceId}, 1)
        ON CONFLICT (instance_id) DO UPDATE SET visits = planted_visit.visits + 1\`);
    },
  };
}
`,
};

/** Plants them all in a copy of the tree. Throws a `StaleMutant` where the code that they change has become another. */
export async function plantChanges(folder: string): Promise<void> {
  for (const edit of EDITS) {
    const path = join(folder, edit.file);
    await writeFile(path, applyEdit(await readFile(path, 'utf8'), edit, 'a planted change'));
  }
  for (const [file, content] of Object.entries(FILES)) {
    await mkdir(dirname(join(folder, file)), { recursive: true });
    await writeFile(join(folder, file), content);
  }
}
