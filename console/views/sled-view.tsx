import { useState } from 'preact/hooks';
import { api, done, messageOf } from '../api/client.ts';
import { may } from '../api/session.ts';
import type { Sled } from '../api/types.ts';
import { DrainProgress } from '../parts/drain-progress.tsx';
import { Facts } from '../parts/facts.tsx';
import { FilterBar } from '../parts/filter-bar.tsx';
import { InstanceRows } from '../parts/instance-rows.tsx';
import { SubjectNote } from '../parts/note.tsx';
import { SledRoom } from '../parts/room-bar.tsx';
import { isLoaded, picture, sledOf } from '../store/fleet.ts';
import { say } from '../store/notes.ts';
import { useDrain } from '../store/watching.ts';
import { formatTime, leaseWords, sledPolicy, sledStanding } from '../words.ts';

/** One sled: its room, its standing, its drain, and all that is on it. */
export function SledView({ id }: { id: string }) {
  const sled = sledOf(id);
  const column = picture.value.columns.find((one) => one.id === id);
  if (sled === undefined)
    return (
      <>
        <h1>Sled {id.slice(0, 8)}</h1>
        <p>{isLoaded.value ? 'It is not there, or may not be seen with this token.' : 'Looking…'}</p>
        <InstanceRows instances={column?.instances ?? []} label="Instances on this sled" />
      </>
    );
  return (
    <>
      <header class="view-head">
        <h1>{sled.name}</h1>
        <span class={`standing tone-${sledStanding(sled).tone}`}>{sledStanding(sled).word}</span>
        <SledActions sled={sled} />
      </header>
      <SubjectNote subject={id} />
      <DrainOf sled={sled} />
      <div class="rooms">
        <SledRoom sled={sled} />
      </div>
      <Facts
        facts={[
          ['Policy', sledPolicy(sled)],
          ['Lease', leaseWords(sled)],
          ['Silent since', sled.silent_since == null ? null : formatTime(sled.silent_since)],
          ['Last answered', sled.last_answered == null ? null : formatTime(sled.last_answered)],
          [
            'Declared dead',
            sled.declared_dead === null
              ? null
              : `${formatTime(sled.declared_dead.time)}, by ${sled.declared_dead.by === 'lease' ? 'its lease' : 'an operator'}`,
          ],
          ['Trouble', sled.agent?.trouble.join('; ')],
          ['Agent', sled.agent?.version],
          ['CPU models', sled.cpu_models?.join(', ')],
          ['Address', sled.address],
          ['Id', <code key="id">{sled.id}</code>],
        ]}
      />
      <h2>Instances</h2>
      <FilterBar />
      <InstanceRows instances={column?.instances ?? []} label={`Instances on ${sled.name}`} />
    </>
  );
}

function DrainOf({ sled }: { sled: Sled }) {
  // A drain takes its sled out of service first; who has none, has none under way.
  const out = sled.policy.kind === 'in_service' && sled.policy.provision_policy === 'non_provisionable';
  const drain = useDrain(out ? sled.id : null);
  return drain === undefined ? null : <DrainProgress drain={drain} sledName={sled.name} />;
}

function SledActions({ sled }: { sled: Sled }) {
  const [busy, setBusy] = useState(false);
  const path = { sled_id: sled.id };
  const ask = async (call: () => Promise<unknown>) => {
    setBusy(true);
    await call().catch((error: unknown) => say([sled.id], { tone: 'bad', text: messageOf(error) }));
    setBusy(false);
  };
  if (sled.policy.kind === 'expunged') return null;
  const takes = sled.policy.provision_policy === 'provisionable';
  const setPolicy = (state: 'provisionable' | 'non_provisionable') =>
    ask(() =>
      done(api.PUT('/v1/system/hardware/sleds/{sled_id}/provision-policy', { params: { path }, body: { state } })),
    );
  return (
    <div class="actions" role="toolbar" aria-label={`Actions for ${sled.name}`}>
      {may('sled_set_provision_policy') && (
        <button
          type="button"
          disabled={busy}
          onClick={() => void setPolicy(takes ? 'non_provisionable' : 'provisionable')}
        >
          {takes ? 'Take out of service' : 'Put into service'}
        </button>
      )}
      {may('sled_drain_begin') && takes && (
        <button
          type="button"
          disabled={busy}
          onClick={() =>
            void ask(() =>
              done(api.POST('/v1/system/hardware/sleds/{sled_id}/drain', { params: { path }, body: { parallel: 4 } })),
            )
          }
        >
          Drain
        </button>
      )}
    </div>
  );
}
