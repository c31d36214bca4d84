import { useEffect, useState } from 'preact/hooks';
import { api, done } from '../api/client.ts';
import { may } from '../api/session.ts';
import type { Group, Instance } from '../api/types.ts';
import { Facts } from '../parts/facts.tsx';
import { InstanceActions } from '../parts/instance-actions.tsx';
import { SubjectNote } from '../parts/note.tsx';
import { SerialConsole } from '../parts/serial-console.tsx';
import { StateWord } from '../parts/state-word.tsx';
import { Story } from '../parts/story.tsx';
import { Step, Transfer } from '../parts/tile.tsx';
import { hrefOf } from '../routes.ts';
import { failedOperation, instanceOf, isLoaded, projectName, runningOperation, sledName } from '../store/fleet.ts';
import { counted, formatBytes, formatDuration, formatTime, safeLink } from '../words.ts';

/** One instance: what it is, where it is, what happens to it, its story and its console. */
export function InstanceView({ id }: { id: string }) {
  const instance = instanceOf(id);
  if (instance === undefined)
    return (
      <>
        <h1>Instance {id.slice(0, 8)}</h1>
        <p>{isLoaded.value ? 'It is not there (any more). Its story can still be read.' : 'Looking…'}</p>
        <Story instanceId={id} />
      </>
    );
  return (
    <>
      <header class="view-head">
        <h1>{instance.name}</h1>
        <StateWord state={instance.run_state} />
        <InstanceActions instance={instance} />
      </header>
      <SubjectNote subject={id} />
      <UnderWay instance={instance} />
      <InstanceFacts instance={instance} />
      <div class="side-by-side">
        <Story instanceId={id} />
        {may('instance_serial_console', instance.project_id) && <SerialConsole instanceId={id} name={instance.name} />}
      </div>
    </>
  );
}

function UnderWay({ instance }: { instance: Instance }) {
  const running = runningOperation(instance.id);
  const failed = failedOperation(instance.id);
  const link = safeLink((running ?? failed)?.web_ui);
  const moving = instance.migration_target_sled_id !== null;
  if (running === undefined && failed === undefined && !moving) return null;
  return (
    <section class="under-way" aria-label="Under way">
      {moving && (
        <Transfer
          instance={instance}
          words={`from ${sledName(instance.sled_id)} to ${sledName(instance.migration_target_sled_id)}`}
        />
      )}
      {running !== undefined && <Step operationId={running.id} kind={running.kind} />}
      {failed?.error != null && (
        <p class="is-bad">
          The last {failed.kind} was undone: {failed.error.message}
        </p>
      )}
      {link !== null && (
        <a href={link} target="_blank" rel="noopener noreferrer">
          its workflow in Temporal ↗
        </a>
      )}
    </section>
  );
}

function InstanceFacts({ instance }: { instance: Instance }) {
  const place = instance.sled_id;
  const restart = instance.auto_restart_enabled
    ? `yes (${instance.restart_priority}), at most every ${formatDuration(instance.auto_restart_cooldown_seconds * 1000)}`
    : 'never';
  return (
    <Facts
      facts={[
        ['Description', instance.description],
        ['Intent', instance.intended_state?.replace('_', ' ')],
        [
          'Place',
          place === null ? (
            'no sled'
          ) : may('sled_view') ? (
            <a href={hrefOf({ view: 'sled', id: place })}>{sledName(place)}</a>
          ) : (
            sledName(place)
          ),
        ],
        ['Room', `${counted(instance.ncpus, 'thread')}, ${formatBytes(instance.memory)}`],
        ['Project', projectName(instance.project_id)],
        ['Host name', instance.hostname],
        ['Restarted by itself', restart],
        [
          'Last restarted',
          instance.time_last_auto_restarted === null ? null : formatTime(instance.time_last_auto_restarted),
        ],
        ['Groups', <Groups key="groups" instanceId={instance.id} />],
        ['Created', formatTime(instance.time_created)],
        ['In this state since', formatTime(instance.time_run_state_updated)],
        ['Id', <code key="id">{instance.id}</code>],
      ]}
    />
  );
}

/** The groups that an instance is in. */
function Groups({ instanceId }: { instanceId: string }) {
  const [groups, setGroups] = useState<readonly { kind: string; group: Group }[] | null>(null);
  useEffect(() => {
    const ending = new AbortController();
    const params = { path: { instance: instanceId } };
    const { signal } = ending;
    Promise.all([
      done(api.GET('/v1/instances/{instance}/affinity-groups', { params, signal })),
      done(api.GET('/v1/instances/{instance}/anti-affinity-groups', { params, signal })),
    ]).then(
      ([together, apart]) =>
        setGroups([
          ...together.items.map((group) => ({ kind: 'together', group })),
          ...apart.items.map((group) => ({ kind: 'apart', group })),
        ]),
      () => setGroups(null),
    );
    return () => ending.abort();
  }, [instanceId]);
  if (groups === null) return <>…</>;
  if (groups.length === 0) return <>none</>;
  return <>{groups.map(({ kind, group }) => `${group.name} (${kind}, ${group.policy})`).join('; ')}</>;
}
