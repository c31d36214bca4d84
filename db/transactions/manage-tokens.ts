/** Access tokens as records: made and revoked. */
import { randomUUID } from 'node:crypto';
import { and, eq, isNull, sql } from 'drizzle-orm';
import type { AccessRole } from '../../model/access.ts';
import { Refusal } from '../../model/refusal.ts';
import { hashTokenSecret, makeTokenSecret } from '../access-token-secret.ts';
import type { Database } from '../connect.ts';
import { violatedConstraint } from '../errors.ts';
import type { AccessTokenRow } from '../queries/access-tokens.ts';
import { accessToken } from '../schema.ts';
import { databaseRecord, recordingDatabase } from './audit.ts';

/**
 * Makes a token and returns it with its secret, which can't be read again. `expiresInSeconds` is counted on the database's
 * clock; `null` never expires. Throws a {@link Refusal} for a name that another token has.
 */
export async function createToken(
  db: Database,
  values: { name: string; role: AccessRole; projectId: string | null; expiresInSeconds: number | null },
): Promise<AccessTokenRow & { secret: string }> {
  const secret = makeTokenSecret();
  try {
    return await db.transaction(async (transaction) => {
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
    });
  } catch (error) {
    if (violatedConstraint(error) === 'access_token_name') throw Refusal.nameTaken('token', values.name);
    throw error;
  }
}

/** Makes a token as {@link createToken} does, past the API; `how` says on the audit log in what way. */
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

/** Revokes a token: the next request that carries it is refused. Throws a {@link Refusal} when it is revoked already. */
export async function revokeToken(db: Database, token: Pick<AccessTokenRow, 'id' | 'name'>): Promise<void> {
  await db.transaction(async (transaction) => {
    const revoked = await transaction
      .update(accessToken)
      .set({ timeRevoked: sql`now()` })
      .where(and(eq(accessToken.id, token.id), isNull(accessToken.timeRevoked)))
      .returning({ id: accessToken.id });
    if (revoked.length === 0) throw Refusal.notFound('token', token.name);
  });
}
