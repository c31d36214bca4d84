/** What somebody may do, by the same table by which the API decides. Pure. */
import { judgeAccess } from '../../model/access.ts';
import { PERMISSIONS, type Permission } from '../../model/permissions.ts';
import type { operations } from '../api-schema.ts';
import type { Me } from './types.ts';

/** What the API's document calls an operation. */
export type OperationName = keyof operations;

const BY_OPERATION: ReadonlyMap<string, Permission> = new Map(
  Object.values(PERMISSIONS).map((permission) => [permission.operation, permission]),
);

/** Whether somebody (`null`: nobody knows who) may do what an operation of the API does, to what is of a project, or the fleet's. */
export function mayAs(
  who: Pick<Me, 'kind' | 'role' | 'project_id'> | null,
  operation: OperationName,
  projectId?: string,
): boolean {
  const permission = BY_OPERATION.get(operation);
  if (permission === undefined || who === null) return false;
  if (who.kind === 'local') return permission.needs !== 'sled';
  const { needs } = permission;
  if (needs === 'anyone' || needs === 'known') return true;
  if (needs === 'sled') return false;
  if (needs === 'sled or viewer') return who.project_id === null;
  const identity = { role: who.role, projectId: who.project_id };
  return judgeAccess(identity, needs, projectId === undefined ? [] : [projectId]) === 'allowed';
}
