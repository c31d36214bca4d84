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
      WHEN NOT EXISTS (SELECT 1 FROM sled_certificate WHERE serial = ${serial} AND sled_id = ${sledId} AND time_revoked IS NULL)
        THEN CASE WHEN (SELECT expunging_since FROM sled WHERE id = ${sledId}) IS NULL THEN 'revoked' ELSE 'expunged' END
    END AS refusal`);
  return refusalRow.parse(result.rows[0]).refusal;
}
