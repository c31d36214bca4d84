import { randomUUID } from 'node:crypto';
import { Refusal } from '../../model/refusal.ts';
import type { Database } from '../connect.ts';
import { refuseTakenName } from '../errors.ts';
import { project } from '../schema.ts';

/** Creates a project without a quota. Throws a {@link Refusal} for a name that is taken. */
export async function createProject(db: Database, values: { name: string; description: string }) {
  return refuseTakenName('project_name', 'project', values.name, () =>
    db.transaction(async (transaction) => {
      const [row] = await transaction
        .insert(project)
        .values({ id: randomUUID(), ...values })
        .returning();
      if (row === undefined) throw new Error('the project was not returned');
      return row;
    }),
  );
}
