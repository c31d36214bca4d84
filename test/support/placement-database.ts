/** A real PostgreSQL for tests of the transactions alone, and the few helpers that they need. */
import { randomUUID } from 'node:crypto';
import { rm } from 'node:fs/promises';
import { sql } from 'drizzle-orm';
import { drizzle } from 'drizzle-orm/node-postgres';
import { type Database, type OpenDatabase, openDatabase } from '../../db/connect.ts';
import { findNetworkDisagreements } from '../../db/queries/find-network-disagreements.ts';
import * as schema from '../../db/schema.ts';
import { addAffinityMember } from '../../db/transactions/add-affinity-member.ts';
import { addSled } from '../../db/transactions/add-sled.ts';
import { claimMigration, type MigrationClaim } from '../../db/transactions/claim-migration.ts';
import { type ClaimedVmm, claimStart } from '../../db/transactions/claim-start.ts';
import { createAffinityGroup } from '../../db/transactions/create-affinity-group.ts';
import { createInstance } from '../../db/transactions/create-instance.ts';
import { createProject } from '../../db/transactions/create-project.ts';
import type { AffinityKind, AffinityPolicy } from '../../model/states.ts';
import { startTestPostgres } from './postgres-template.ts';

export const GIBIBYTE = 1024 ** 3;

export interface TestDatabase extends OpenDatabase {
  /** Statements sent through {@link counted} so far. */
  readonly statements: number;
  /** The same database, with every statement counted. */
  readonly counted: Database;
  /** Deletes every row. */
  empty(): Promise<void>;
  project(): Promise<string>;
  /** Adds a sled; returns its id. */
  sled(size?: { threads?: number; memoryBytes?: number }): Promise<string>;
  /** Creates a stopped instance; returns its id. */
  instance(projectId: string, size?: { ncpus?: number; memoryBytes?: number }): Promise<string>;
  /** Creates a group with members; returns its id. */
  group(
    projectId: string,
    kind: AffinityKind,
    policy: AffinityPolicy,
    members: readonly string[],
    name?: string,
  ): Promise<string>;
  /** The claim of a start. Throws the refusal. */
  start(instanceId: string, over?: Database): Promise<ClaimedVmm>;
  /** Has the sled of an instance's active VMM report that it runs. */
  runs(instanceId: string): Promise<void>;
  /** The claim of a migration. Throws the refusal. */
  migrate(instanceId: string, sledId: string, over?: Database): Promise<MigrationClaim>;
  /** The sleds that an instance has an active or target reservation on. */
  sledsOf(instanceId: string): Promise<string[]>;
  /** What is broken of what must hold in every committed state: groups with `fail`, capacity, the network. */
  broken(): Promise<unknown[]>;
}

/** Starts a PostgreSQL of its own. */
export async function startTestDatabase(): Promise<TestDatabase> {
  const { directory, postgres } = await startTestPostgres();
  const opened = openDatabase(postgres.url, { maxConnections: 24, applicationName: 'mooring-test' });
  const { db, pool } = opened;
  let statements = 0;
  let named = 0;
  const name = (kind: string) => `${kind}-${++named}`;
  const test: TestDatabase = {
    db,
    pool,
    counted: drizzle(pool, {
      schema,
      logger: {
        logQuery: () => {
          statements += 1;
        },
      },
    }),
    get statements() {
      return statements;
    },
    async empty() {
      await db.execute(sql`TRUNCATE project, sled, instance, vmm, migration CASCADE`);
    },
    async project() {
      return (await createProject(db, { name: name('project'), description: '' })).id;
    },
    async sled(size = {}) {
      named += 1;
      const address = `10.${(named >> 16) & 255}.${(named >> 8) & 255}.${named & 255}:8099`;
      return (
        await addSled(db, {
          name: name('sled'),
          address,
          threads: 64,
          memoryBytes: 256 * GIBIBYTE,
          agent: null,
          ...size,
        })
      ).id;
    },
    async instance(projectId, size = {}) {
      const called = name('vm');
      return createInstance(db, {
        projectId,
        name: called,
        hostname: called,
        description: '',
        ncpus: 1,
        memoryBytes: GIBIBYTE,
        autoRestartPolicy: null,
        ...size,
      });
    },
    async group(projectId, kind, policy, members, called = name('group')) {
      const group = await createAffinityGroup(db, {
        projectId,
        kind,
        policy,
        name: called,
        description: '',
        failureDomain: 'sled',
      });
      for (const id of members) await addAffinityMember(db, group, { id, name: id });
      return group.id;
    },
    async start(instanceId, over = db) {
      const claim = await claimStart(over, {
        instanceId,
        vmmId: randomUUID(),
        operationId: randomUUID(),
        workflowId: `instance-start/${instanceId}`,
        reason: 'user',
      });
      if (claim === null) throw new Error(`instance ${instanceId} is started already`);
      return claim;
    },
    async runs(instanceId) {
      await db.execute(sql`
        UPDATE vmm SET state = 'running', state_generation = state_generation + 1
        WHERE id = (SELECT active_vmm_id FROM instance WHERE id = ${instanceId})`);
    },
    migrate: (instanceId, destinationSledId, over = db) =>
      claimMigration(over, {
        instanceId,
        destinationSledId,
        vmmId: randomUUID(),
        migrationId: randomUUID(),
        operationId: randomUUID(),
        workflowId: `instance-migrate/${instanceId}`,
      }),
    async sledsOf(instanceId) {
      const result = await db.execute(sql`
        SELECT sled_id FROM sled_reservation WHERE instance_id = ${instanceId} AND kind <> 'tombstoned' ORDER BY kind`);
      return result.rows.map((row) => String(row.sled_id));
    },
    async broken() {
      const groups = await db.execute(sql`
        SELECT g.name, g.kind, one.sled_id AS one, other.sled_id AS other
        FROM affinity_group g
        JOIN affinity_group_member a ON a.group_id = g.id JOIN sled_reservation one ON one.instance_id = a.instance_id AND one.kind <> 'tombstoned'
        JOIN affinity_group_member b ON b.group_id = g.id AND b.instance_id <> a.instance_id
        JOIN sled_reservation other ON other.instance_id = b.instance_id AND other.kind <> 'tombstoned'
        WHERE g.policy = 'fail' AND (g.kind = 'affinity') <> (one.sled_id = other.sled_id)`);
      const sleds = await db.execute(sql`
        SELECT sled.name FROM sled LEFT JOIN sled_reservation held ON held.sled_id = sled.id
        GROUP BY sled.id
        HAVING coalesce(sum(held.threads), 0) <> sled.reserved_threads OR sled.reserved_threads > sled.threads
          OR coalesce(sum(held.memory_bytes), 0) <> sled.reserved_memory_bytes OR sled.reserved_memory_bytes > sled.memory_bytes`);
      return [...groups.rows, ...sleds.rows, ...(await findNetworkDisagreements(db))];
    },
    async close() {
      await opened.close();
      await postgres.stop();
      await rm(directory, { recursive: true, force: true });
    },
  };
  return test;
}
