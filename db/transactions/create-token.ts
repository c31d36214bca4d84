import { randomUUID } from 'node:crypto';
import { sql } from 'drizzle-orm';
import type { AccessRole } from '../../model/access.ts';
import { Refusal } from '../../model/refusal.ts';
import { hashTokenSecret, makeTokenSecret } from '../access-token-secret.ts';
import { databaseRecord } from '../audit-record.ts';
import type { Database } from '../connect.ts';
import { refuseTakenName } from '../errors.ts';
import { type AccessTokenRow, accessToken } from '../schema.ts';
import { recordingDatabase } from './write-audit.ts';

/**
 * Makes a token and returns it with its secret, which can't be read again. `expiresInSeconds` is counted on the database's
 * clock; `null` never expires. Throws a {@link Refusal} for a name that another token has.
 */
export async function createToken(
  db: Database,
  values: { name: string; role: AccessRole; projectId: string | null; expiresInSeconds: number | null },
): Promise<AccessTokenRow & { secret: string }> {
  const secret = makeTokenSecret();
  return refuseTakenName('access_token_name', 'token', values.name, () =>
    db.transaction(async (transaction) => {
      const [row] = await transaction
        .insert(accessToken)
        .values({
          id: randomUUID(),
          name: values.name,
          role: values.role,
          projectId: values.projectId,
          secretHash: hashTokenSecret(secret),
          timeExpires:
            values.expiresInSeconds === null ? null : sql`now() + ${values.expiresInSeconds} * interval '1 second'`,
        })
        .returning();
      if (row === undefined) throw new Error('the token was not returned');
      return { ...row, secret };
    }),
  );
}

/** Makes a token as {@link createToken} does, past the API; `how` is on the audit log: in what way. */
export async function createTokenInDatabase(
  db: Database,
  values: Parameters<typeof createToken>[1],
  how: string,
): Promise<AccessTokenRow & { secret: string }> {
  const recording = recordingDatabase(
    db,
    (made) =>
      databaseRecord({
        operation: 'access_token_create',
        how,
        subjectKind: 'token',
        subject: (made as AccessTokenRow).id,
        projectId: values.projectId,
      }),
    () => {},
  );
  return createToken(recording, values);
}
