/** The objects of a reading of changes, those that have no query of their own; each in no order, without those that are gone. */
import { eq, inArray, sql } from 'drizzle-orm';
import { alias } from 'drizzle-orm/pg-core';
import type { Queryable } from '../connect.ts';
import { accessToken, auditLog, migration, project, sled, vmm } from '../schema.ts';
import type { CompletedRecord } from './list-audit-log.ts';
import type { ProjectRow } from './list-projects.ts';
import { type CountedSled, unheard, vmmCount } from './read-sled.ts';

/** Reads sleds by their ids, expunged ones too. */
export function readSleds(db: Queryable, ids: readonly string[]): Promise<CountedSled[]> {
  return db
    .select({ sled, vmmCount, unheard })
    .from(sled)
    .where(inArray(sled.id, [...ids]));
}

/** Reads projects by their ids, deleted ones too. */
export function readProjects(db: Queryable, ids: readonly string[]): Promise<ProjectRow[]> {
  return db
    .select()
    .from(project)
    .where(inArray(project.id, [...ids]));
}

/** Reads records of the audit log that are completed. */
export async function readAuditRecords(db: Queryable, ids: readonly string[]): Promise<CompletedRecord[]> {
  const rows = await db
    .select()
    .from(auditLog)
    .where(inArray(auditLog.id, [...ids]));
  return rows.flatMap((row) => (row.timeCompleted === null ? [] : [{ ...row, timeCompleted: row.timeCompleted }]));
}

/** A migration, and between which sleds it is. */
export interface PlacedMigration {
  readonly migration: typeof migration.$inferSelect;
  readonly sourceSledId: string | null;
  readonly targetSledId: string | null;
}

const source = alias(vmm, 'source');
const target = alias(vmm, 'target');

/** Reads migrations by their ids. */
export function readMigrations(db: Queryable, ids: readonly string[]): Promise<PlacedMigration[]> {
  return db
    .select({ migration, sourceSledId: source.sledId, targetSledId: target.sledId })
    .from(migration)
    .innerJoin(source, eq(source.id, migration.sourceVmmId))
    .innerJoin(target, eq(target.id, migration.targetVmmId))
    .where(inArray(migration.id, [...ids]));
}

/** Which of these tokens are no good any more, and why; by the database's clock. */
export async function readEndedTokens(
  db: Queryable,
  ids: readonly string[],
): Promise<Map<string, 'revoked' | 'expired'>> {
  const rows = await db
    .select({
      id: accessToken.id,
      revoked: sql<boolean>`${accessToken.timeRevoked} IS NOT NULL`,
      expired: sql<boolean>`coalesce(${accessToken.timeExpires} <= now(), false)`,
    })
    .from(accessToken)
    .where(inArray(accessToken.id, [...ids]));
  const found = new Map(rows.map((row) => [row.id, row]));
  const ended = new Map<string, 'revoked' | 'expired'>();
  for (const id of ids) {
    const row = found.get(id);
    // One that was reaped had been one of the two for long.
    if (row === undefined || row.revoked) ended.set(id, 'revoked');
    else if (row.expired) ended.set(id, 'expired');
  }
  return ended;
}
