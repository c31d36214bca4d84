import { viewToken } from '../../api/views/access-token.ts';
import { openDatabase } from '../../db/connect.ts';
import { migrateDatabase } from '../../db/migrate.ts';
import { requireProject } from '../../db/queries/require-project.ts';
import { createTokenInDatabase } from '../../db/transactions/create-token.ts';
import type { AccessRole } from '../../model/access.ts';
import { setting } from '../../platform/settings.ts';
import type { AccessTokenCreated } from '../../wire/operator-api/access-tokens.ts';
import { isUuid, resourceName } from '../../wire/operator-api/names.ts';
import { explained } from '../processes.ts';

/**
 * Makes a token in the database that `DATABASE_URL` names, past the API: for an installation that has no token yet. It is
 * audited like any other. Throws for a name that is taken or not valid, and what PostgreSQL reports.
 */
export async function createFirstToken(wanted: {
  name: string;
  role: AccessRole;
  project: string | undefined;
  expires_in_seconds: number;
}): Promise<AccessTokenCreated> {
  const databaseUrl = setting('DATABASE_URL');
  if (databaseUrl === undefined)
    throw new Error('DATABASE_URL is not set: name the PostgreSQL of the installation, or leave --in-database out');
  const name = resourceName.safeParse(wanted.name);
  if (!name.success) throw new Error(`name: ${name.error.issues.map((issue) => issue.message).join('; ')}`);
  await migrateDatabase(databaseUrl);
  const database = openDatabase(databaseUrl, { maxConnections: 1, applicationName: 'mooring-token' });
  return explained({ databaseUrl }, async () => {
    try {
      const { project } = wanted;
      const projectId = project === undefined ? null : (await requireProject(database.db, project, isUuid(project))).id;
      const row = await createTokenInDatabase(
        database.db,
        { name: name.data, role: wanted.role, projectId, expiresInSeconds: wanted.expires_in_seconds },
        'mooring token create --in-database',
      );
      return { ...viewToken(row), token: row.secret };
    } finally {
      await database.close();
    }
  });
}
