import { useRef } from 'preact/hooks';
import type { Sled } from '../api/types.ts';
import { hrefOf } from '../routes.ts';
import { destinationDoubt } from '../store/actions.ts';
import { drag } from '../store/drag.ts';
import { filter } from '../store/fleet.ts';
import type { Column } from '../store/picture.ts';
import { counted, leaseWords, sledPolicy, sledStanding } from '../words.ts';
import { SubjectNote } from './note.tsx';
import { SledRoom } from './room-bar.tsx';
import { StateBar, StateCountsLine } from './state-word.tsx';
import { Tile } from './tile.tsx';

/** A sled of the fleet, with as many of its instances as there is room for; of the others, how many there are. */
export function SledColumn({ column, tiles }: { column: Column; tiles: number }) {
  const element = useRef<HTMLElement>(null);
  const { id, sled, name, instances, arriving } = column;
  const shownArriving = arriving.slice(0, tiles);
  const shown = instances.slice(0, Math.max(0, tiles - shownArriving.length));
  const rest = instances.length - shown.length;
  const dragged = drag.value;
  const isOver = dragged !== null && id !== null && dragged.over === id;
  const doubt = dragged !== null && sled !== null ? destinationDoubt(dragged.instance, sled) : null;
  return (
    <section
      ref={element}
      class={`column${isOver ? ' is-over' : ''}${dragged !== null && doubt !== null ? ' is-doubtful' : ''}`}
      aria-label={id === null ? 'Instances on no sled' : `Sled ${name}`}
      {...(sled === null ? {} : { 'data-sled': sled.id })}
    >
      <header>
        <h2>{sled === null ? name : <a href={hrefOf({ view: 'sled', id: sled.id })}>{name}</a>}</h2>
        {sled !== null && <Standing sled={sled} />}
      </header>
      {sled === null ? (
        <p class="column-facts">{counted(instances.length, 'instance')}</p>
      ) : (
        <SledFacts sled={sled} doubt={isOver ? doubt : null} />
      )}
      <StateBar counts={column.counts} />
      {id !== null && <SubjectNote subject={id} />}
      <div class="tiles">
        {shownArriving.map((instance) => (
          <Tile key={`${instance.id} arriving`} instance={instance} arriving={true} />
        ))}
        {shown.map((instance) => (
          <Tile key={instance.id} instance={instance} arriving={false} />
        ))}
        {instances.length + arriving.length === 0 && <p class="empty">nothing here</p>}
      </div>
      <footer>
        {rest > 0 ? (
          <More id={id} rest={rest}>
            <StateCountsLine counts={column.counts} />
          </More>
        ) : null}
      </footer>
    </section>
  );
}

function More({ id, rest, children }: { id: string | null; rest: number; children: preact.ComponentChildren }) {
  const href = id === null ? hrefOf({ view: 'instances' }) : hrefOf({ view: 'sled', id });
  const where = filter.value;
  const isFiltered = where.text !== '' || where.projectId !== null || where.state !== null;
  return (
    <>
      <a href={href}>
        and {rest.toLocaleString('en')} more{isFiltered ? ' that match' : ''}
      </a>
      {children}
    </>
  );
}

function Standing({ sled }: { sled: Sled }) {
  const { word, tone } = sledStanding(sled);
  return (
    <span class={`standing tone-${tone}`}>
      <span aria-hidden="true">{tone === 'good' ? '✓' : '!'}</span> {word}
    </span>
  );
}

/** A sled's room, policy and lease; `doubt`: what speaks against what is held over it. */
function SledFacts({ sled, doubt }: { sled: Sled; doubt: string | null }) {
  return (
    <>
      <SledRoom sled={sled} />
      <p class="column-facts">
        {doubt === null ? `${sledPolicy(sled)} · ${leaseWords(sled)}` : <strong class="is-bad">{doubt}</strong>}
      </p>
    </>
  );
}
