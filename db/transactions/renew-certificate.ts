import { sql } from 'drizzle-orm';
import type { Database } from '../connect.ts';

/** Nothing was written, so nothing of it is on record. */
class NotGood extends Error {}

/**
 * Writes down a sled's new certificate, as long as the one that it asked with is good. The former stays good until it
 * expires, since the answer may get lost; what has expired is forgotten. Returns whether it was written.
 */
export async function renewCertificate(
  db: Database,
  holder: { readonly sledId: string; readonly serial: string },
  certificate: { readonly serial: string; readonly notAfter: Date },
): Promise<boolean> {
  try {
    await db.transaction(async (transaction) => {
      const result = await transaction.execute(sql`/* renew-certificate */
    WITH good AS (
      SELECT sled.id FROM sled JOIN sled_certificate ON sled_certificate.sled_id = sled.id
      WHERE sled.id = ${holder.sledId} AND sled.policy <> 'expunged' AND serial = ${holder.serial} AND time_revoked IS NULL
      FOR UPDATE OF sled_certificate
    ), expired AS (
      DELETE FROM sled_certificate USING good WHERE sled_certificate.sled_id = good.id AND time_expires < now() - interval '1 day'
    )
    INSERT INTO sled_certificate (serial, sled_id, time_expires)
    SELECT ${certificate.serial}, good.id, ${certificate.notAfter.toISOString()}::timestamptz FROM good`);
      if (result.rowCount !== 1) throw new NotGood();
    });
    return true;
  } catch (error) {
    if (error instanceof NotGood) return false;
    throw error;
  }
}
