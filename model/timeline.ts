/** An instance's story as a person tells it: what happened, when, and where to look further. Pure. */
import type { MigrationState, OperationKind, VmmState } from './states.ts';

export const TIMELINE_KINDS = ['instance', 'operation', 'vmm', 'migration', 'workflow'] as const;
export type TimelineKind = (typeof TIMELINE_KINDS)[number];

export interface TimelineEvent {
  readonly time: Date;
  readonly kind: TimelineKind;
  readonly text: string;
  /** The workflow run that did it, for a link; `null` where none did. */
  readonly workflow: { readonly workflowId: string; readonly runId: string } | null;
}

export interface TimelineFacts {
  readonly name: string;
  readonly timeCreated: Date;
  readonly timeDeleted: Date | null;
  readonly operations: readonly {
    readonly id: string;
    readonly kind: OperationKind;
    readonly workflowId: string;
    readonly succeeded: boolean | null;
    readonly message: string | null;
    readonly timeStarted: Date;
    readonly timeEnded: Date | null;
  }[];
  readonly vmms: readonly {
    readonly id: string;
    readonly sled: string | null;
    readonly state: VmmState;
    readonly failureReason: string | null;
    readonly timeCreated: Date;
    readonly timeStateUpdated: Date;
  }[];
  readonly migrations: readonly {
    readonly id: string;
    readonly source: string | null;
    readonly target: string | null;
    readonly sourceState: MigrationState;
    readonly targetState: MigrationState;
    readonly timeCreated: Date;
    readonly timeUpdated: Date | null;
  }[];
  /** Runs of workflows that are no operations: updates, stops, unwinds. */
  readonly runs: readonly {
    readonly workflowId: string;
    readonly runId: string;
    readonly title: string;
    readonly result: string | null;
    readonly status: string;
    readonly timeStarted: Date;
    readonly timeEnded: Date | null;
  }[];
}

/** Tells the story, oldest first. Where the times are equal, what causes stands before what follows. */
export function timeline(facts: TimelineFacts): TimelineEvent[] {
  const events: TimelineEvent[] = [
    { time: facts.timeCreated, kind: 'instance', text: `created as "${facts.name}"`, workflow: null },
  ];
  for (const operation of facts.operations) {
    const workflow = { workflowId: operation.workflowId, runId: operation.id };
    events.push({ time: operation.timeStarted, kind: 'operation', text: `${operation.kind} began`, workflow });
    if (operation.timeEnded === null) continue;
    const outcome = operation.succeeded ? 'succeeded' : `failed: ${operation.message ?? 'no reason is on record'}`;
    events.push({ time: operation.timeEnded, kind: 'operation', text: `${operation.kind} ${outcome}`, workflow });
  }
  for (const migration of facts.migrations) {
    const route = `${migration.source ?? '?'} → ${migration.target ?? '?'}`;
    events.push({ time: migration.timeCreated, kind: 'migration', text: `migration ${route} claimed`, workflow: null });
    if (migration.timeUpdated === null) continue;
    const sides = `source ${migration.sourceState}, target ${migration.targetState}`;
    events.push({
      time: migration.timeUpdated,
      kind: 'migration',
      text: `migration ${route}: ${sides}`,
      workflow: null,
    });
  }
  for (const vmm of facts.vmms) {
    const where = `VMM ${vmm.id.slice(0, 8)} on ${vmm.sled ?? 'no sled'}`;
    events.push({ time: vmm.timeCreated, kind: 'vmm', text: `${where} made`, workflow: null });
    if (vmm.state === 'creating') continue;
    const why = vmm.failureReason === null ? '' : `: ${vmm.failureReason}`;
    events.push({ time: vmm.timeStateUpdated, kind: 'vmm', text: `${where} is ${vmm.state}${why}`, workflow: null });
  }
  for (const run of facts.runs) {
    const workflow = { workflowId: run.workflowId, runId: run.runId };
    const text = `${run.title}: ${run.timeEnded === null ? 'under way' : (run.result ?? run.status.toLowerCase())}`;
    events.push({ time: run.timeEnded ?? run.timeStarted, kind: 'workflow', text, workflow });
  }
  if (facts.timeDeleted !== null)
    events.push({ time: facts.timeDeleted, kind: 'instance', text: 'deleted', workflow: null });
  const order = (event: TimelineEvent) => TIMELINE_KINDS.indexOf(event.kind);
  return events.sort((a, b) => a.time.getTime() - b.time.getTime() || order(a) - order(b));
}
