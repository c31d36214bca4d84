/** A PostgreSQL of its own for a test file, migrated and journaled, and the rows that its cases need. */
import { randomUUID } from 'node:crypto';
import { rm } from 'node:fs/promises';
import { sql } from 'drizzle-orm';
import { type OpenDatabase, openDatabase } from '../../db/connect.ts';
import { installJournal } from '../../db/journal.ts';
import { sled } from '../../db/schema.ts';
import { createInstance } from '../../db/transactions/create-instance.ts';
import { createProject } from '../../db/transactions/create-project.ts';
import { startTestPostgres } from './postgres-template.ts';

export interface TestDatabase extends OpenDatabase {
  readonly url: string;
  /** Adds a sled in service; returns its id. */
  addSled(size?: { threads?: number; memoryBytes?: number }): Promise<string>;
  addProject(): Promise<string>;
  /** Adds a stopped instance; returns its id. */
  addInstance(projectId: string, size?: { ncpus?: number; memoryBytes?: number }): Promise<string>;
  /** Empties every table, the journal too. */
  clear(): Promise<void>;
  stop(): Promise<void>;
}

const GIB = 1024 ** 3;

/** Starts it; `maxConnections` bounds the pool. */
export async function startTestDatabase(options: { maxConnections?: number } = {}): Promise<TestDatabase> {
  const { directory, postgres } = await startTestPostgres();
  const database = openDatabase(postgres.url, {
    maxConnections: options.maxConnections ?? 8,
    applicationName: 'mooring-test',
  });
  await installJournal(database.db);
  let made = 0;
  return {
    ...database,
    url: postgres.url,
    async addSled({ threads = 64, memoryBytes = 256 * GIB } = {}) {
      made += 1;
      const id = randomUUID();
      await database.db.insert(sled).values({
        id,
        name: `sled-${made}`,
        address: `10.${(made >> 16) & 255}.${(made >> 8) & 255}.${made & 255}:8099`,
        threads,
        memoryBytes,
      });
      return id;
    },
    async addProject() {
      made += 1;
      return (await createProject(database.db, { name: `project-${made}`, description: '' })).id;
    },
    async addInstance(projectId, { ncpus = 2, memoryBytes = GIB } = {}) {
      made += 1;
      const name = `vm-${made}`;
      return createInstance(database.db, {
        projectId,
        name,
        description: '',
        hostname: name,
        ncpus,
        memoryBytes,
        autoRestartPolicy: null,
      });
    },
    async clear() {
      await database.db.execute(sql`
        TRUNCATE project, sled, instance, vmm, migration, sled_reservation, provisioning_charge, operation, doctor.journal CASCADE`);
    },
    async stop() {
      await database.close();
      await postgres.stop();
      await rm(directory, { recursive: true, force: true });
    },
  };
}
