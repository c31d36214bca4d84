import { sql } from 'drizzle-orm';
import { z } from 'zod';
import { IDENTITY_REFUSALS, type IdentityRefusal } from '../../model/identity.ts';
import type { Queryable } from '../connect.ts';

const refusalRow = z.object({ refusal: z.enum(IDENTITY_REFUSALS).nullable() });

/** Why a sled's certificate, which TLS has verified, is not good; `null` when it is. */
export async function readCertificateRefusal(
  db: Queryable,
  { sledId, serial }: { readonly sledId: string; readonly serial: string },
): Promise<IdentityRefusal | null> {
  const result = await db.execute(sql`/* sled-identity */
    SELECT CASE
      WHEN (SELECT policy FROM sled WHERE id = ${sledId}) = 'expunged' THEN 'expunged'
      WHEN NOT EXISTS (SELECT 1 FROM sled_certificate WHERE serial = ${serial} AND sled_id = ${sledId} AND time_revoked IS NULL) THEN 'revoked'
    END AS refusal`);
  return refusalRow.parse(result.rows[0]).refusal;
}

/** The certificates that haven't expired and are good no more: revoked, or of a sled that was expunged. */
export async function readRevokedSerials(db: Queryable): Promise<string[]> {
  const result = await db.execute(sql`/* sled-identity */
    SELECT serial FROM sled_certificate JOIN sled ON sled.id = sled_id
    WHERE time_expires > now() AND (time_revoked IS NOT NULL OR policy = 'expunged') ORDER BY serial`);
  return result.rows.map((row) => String(row.serial));
}

const directoryRow = z.object({ id: z.string(), address: z.string(), identified: z.boolean() });
export type DirectoryEntry = z.infer<typeof directoryRow>;

/** Which sled is at which address, and whether its agent speaks by certificates. */
export async function readSledDirectory(db: Queryable): Promise<DirectoryEntry[]> {
  const result = await db.execute(
    sql`/* sled-identity */ SELECT id, address, identified FROM sled WHERE policy <> 'expunged'`,
  );
  return result.rows.map((row) => directoryRow.parse(row));
}

/** The address (`ip:port`) of a sled; `null` when there is no such sled. */
export async function readSledAddress(db: Queryable, sledId: string): Promise<string | null> {
  const result = await db.execute(sql`/* sled-identity */ SELECT address FROM sled WHERE id = ${sledId}`);
  const row = result.rows[0];
  return row === undefined ? null : String(row.address);
}

/**
 * The sled that a migration goes to, for the sled of its source; `null` when there is no such migration out of this VMM on
 * that sled, or it is over.
 */
export async function readMigrationDestination(
  db: Queryable,
  asked: { readonly migrationId: string; readonly sourceVmmId: string; readonly sourceSledId: string },
): Promise<string | null> {
  const result = await db.execute(sql`/* sled-identity */
    SELECT target.sled_id FROM migration JOIN vmm source ON source.id = source_vmm_id JOIN vmm target ON target.id = target_vmm_id
    WHERE migration.id = ${asked.migrationId} AND source.id = ${asked.sourceVmmId} AND source.sled_id = ${asked.sourceSledId}
      AND source_state NOT IN ('completed', 'failed') AND target_state NOT IN ('completed', 'failed')
      AND target.time_deleted IS NULL AND target.unwinding_since IS NULL`);
  const row = result.rows[0];
  return row?.sled_id == null ? null : String(row.sled_id);
}
