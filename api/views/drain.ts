import { type DrainEntry, type DrainProgress, describeDrain } from '../../model/drain.ts';
import type { DrainView } from '../../wire/operator-api/drains.ts';

/** A drain as the API answers it: how far it has come, and the run that carries it. */
export function viewDrain(
  progress: DrainProgress,
  run: { readonly begun: Date; readonly ended: Date | null; readonly webUi: string | null },
): DrainView {
  const named = ({ instanceId, name }: DrainEntry) => ({ instance_id: instanceId, name });
  return {
    sled_id: progress.sledId,
    state: progress.state,
    summary: describeDrain(progress),
    total: progress.total,
    moved: progress.moved,
    ended: progress.ended,
    moving: progress.moving.map((entry) => ({ ...named(entry), destination: entry.detail })),
    waiting: progress.waiting.map((entry) => ({ ...named(entry), until: entry.detail })),
    could_not_move: progress.couldNotMove.map((entry) => ({ ...named(entry), reason: entry.detail })),
    parallel: progress.parallel,
    time_started: run.begun.toISOString(),
    time_ended: run.ended?.toISOString() ?? null,
    web_ui: run.webUi,
  };
}
