/**
 * What the callers saw: every API call with its answer, and what must be true of them whatever happened in between.
 * Pure, so that the check itself can be tested.
 */
import type { ExternalState } from '../../model/states.ts';

/** A call's kind: the operations of the plan, and the reading of what came of them. */
export type CallKind = 'create' | 'start' | 'stop' | 'force-stop' | 'reboot' | 'migrate' | 'delete' | 'resize' | 'read';

export interface HistoryEntry {
  readonly kind: CallKind;
  /** `null` for a create that made nothing, as far as its caller knows. */
  readonly instanceId: string | null;
  /** When it was sent and answered (or given up), in milliseconds since the soak began. */
  readonly sentMs: number;
  readonly endedMs: number;
  /** `null`: no answer, so that it may or may not have happened. */
  readonly status: number | null;
  readonly errorCode?: string | undefined;
  readonly message?: string | undefined;
  /** The operation to follow, of a 202. */
  readonly operationId?: string | undefined;
  /** Resize: what was asked for. */
  readonly size?: { readonly ncpus: number; readonly memoryBytes: number } | undefined;
  /** Create: whether the instance is started again by itself when it fails. */
  readonly restarts?: boolean | undefined;
}

/** What an operation came to in the end; `null`: it can't be found. */
export interface FinalOperation {
  readonly operationId: string;
  readonly instanceId: string;
  readonly state: 'running' | 'done' | null;
  readonly outcome: 'succeeded' | 'failed' | null;
  /** When it ended, in milliseconds since the soak began; `null`: it didn't. */
  readonly endedMs: number | null;
}

/** An instance as it shows when everything is at rest; `null`: 404. */
export interface FinalInstance {
  readonly instanceId: string;
  readonly view: { readonly runState: ExternalState; readonly ncpus: number; readonly memoryBytes: number } | null;
}

/** Something that befell a guest without its user's asking. */
export interface GuestEvent {
  readonly instanceId: string;
  readonly atMs: number;
}

export interface History {
  readonly calls: readonly HistoryEntry[];
  readonly operations: readonly FinalOperation[];
  readonly instances: readonly FinalInstance[];
  /** Guests that powered themselves off, crashed, or were on a sled that died: they need not run in the end. */
  readonly disturbed: readonly GuestEvent[];
  /** Those of them that powered themselves off. */
  readonly halted: readonly GuestEvent[];
}

export interface HistoryViolation {
  readonly rule: string;
  readonly instanceId: string | null;
  readonly detail: string;
}

/** The statuses that a call of each kind may have on a system whose parts come and go. */
const LEGAL_STATUSES: Readonly<Record<CallKind, readonly number[]>> = {
  create: [201, 400, 503],
  start: [202, 404, 409, 503, 507],
  stop: [202, 404, 409, 503],
  'force-stop': [202, 404, 409, 503],
  reboot: [202, 400, 404, 409, 503],
  migrate: [202, 400, 404, 409, 503, 507],
  delete: [204, 400, 404, 409, 503],
  resize: [200, 404, 409, 503],
  read: [200, 404, 503],
};

/** Checks a history. Returns what is wrong with it, in the order in which it was found. */
export function checkHistory(history: History): HistoryViolation[] {
  const violations: HistoryViolation[] = [];
  const report = (rule: string, instanceId: string | null, detail: string) =>
    violations.push({ rule, instanceId, detail });

  for (const call of history.calls) {
    if (call.status === null || LEGAL_STATUSES[call.kind].includes(call.status)) continue;
    report('a call has one of its statuses', call.instanceId, `${describe(call)}: ${call.message ?? ''}`);
  }

  for (const operation of history.operations) {
    if (operation.state === 'done') continue;
    const what = operation.state === null ? 'can’t be found' : 'never ended';
    report('each operation that a 202 names ends', operation.instanceId, `operation ${operation.operationId} ${what}`);
  }

  const calls = byInstance(history.calls);
  const operations = byInstance(history.operations);
  const disturbed = byInstance(history.disturbed);
  const halted = byInstance(history.halted);
  for (const { instanceId, view } of history.instances) {
    const own = calls.get(instanceId) ?? [];
    checkExistence(own, view !== null, (rule, detail) => report(rule, instanceId, detail));
    if (view === null) continue;
    checkSize(own, view, (rule, detail) => report(rule, instanceId, detail));
    checkRunState(
      {
        calls: own,
        operations: operations.get(instanceId) ?? [],
        disturbed: disturbed.get(instanceId) ?? [],
        halted: halted.get(instanceId) ?? [],
      },
      view.runState,
      (rule, detail) => report(rule, instanceId, detail),
    );
  }
  return violations;
}

function byInstance<Item extends { readonly instanceId: string | null }>(items: readonly Item[]): Map<string, Item[]> {
  const groups = new Map<string, Item[]>();
  for (const item of items) {
    if (item.instanceId === null) continue;
    const group = groups.get(item.instanceId);
    if (group === undefined) groups.set(item.instanceId, [item]);
    else group.push(item);
  }
  return groups;
}

type ReportViolation = (rule: string, detail: string) => void;

function describe(call: HistoryEntry): string {
  const answer = call.status === null ? 'no answer' : `${call.status} ${call.errorCode ?? ''}`.trim();
  return `${call.kind} sent at ${Math.round(call.sentMs)} ms, ended at ${Math.round(call.endedMs)} ms: ${answer}`;
}

/** Whether a call may have done something although its caller was not told so: PostgreSQL went away while it committed. */
function isUncertain(call: HistoryEntry): boolean {
  if (call.status === null) return true;
  return call.status === 503 && !/failed and was undone/.test(call.message ?? '');
}

function checkExistence(calls: readonly HistoryEntry[], exists: boolean, report: ReportViolation): void {
  const deletes = calls.filter((call) => call.kind === 'delete' && (call.status === 204 || isUncertain(call)));
  const deleted = deletes.find((call) => call.status === 204);
  if (deleted !== undefined) {
    for (const call of calls) {
      if (call.sentMs <= deleted.endedMs || call.status === 404 || call.status === null || call.status === 503)
        continue;
      report('a deleted instance stays 404', `${describe(call)}, after ${describe(deleted)}`);
    }
    if (exists) report('a deleted instance stays 404', `it is there in the end, after ${describe(deleted)}`);
    return;
  }
  // A 404 before anyone asked to delete it, or in the end when nobody did.
  const created = calls.find((call) => call.kind === 'create' && call.status === 201);
  if (created === undefined) return;
  const firstDeleteMs = Math.min(...deletes.map((call) => call.sentMs));
  for (const call of calls) {
    if (call.status !== 404 || call.sentMs < created.endedMs || call.endedMs >= firstDeleteMs) continue;
    // The destination of a migration may be the one that isn't found.
    if (call.kind === 'migrate') continue;
    report('an instance that was created is found', describe(call));
  }
  if (!exists && deletes.length === 0) report('an instance that was created is found', 'it is gone in the end');
}

function checkSize(
  calls: readonly HistoryEntry[],
  view: NonNullable<FinalInstance['view']>,
  report: ReportViolation,
): void {
  const resizes = calls.filter((call) => call.size !== undefined && (call.status === 200 || isUncertain(call)));
  const certain = resizes.filter((call) => call.status === 200);
  const last = certain.reduce<HistoryEntry | null>(
    (latest, call) => (latest === null || call.sentMs > latest.sentMs ? call : latest),
    null,
  );
  if (last === null) return;
  // What was asked for last, at the same time, or later without an answer.
  const possible = resizes.filter((call) => call === last || call.endedMs > last.sentMs || isUncertain(call));
  if (possible.some(({ size }) => size?.ncpus === view.ncpus && size.memoryBytes === view.memoryBytes)) return;
  report('a resize that succeeded is seen', `${view.ncpus} CPUs in the end, although: ${describe(last)}`);
}

/**
 * Who asked last gets it, where one call was clearly the last: a stop that was answered, with no start since, ends
 * Stopped; a start that succeeded, with nothing since, ends Running, and also with a failure since where the instance is
 * started again by itself. A guest that powered itself off, with nothing since, ends Stopped.
 */
function checkRunState(
  { calls, operations, disturbed, halted }: Pick<History, 'calls' | 'operations' | 'disturbed' | 'halted'>,
  externalState: ExternalState,
  report: ReportViolation,
): void {
  // A create may start it as well.
  const starts = calls.filter((call) => call.kind === 'start' || call.kind === 'create');
  const stops = calls.filter(
    (call) => (call.kind === 'stop' || call.kind === 'force-stop') && (call.status === 202 || isUncertain(call)),
  );
  // A start is on its way until its operation has ended, or for ever when its caller never learned of one.
  const startEnds = (call: HistoryEntry): number => {
    if (isUncertain(call)) return Number.POSITIVE_INFINITY;
    if (call.status !== null && call.status >= 400) return call.endedMs;
    const operation = operations.find((one) => one.operationId === call.operationId);
    return operation === undefined ? call.endedMs : (operation.endedMs ?? Number.POSITIVE_INFINITY);
  };
  const stop = stops.filter((call) => call.status === 202).reduce(latest, null);
  if (stop !== null && starts.every((call) => startEnds(call) < stop.sentMs)) {
    if (externalState !== 'stopped')
      report(
        'a user who asked for stop gets Stopped',
        `it shows ${externalState} in the end, although: ${describe(stop)}`,
      );
    return;
  }
  const halt = halted.reduce<GuestEvent | null>(
    (last, event) => (last === null || event.atMs > last.atMs ? event : last),
    null,
  );
  // What befell it before its sled had told of its end may have been quicker.
  const isHaltLast = ({ atMs }: GuestEvent) =>
    starts.every((call) => startEnds(call) < atMs) &&
    disturbed.every((event) => event.atMs < atMs || halted.includes(event));
  if (halt !== null && isHaltLast(halt)) {
    if (externalState !== 'stopped')
      report(
        'a guest that powered itself off ends Stopped',
        `it shows ${externalState} in the end, although its guest halted at ${Math.round(halt.atMs)} ms`,
      );
    return;
  }
  const start = starts
    .filter((call) => call.operationId !== undefined)
    .filter((call) => operations.some((one) => one.operationId === call.operationId && one.outcome === 'succeeded'))
    .reduce(latest, null);
  if (start === null || stops.some((call) => call.endedMs > start.sentMs)) return;
  // Since it was asked for: the guest may have met its end before its caller heard of its start.
  const restarts = calls.some((call) => call.kind === 'create' && call.restarts);
  const since = (restarts ? halted : disturbed).some((event) => event.atMs > start.sentMs);
  // A later start, of its user, that failed leaves it Stopped.
  const isLast = starts.every((call) => call === start || startEnds(call) < start.sentMs);
  if (since || (restarts && !isLast)) return;
  if (externalState !== 'running')
    report('a start that succeeded is seen', `it shows ${externalState} in the end, although: ${describe(start)}`);
}

function latest(before: HistoryEntry | null, call: HistoryEntry): HistoryEntry {
  return before === null || call.sentMs > before.sentMs ? call : before;
}
