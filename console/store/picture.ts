/** What of the fleet is drawn, and where: grouped by sled, filtered, the most interesting first. Pure. */
import { EXTERNAL_STATES, type ExternalState } from '../../model/states.ts';
import type { Instance, Sled } from '../api/types.ts';

/** What one looks for; an empty text and `null` ask for nothing. */
export interface Filter {
  /** A part of the name or of the id. */
  readonly text: string;
  readonly projectId: string | null;
  readonly state: ExternalState | null;
}
export const NO_FILTER: Filter = { text: '', projectId: null, state: null };

/** How many instances show each state. */
export type StateCounts = Readonly<Partial<Record<ExternalState, number>>>;

/** One column of the fleet: a sled, or, with `id` null, what is on none. */
export interface Column {
  readonly id: string | null;
  /** `null` where there is none, or one may not see sleds. */
  readonly sled: Sled | null;
  readonly name: string;
  /** What is there, and passes the filter. */
  readonly instances: readonly Instance[];
  /** What is on its way there, and passes the filter. */
  readonly arriving: readonly Instance[];
  readonly counts: StateCounts;
}

/** The whole picture. */
export interface Picture {
  readonly columns: readonly Column[];
  /** How many pass the filter, by state. */
  readonly counts: StateCounts;
  /** How many instances pass the filter, and how many there are. */
  readonly shown: number;
  readonly total: number;
}

/** Movement and trouble first: what a person looks for. */
const INTEREST: Readonly<Record<ExternalState, number>> = {
  migrating: 0,
  failed: 1,
  starting: 2,
  stopping: 2,
  rebooting: 2,
  creating: 2,
  running: 3,
  stopped: 4,
};

/** Orders names: `sled-2` before `sled-10`. */
export const byName = new Intl.Collator('en', { numeric: true }).compare;

/** Whether an instance passes a filter. */
export function matches(instance: Instance, { text, projectId, state }: Filter): boolean {
  if (projectId !== null && instance.project_id !== projectId) return false;
  if (state !== null && instance.run_state !== state) return false;
  const wanted = text.trim().toLowerCase();
  return wanted === '' || instance.name.toLowerCase().includes(wanted) || instance.id.startsWith(wanted);
}

/** Orders instances: by what happens to them, then by name. */
export function byInterest(one: Instance, other: Instance): number {
  return INTEREST[one.run_state] - INTEREST[other.run_state] || byName(one.name, other.name);
}

/** Counts instances by the state that they show. */
export function countStates(instances: Iterable<Instance>): StateCounts {
  const counts: Partial<Record<ExternalState, number>> = {};
  for (const { run_state } of instances) counts[run_state] = (counts[run_state] ?? 0) + 1;
  return counts;
}

/** The states that are there, in the order in which they are counted for people. */
export function presentStates(counts: StateCounts): [ExternalState, number][] {
  return EXTERNAL_STATES.flatMap((state): [ExternalState, number][] => {
    const count = counts[state] ?? 0;
    return count === 0 ? [] : [[state, count]];
  });
}

/** Draws the fleet. Sleds that are expunged and hold nothing are left out; what is on no sled is the last column, where there is any. */
export function drawPicture(sleds: Iterable<Sled>, instances: ReadonlyMap<string, Instance>, filter: Filter): Picture {
  const here = new Map<string | null, Instance[]>();
  const coming = new Map<string, Instance[]>();
  const shown: Instance[] = [];
  for (const instance of instances.values()) {
    if (!matches(instance, filter)) continue;
    shown.push(instance);
    push(here, instance.sled_id, instance);
    if (instance.migration_target_sled_id !== null) push(coming, instance.migration_target_sled_id, instance);
  }
  const column = (id: string | null, sled: Sled | null, name: string): Column => {
    const found = here.get(id) ?? [];
    const arriving = id === null ? [] : (coming.get(id) ?? []);
    return { id, sled, name, instances: found.sort(byInterest), arriving, counts: countStates(found) };
  };
  const known = [...sleds].sort((one, other) => byName(one.name, other.name));
  const seen = new Set(known.map(({ id }) => id));
  const columns = known
    .filter((sled) => sled.state === 'active' || here.has(sled.id) || coming.has(sled.id))
    .map((sled) => column(sled.id, sled, sled.name));
  // Who is on one project sees where instances are, and not what the sleds are called.
  const unnamed = [...here.keys(), ...coming.keys()].filter((id): id is string => id !== null && !seen.has(id));
  for (const id of [...new Set(unnamed)].sort()) columns.push(column(id, null, `sled ${id.slice(0, 8)}`));
  if (here.has(null)) columns.push(column(null, null, 'on no sled'));
  return { columns, counts: countStates(shown), shown: shown.length, total: instances.size };
}

function push<Key>(lists: Map<Key, Instance[]>, key: Key, instance: Instance): void {
  const list = lists.get(key);
  if (list === undefined) lists.set(key, [instance]);
  else list.push(instance);
}

/** How many tiles each column has room for: fewer the more columns there are, never more than the fullest one needs. */
export function tilesPerColumn(columns: readonly Column[]): number {
  const most = Math.max(1, ...columns.map(({ instances, arriving }) => instances.length + arriving.length));
  const room = columns.length <= 8 ? 16 : columns.length <= 40 ? 8 : 4;
  return Math.min(most, room);
}
