import { useEffect, useMemo, useState } from 'preact/hooks';
import { api, done, messageOf } from '../api/client.ts';
import { may } from '../api/session.ts';
import type { Activity, Operation } from '../api/types.ts';
import { DrainProgress } from '../parts/drain-progress.tsx';
import { Plot } from '../parts/plot.tsx';
import { Step } from '../parts/tile.tsx';
import { hrefOf } from '../routes.ts';
import { beginners, instanceOf, operationLists, sledList } from '../store/fleet.ts';
import { useDrain } from '../store/watching.ts';
import { counted, formatTime, safeLink } from '../words.ts';

/** How often the last hour is read anew, in milliseconds. */
const READ_EVERY_MS = 30_000;
/** How many of a list are drawn. */
const SHOWN = 100;

/** What is under way, what failed lately and by whom, how drains are doing, and the last hour as plots. */
export function ActivityView() {
  const { running, failed } = operationLists.value;
  return (
    <>
      <h1>Activity</h1>
      <Operations title="Under way" operations={running} none="Nothing is under way." />
      <Drains />
      <Operations title="Failed in the last hour" operations={failed} none="Nothing failed." />
      {may('system_activity_view') && <LastHour />}
    </>
  );
}

function Operations({ title, operations, none }: { title: string; operations: readonly Operation[]; none: string }) {
  return (
    <section aria-label={title}>
      <h2>
        {title} {operations.length > 0 && <small>({operations.length})</small>}
      </h2>
      {operations.length === 0 && <p>{none}</p>}
      <ul class="operations">
        {operations.slice(0, SHOWN).map((operation) => (
          <li key={operation.id}>
            <OperationLine operation={operation} />
          </li>
        ))}
      </ul>
      {operations.length > SHOWN && <p>and {counted(operations.length - SHOWN, 'more operation')}</p>}
    </section>
  );
}

function OperationLine({ operation }: { operation: Operation }) {
  const link = safeLink(operation.web_ui);
  const by = beginners.value.get(operation.id);
  const name = operation.instance_name ?? instanceOf(operation.instance_id)?.name ?? operation.instance_id.slice(0, 8);
  return (
    <>
      <strong>{operation.kind}</strong> <a href={hrefOf({ view: 'instance', id: operation.instance_id })}>{name}</a>{' '}
      {by !== undefined && <span>by {by} </span>}
      <time dateTime={operation.time_started}>{formatTime(operation.time_ended ?? operation.time_started)}</time>{' '}
      {link !== null && (
        <a
          href={link}
          target="_blank"
          rel="noopener noreferrer"
          aria-label={`${operation.kind} of ${name} in Temporal`}
        >
          Temporal ↗
        </a>
      )}
      {operation.state === 'running' && <Step operationId={operation.id} kind={operation.kind} />}
      {operation.error != null && <p class="is-bad">{operation.error.message}</p>}
    </>
  );
}

/** Drains: of sleds that are out of service, as a drain has its sled. */
function Drains() {
  const out = sledList.value.filter(
    ({ policy }) => policy.kind === 'in_service' && policy.provision_policy === 'non_provisionable',
  );
  if (out.length === 0) return null;
  return (
    <section aria-label="Drains">
      <h2>Drains</h2>
      {out.slice(0, 20).map(({ id, name }) => (
        <DrainOf key={id} id={id} name={name} />
      ))}
    </section>
  );
}

function DrainOf({ id, name }: { id: string; name: string }) {
  const drain = useDrain(id);
  return drain === undefined ? (
    <p>{name} takes no new instances; it has had no drain lately.</p>
  ) : (
    <DrainProgress drain={drain} sledName={name} />
  );
}

function LastHour() {
  const [activity, setActivity] = useState<Activity | null>(null);
  const [problem, setProblem] = useState<string | null>(null);
  useEffect(() => {
    const ending = new AbortController();
    const read = () =>
      done(api.GET('/v1/system/activity', { signal: ending.signal })).then(
        (seen) => {
          setActivity(seen);
          setProblem(null);
        },
        (error: unknown) => !ending.signal.aborted && setProblem(messageOf(error)),
      );
    void read();
    const timer = setInterval(() => document.visibilityState === 'visible' && void read(), READ_EVERY_MS);
    return () => {
      clearInterval(timer);
      ending.abort();
    };
  }, []);
  const plots = useMemo(() => (activity === null ? null : plotsOf(activity)), [activity]);
  return (
    <section aria-label="The last hour">
      <h2>The last hour</h2>
      {problem !== null && <p class="is-bad">{problem}</p>}
      {plots !== null && (
        <div class="plots">
          <Plot title="Starts" times={plots.times} lines={plots.starts} unit="" />
          <Plot title="Unwinds and failures" times={plots.times} lines={plots.troubles} unit="" />
          <Plot title="Migrations" times={plots.times} lines={plots.migrations} unit="" />
          <Plot title="Update lag" times={plots.times} lines={plots.lags} unit="s" />
        </div>
      )}
    </section>
  );
}

function plotsOf({ minutes }: Activity) {
  return {
    times: minutes.map(({ time }) => Date.parse(time) / 1000),
    starts: [
      { label: 'succeeded', colour: '--good', values: minutes.map(({ starts }) => starts.succeeded) },
      { label: 'failed', colour: '--bad', values: minutes.map(({ starts }) => starts.failed) },
    ],
    migrations: [
      { label: 'succeeded', colour: '--good', values: minutes.map(({ migrations }) => migrations.succeeded) },
      { label: 'failed', colour: '--bad', values: minutes.map(({ migrations }) => migrations.failed) },
    ],
    troubles: [
      { label: 'unwinds', colour: '--warn', values: minutes.map(({ unwinds }) => unwinds) },
      { label: 'failures', colour: '--bad', values: minutes.map(({ failures }) => failures) },
    ],
    lags: [
      { label: 'mean', colour: '--good', values: minutes.map(({ update_lag }) => update_lag?.mean_seconds ?? null) },
      { label: 'longest', colour: '--warn', values: minutes.map(({ update_lag }) => update_lag?.max_seconds ?? null) },
    ],
  };
}
