import { desc, eq } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';
import { sledCertificate } from '../schema.ts';

export type CertificateRow = typeof sledCertificate.$inferSelect;

/** Lists every certificate that a sled was ever issued, the newest first. */
export async function listCertificates(db: Queryable, sledId: string): Promise<CertificateRow[]> {
  return db
    .select()
    .from(sledCertificate)
    .where(eq(sledCertificate.sledId, sledId))
    .orderBy(desc(sledCertificate.timeIssued));
}
