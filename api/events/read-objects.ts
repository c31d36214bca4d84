/** The objects that changed, as their events carry them. */

import { readOperations } from '../../db/queries/list-operations.ts';
import { listSleds } from '../../db/queries/list-sleds.ts';
import { readAuditRecords, readMigrations, readProjects, readSleds } from '../../db/queries/read-changed-objects.ts';
import type { Change } from '../../db/queries/read-changes.ts';
import { readInstances } from '../../db/queries/read-instance.ts';
import type { CountedSled } from '../../db/queries/read-sled.ts';
import { EVENT_KINDS, type EventKind } from '../../wire/operator-api/events.ts';
import type { SledView } from '../../wire/operator-api/sleds.ts';
import type { ApiContext } from '../context.ts';
import { viewAuditEntry } from '../views/audit-entry.ts';
import { viewInstance } from '../views/instance.ts';
import { viewMigrationChange } from '../views/migration-change.ts';
import { viewListedOperation } from '../views/operation.ts';
import { viewProject } from '../views/project.ts';
import { viewSled } from '../views/sled.ts';

/** An object of an event, and who it is of. */
export interface ChangedObject {
  readonly kind: EventKind;
  readonly id: string;
  readonly projectId: string | null;
  /** The instance that it is about; `null`: none. */
  readonly instanceId: string | null;
  /** `null`: it is gone. */
  readonly object: object | null;
}

/** What is read of the database, and how links are made. */
export type ObjectSource = Pick<ApiContext, 'db' | 'webUiLink'>;

/** How many objects one statement reads. */
const BATCH = 500;
/** More sleds than anybody has; those beyond are not looked at again by themselves. */
const MOST_SLEDS = 5_000;

interface Found {
  readonly object: object;
  readonly instanceId: string | null;
}

/** Reads the objects of changes as they are now, in the order of the changes. Throws PostgreSQL's errors. */
export async function readObjects(source: ObjectSource, changes: readonly Change[]): Promise<ChangedObject[]> {
  const found = new Map<string, Found>();
  for (const kind of EVENT_KINDS) {
    const ids = changes.flatMap((change) => (change.kind === kind ? [change.id] : []));
    for (let at = 0; at < ids.length; at += BATCH)
      for (const [id, object] of await READERS[kind](source, ids.slice(at, at + BATCH)))
        found.set(`${kind} ${id}`, object);
  }
  return changes.flatMap(({ kind, id, project_id: projectId }) => {
    if (kind === 'token') return [];
    const { object = null, instanceId = null } = found.get(`${kind} ${id}`) ?? {};
    return [{ kind, id, projectId, instanceId: kind === 'instance' ? id : instanceId, object }];
  });
}

type Reader = (source: ObjectSource, ids: readonly string[]) => Promise<Iterable<readonly [string, Found]>>;

const READERS: Readonly<Record<EventKind, Reader>> = {
  instance: async ({ db }, ids) =>
    (await readInstances(db, ids)).flatMap((record) => {
      const { id, timeDeleted } = record.instance;
      return timeDeleted === null ? [[id, { object: viewInstance(record), instanceId: id }] as const] : [];
    }),
  operation: async ({ db, webUiLink }, ids) =>
    (await readOperations(db, ids)).map((listed) => {
      const { id, workflowId, instanceId } = listed.operation;
      return [id, { object: viewListedOperation(listed, webUiLink(workflowId, id)), instanceId }] as const;
    }),
  migration: async ({ db }, ids) =>
    (await readMigrations(db, ids)).map((placed) => {
      const { id, instanceId } = placed.migration;
      return [id, { object: viewMigrationChange(placed), instanceId }] as const;
    }),
  project: async ({ db }, ids) =>
    (await readProjects(db, ids)).flatMap((row) =>
      row.timeDeleted === null ? [[row.id, { object: viewProject(row), instanceId: null }] as const] : [],
    ),
  sled: async ({ db }, ids) => inService(await readSleds(db, ids)),
  audit: async ({ db }, ids) =>
    (await readAuditRecords(db, ids)).map(
      (row) => [row.id, { object: viewAuditEntry(row), instanceId: null }] as const,
    ),
};

function inService(sleds: readonly CountedSled[]): (readonly [string, Found])[] {
  return sleds.flatMap((counted) =>
    counted.sled.policy === 'expunged'
      ? []
      : [[counted.sled.id, { object: viewSled(counted), instanceId: null }] as const],
  );
}

/**
 * Every sled, to be compared with what was sent of it: that its lease lapses, or its certificates, is written nowhere as it
 * happens.
 */
export async function readEverySled({ db }: ObjectSource): Promise<ChangedObject[]> {
  const sleds = inService(await listSleds(db, { after: null, limit: MOST_SLEDS }));
  return sleds.map(([id, { object }]) => ({ kind: 'sled', id, projectId: null, instanceId: null, object }));
}

/** What of a sled is news, as one text: not when it was heard of last. */
export function newsOf(sled: object | null): string {
  if (sled === null) return '';
  const { time_modified: _, last_answered: __, lease, ...rest } = sled as SledView;
  return JSON.stringify({ ...rest, lease: lease && { seconds: lease.seconds, standing: lease.standing } });
}
