import { useLayoutEffect, useRef } from 'preact/hooks';
import type { Instance } from '../api/types.ts';
import { hrefOf } from '../routes.ts';
import { drag, pressTile } from '../store/drag.ts';
import { failedOperation, runningOperation, sledName } from '../store/fleet.ts';
import { asked, notes } from '../store/notes.ts';
import { useMigration, useOperation } from '../store/watching.ts';
import { openMenu } from './instance-menu.tsx';
import { SubjectNote } from './note.tsx';
import { StateWord } from './state-word.tsx';

/** How long a tile takes to its new place, in milliseconds. */
const FLIGHT_MS = 450;
/** Where tiles were that have just gone from the page: those that come up elsewhere fly there. */
const lastPlaces = new Map<string, { readonly box: DOMRect; readonly at: number }>();

/** An instance in the fleet. `arriving`: it is drawn at the sled that it is on its way to. */
export function Tile({ instance, arriving }: { instance: Instance; arriving: boolean }) {
  const element = useRef<HTMLElement>(null);
  useLayoutEffect(() => {
    const tile = element.current;
    if (tile === null || arriving) return;
    flyFrom(tile, lastPlaces.get(instance.id));
    return () => lastPlaces.set(instance.id, { box: tile.getBoundingClientRect(), at: performance.now() });
  }, [instance.id, arriving]);
  const dragged = drag.value?.instance.id === instance.id;
  return (
    <article
      ref={element}
      class={`tile shows-${instance.run_state}${arriving ? ' is-arriving' : ''}${dragged ? ' is-dragged' : ''}`}
      data-instance={instance.id}
      onPointerDown={arriving ? undefined : (event) => pressTile(event, instance)}
    >
      <a href={hrefOf({ view: 'instance', id: instance.id })} draggable={false}>
        <span class="tile-name">{instance.name}</span>
        <StateWord state={instance.run_state} />
      </a>
      {!arriving && (
        <button
          type="button"
          class="quiet tile-menu"
          aria-label={`Actions for ${instance.name}`}
          aria-haspopup="dialog"
          onClick={() => openMenu(instance.id)}
        >
          ⋯
        </button>
      )}
      <TileStory instance={instance} arriving={arriving} />
    </article>
  );
}

/** What happens to an instance now, or what went wrong last, in one line. */
function TileStory({ instance, arriving }: { instance: Instance; arriving: boolean }) {
  if (arriving) return <Transfer instance={instance} words={`from ${sledName(instance.sled_id)}`} />;
  const note = notes.value.get(instance.id);
  if (note !== undefined && note.isMinor !== true) return <SubjectNote subject={instance.id} />;
  if (instance.migration_target_sled_id !== null)
    return <Transfer instance={instance} words={`to ${sledName(instance.migration_target_sled_id)}`} />;
  const running = runningOperation(instance.id);
  if (running !== undefined) return <Step operationId={running.id} kind={running.kind} />;
  const failed = failedOperation(instance.id);
  if (failed?.error != null && !asked.value.has(instance.id))
    return (
      <p class="tile-story is-bad" title={failed.error.message}>
        {failed.kind} undone: {failed.error.message.replace(/^the \w+ failed and was undone: /, '')}
      </p>
    );
  if (note !== undefined) return <SubjectNote subject={instance.id} />;
  const words = asked.value.get(instance.id);
  return words === undefined ? null : <p class="tile-story">{words}</p>;
}

/** The step that an operation is at. */
export function Step({ operationId, kind }: { operationId: string; kind: string }) {
  const progress = useOperation(operationId)?.progress;
  const words = progress == null ? `${kind} under way` : progress.title;
  const attempt = progress != null && progress.attempt > 1 ? `, attempt ${progress.attempt}` : '';
  return (
    <p
      class={`tile-story${progress?.phase === 'undoing' ? ' is-bad' : ''}`}
      title={progress?.last_failure ?? undefined}
    >
      {progress?.phase === 'undoing' ? 'undoing: ' : ''}
      {words}
      {attempt}
    </p>
  );
}

/** How far a live migration is. */
export function Transfer({ instance, words }: { instance: Instance; words: string }) {
  const migration = useMigration(instance.id);
  const progress = migration?.outcome === null ? migration.progress : null;
  const share = progress == null || progress.bytes_total === 0 ? null : 1 - progress.bytes_left / progress.bytes_total;
  const percent = share === null ? null : Math.round(Math.max(0, Math.min(1, share)) * 100);
  return (
    <div class="transfer" title={migration?.summary}>
      <span>
        {words}
        {percent === null ? '' : `, ${percent} %`}
      </span>
      <progress
        aria-label={`Migration of ${instance.name} ${words}`}
        max={100}
        {...(percent === null ? {} : { value: percent })}
      />
    </div>
  );
}

function flyFrom(tile: HTMLElement, last: { readonly box: DOMRect; readonly at: number } | undefined): void {
  if (last === undefined || performance.now() - last.at > 1_000) return;
  if (matchMedia('(prefers-reduced-motion: reduce)').matches) return;
  const now = tile.getBoundingClientRect();
  const [x, y] = [last.box.left - now.left, last.box.top - now.top];
  if (x === 0 && y === 0) return;
  // Over the edges of its column, on the way.
  tile.classList.add('is-flying');
  const flight = tile.animate(
    [
      { transform: `translate(${x}px, ${y}px)`, zIndex: 5 },
      { transform: 'none', zIndex: 5 },
    ],
    {
      duration: FLIGHT_MS,
      easing: 'cubic-bezier(.2,.7,.2,1)',
    },
  );
  const land = () => tile.classList.remove('is-flying');
  flight.finished.then(land, land);
}
