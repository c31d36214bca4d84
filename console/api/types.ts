/** What the API answers, as its document has it. */
import type { operations } from '../api-schema.ts';

type Answer<Name extends keyof operations> = operations[Name]['responses'] extends {
  200: { content: { 'application/json': infer Body } };
}
  ? Body
  : never;

/** An item of a list that comes in pages. */
type ItemOf<Page> = Page extends { items: readonly (infer Item)[] } ? Item : never;

export type Me = Answer<'current_user_view'>;
export type Project = Answer<'project_view'>;
/** Without the two fields that are always null. */
export type Instance = Omit<Answer<'instance_view'>, 'boot_disk_id' | 'cpu_platform'>;
export type Sled = Answer<'sled_view'>;
export type Drain = Answer<'sled_drain_view'>;
export type Migration = Answer<'instance_migration_view'>;
export type History = Answer<'instance_history'>;
export type AuditEntry = ItemOf<Answer<'audit_log_list'>>;
export type Group = Answer<'affinity_group_view'>;
export type Operation = Answer<'operation_view'>;
export type Activity = Answer<'system_activity_view'>;
