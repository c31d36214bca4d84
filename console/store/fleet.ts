/**
 * What the console knows: the newest state of each object, as listed and as events bring it. Objects are kept in maps, and who
 * shows them is told at most once a frame, so that a thousand events a second are one picture.
 */
import { computed, signal } from '@preact/signals';
import type { RawEvent } from '../../model/event-parser.ts';
import { api, done, messageOf } from '../api/client.ts';
import { followEvents, type StreamState } from '../api/event-stream.ts';
import { may, signOut } from '../api/session.ts';
import type { AuditEntry, Instance, Operation, Project, Sled } from '../api/types.ts';
import { forgetNotes, noteMigration } from './notes.ts';
import { byName, drawPicture, type Filter, NO_FILTER } from './picture.ts';

/** How many are asked for at a time. */
const PAGE = 2_000;
/** How many finished operations are kept. */
const KEPT_OPERATIONS = 500;
const KEPT_AUDIT_ENTRIES = 1_000;
const HOUR_MS = 3_600_000;

const projects = new Map<string, Project>();
const sleds = new Map<string, Sled>();
const instances = new Map<string, Instance>();
const operations = new Map<string, Operation>();
const auditEntries = new Map<string, AuditEntry>();

/** Rises with each change; who reads it is drawn again. */
const version = signal(0);
/** How the stream of changes is. */
export const stream = signal<StreamState>({ state: 'connecting' });
/** Whether the lists have been read. */
export const isLoaded = signal(false);
/** Why the lists could not be read; `null` when they were. */
export const loadProblem = signal<string | null>(null);
/** What one looks for in the fleet. */
export const filter = signal<Filter>(NO_FILTER);

let scheduled = false;
function changed(): void {
  if (scheduled) return;
  scheduled = true;
  // A frame where the page is seen; a hidden one has no frames.
  const next =
    document.visibilityState === 'visible' ? requestAnimationFrame : (run: () => void) => setTimeout(run, 250);
  next(() => {
    scheduled = false;
    version.value += 1;
  });
}

/** The picture of the fleet under the filter. */
export const picture = computed(() => {
  version.value;
  return drawPicture(sleds.values(), instances, filter.value);
});
/** Every sled, by name. */
export const sledList = computed(() => {
  version.value;
  return [...sleds.values()].sort((one, other) => byName(one.name, other.name));
});
/** Every project, by name. */
export const projectList = computed(() => {
  version.value;
  return [...projects.values()].sort((one, other) => one.name.localeCompare(other.name));
});
/** What is under way, the oldest first, and what ended, the newest first. */
export const operationLists = computed(() => {
  version.value;
  const all = [...operations.values()];
  return {
    running: all.filter(({ state }) => state === 'running').sort((a, b) => (a.time_started < b.time_started ? -1 : 1)),
    failed: all
      .filter(({ outcome }) => outcome === 'failed')
      .sort((a, b) => ((a.time_ended ?? '') < (b.time_ended ?? '') ? 1 : -1)),
  };
});
/** The audit log's entries of the last hour, as far as they are kept, the newest first. */
export const lateAuditEntries = computed(() => {
  version.value;
  return [...auditEntries.values()].sort((a, b) => (a.time_completed < b.time_completed ? 1 : -1));
});
/** Who began each operation, by its id: as the audit log has it, for those who may read that. */
export const beginners = computed(() => {
  version.value;
  const names = new Map<string, string>();
  for (const { saga_operation_id, actor_name, actor_kind } of auditEntries.values())
    if (saga_operation_id !== null && !names.has(saga_operation_id))
      names.set(saga_operation_id, actor_name === '' ? actor_kind : actor_name);
  return names;
});
/** The operation under way of each instance, and the newest that failed since it last succeeded. */
const ofInstances = computed(() => {
  version.value;
  const running = new Map<string, Operation>();
  const newest = new Map<string, Operation>();
  for (const operation of operations.values()) {
    if (operation.state === 'running') running.set(operation.instance_id, operation);
    else if ((newest.get(operation.instance_id)?.time_ended ?? '') < (operation.time_ended ?? ''))
      newest.set(operation.instance_id, operation);
  }
  return { running, newest };
});

/** An instance by its id; `undefined` where it is not there, or may not be seen. */
export function instanceOf(id: string): Instance | undefined {
  version.value;
  return instances.get(id);
}
/** A sled by its id. */
export function sledOf(id: string | null): Sled | undefined {
  version.value;
  return id === null ? undefined : sleds.get(id);
}
/** What a sled is called; by its id where that may not be seen. */
export function sledName(id: string | null): string {
  return id === null ? 'no sled' : (sledOf(id)?.name ?? `sled ${id.slice(0, 8)}`);
}
/** What a project is called. */
export function projectName(id: string): string {
  version.value;
  return projects.get(id)?.name ?? id.slice(0, 8);
}
/** The operation that is under way for an instance. */
export function runningOperation(instanceId: string): Operation | undefined {
  return ofInstances.value.running.get(instanceId);
}
/** The operation that failed last for an instance, where none has ended well since. */
export function failedOperation(instanceId: string): Operation | undefined {
  const last = ofInstances.value.newest.get(instanceId);
  return last?.outcome === 'failed' && !ofInstances.value.running.has(instanceId) ? last : undefined;
}

/** Takes in what an answer of the API has just said of an instance, where no event has said more while the answer was on its way. */
export function learnInstance(instance: Instance): void {
  const known = instances.get(instance.id);
  if (known === undefined || Date.parse(known.time_run_state_updated) > Date.parse(instance.time_run_state_updated))
    return;
  instances.set(instance.id, instance);
  changed();
}

/** Called with the id of each instance about which something happened. */
type Listener = (instanceId: string) => void;
const listeners = new Set<Listener>();
/** Has a function called with the id of each instance about which something happens; returns what ends that. */
export function onInstanceEvent(listener: Listener): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

interface ObjectEvent {
  readonly id: string;
  readonly object: unknown;
}

const KINDS: Readonly<Record<string, Map<string, unknown>>> = {
  project: projects as Map<string, unknown>,
  sled: sleds as Map<string, unknown>,
  instance: instances as Map<string, unknown>,
  operation: operations as Map<string, unknown>,
  audit: auditEntries as Map<string, unknown>,
};

function applyEvent({ event, data }: RawEvent): void {
  const { id, object } = JSON.parse(data) as ObjectEvent;
  const kept = KINDS[event];
  if (object === null) kept?.delete(id);
  else kept?.set(id, object);
  const about = event === 'instance' ? id : ((object as { instance_id?: unknown } | null)?.instance_id ?? null);
  if (typeof about === 'string') for (const listener of listeners) listener(about);
  if (event === 'migration') noteMigration(object);
}

/** Old ones go: those of an hour, as they are shown. */
function forgetOld(): void {
  const ended = [...operations.values()].filter(({ state }) => state === 'done');
  ended.sort((a, b) => ((a.time_ended ?? '') < (b.time_ended ?? '') ? -1 : 1));
  for (const { id } of ended.slice(0, Math.max(0, ended.length - KEPT_OPERATIONS))) operations.delete(id);
  for (const id of [...auditEntries.keys()].slice(0, Math.max(0, auditEntries.size - KEPT_AUDIT_ENTRIES)))
    auditEntries.delete(id);
}

/** Reads a list to its end. Throws what a page throws. */
async function readAll<Item>(
  page: (query: { limit: number; page_token?: string }) => Promise<{ items: Item[]; next_page: string | null }>,
): Promise<Item[]> {
  const items: Item[] = [];
  let next: string | null = null;
  do {
    const query: { limit: number; page_token?: string } =
      next === null ? { limit: PAGE } : { limit: PAGE, page_token: next };
    const read = await page(query);
    items.push(...read.items);
    next = read.next_page;
  } while (next !== null);
  return items;
}

/** Lists all that may be seen; what it resolves to puts that in the place of what was known. Throws what a list throws. */
async function listAll(): Promise<() => void> {
  const start_time = new Date(Date.now() - HOUR_MS).toISOString();
  const [listedProjects, listedSleds, listedInstances, running, failed, audit] = await Promise.all([
    readAll((query) => done(api.GET('/v1/projects', { params: { query } }))),
    may('sled_list') ? readAll((query) => done(api.GET('/v1/system/hardware/sleds', { params: { query } }))) : [],
    readAll((query) => done(api.GET('/v1/instances', { params: { query } }))),
    readAll((query) => done(api.GET('/v1/operations', { params: { query: { ...query, state: 'running' } } }))),
    done(
      api.GET('/v1/operations', { params: { query: { outcome: 'failed', start_time, limit: KEPT_OPERATIONS } } }),
    ).then(({ items }) => items),
    may('audit_log_list')
      ? done(
          api.GET('/v1/system/audit-log', {
            params: { query: { start_time, limit: KEPT_AUDIT_ENTRIES, sort_by: 'time_and_id_descending' } },
          }),
        ).then(({ items }) => items.reverse())
      : [],
  ]);
  return () => {
    fill(projects, listedProjects);
    fill(sleds, listedSleds);
    fill(instances, listedInstances);
    fill(operations, [...running, ...failed]);
    fill(auditEntries, audit);
  };
}

function fill<Item extends { id: string }>(kept: Map<string, Item>, listed: readonly Item[]): void {
  kept.clear();
  for (const item of listed) kept.set(item.id, item);
}

/** Forgets all that was seen: who looks next, in the same tab, may see less. */
export function forgetFleet(): void {
  for (const kept of [projects, sleds, instances, operations, auditEntries]) kept.clear();
  isLoaded.value = false;
  loadProblem.value = null;
  filter.value = NO_FILTER;
  forgetNotes();
  changed();
}

/**
 * Follows the fleet until the signal is aborted: lists it when the stream says that changes may be missing, and applies what comes.
 * What comes while it is listed is applied after, so that no change is lost to an older list.
 */
export async function followFleet(signal: AbortSignal): Promise<void> {
  let waiting: RawEvent[] | null = null;
  const apply = (events: readonly RawEvent[]) => {
    for (const event of events) applyEvent(event);
    forgetOld();
    changed();
  };
  const list = async () => {
    const mine: RawEvent[] = [];
    waiting = mine;
    let replaceAll: () => void;
    try {
      replaceAll = await listAll();
    } catch (error) {
      if (signal.aborted) return;
      loadProblem.value = messageOf(error);
      setTimeout(() => waiting === mine && !signal.aborted && void list(), 2_000);
      return;
    }
    if (waiting !== mine || signal.aborted) return;
    loadProblem.value = null;
    replaceAll();
    waiting = null;
    apply(mine);
    isLoaded.value = true;
  };
  await followEvents(
    {
      onState: (state) => {
        stream.value = state;
      },
      onEvents: (events) => {
        for (const event of events) {
          if (event.event === 'reset') void list();
          else if (event.event === 'end') endBy(event);
          else if (waiting !== null) waiting.push(event);
          else applyEvent(event);
        }
        if (waiting === null) {
          forgetOld();
          changed();
        }
      },
    },
    signal,
  );
}

function endBy({ data }: RawEvent): void {
  const { reason } = JSON.parse(data) as { reason: string };
  if (reason === 'token_revoked') signOut('the token was revoked');
  if (reason === 'token_expired') signOut('the token has expired');
}
