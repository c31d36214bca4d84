import { and, eq } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';
import { affinityGroupMember } from '../schema.ts';

/** Whether an instance is a member of a group. */
export async function isAffinityMember(db: Queryable, groupId: string, instanceId: string): Promise<boolean> {
  const rows = await db
    .select({ id: affinityGroupMember.instanceId })
    .from(affinityGroupMember)
    .where(and(eq(affinityGroupMember.groupId, groupId), eq(affinityGroupMember.instanceId, instanceId)));
  return rows.length > 0;
}
