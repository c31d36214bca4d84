import { api, done, messageOf } from '../api/client.ts';
import { may } from '../api/session.ts';
import type { Drain } from '../api/types.ts';
import { hrefOf } from '../routes.ts';
import { say } from '../store/notes.ts';
import { safeLink } from '../words.ts';

/** How far a drain is, what moves, what is waited for, and what could not move and why. */
export function DrainProgress({ drain, sledName }: { drain: Drain; sledName: string }) {
  const link = safeLink(drain.web_ui);
  const stop = () =>
    done(
      api.DELETE('/v1/system/hardware/sleds/{sled_id}/drain', { params: { path: { sled_id: drain.sled_id } } }),
    ).catch((error: unknown) => say([drain.sled_id], { tone: 'bad', text: messageOf(error) }));
  return (
    <section class="drain" aria-label={`Drain of ${sledName}`}>
      <header>
        <h3>
          Drain of <a href={hrefOf({ view: 'sled', id: drain.sled_id })}>{sledName}</a>
        </h3>
        {drain.state === 'running' && may('sled_drain_stop') && (
          <button type="button" onClick={() => void stop()}>
            Stop the drain
          </button>
        )}
        {link !== null && (
          <a href={link} target="_blank" rel="noopener noreferrer">
            in Temporal ↗
          </a>
        )}
      </header>
      <p>{drain.summary}</p>
      <progress aria-label={`Drain of ${sledName}`} max={Math.max(1, drain.total)} value={drain.moved + drain.ended} />
      <Entries title="moving" entries={drain.moving.map(({ name, destination }) => `${name} to ${destination}`)} />
      <Entries title="waited for" entries={drain.waiting.map(({ name, until }) => `${name}: ${until}`)} />
      <Entries title="could not move" entries={drain.could_not_move.map(({ name, reason }) => `${name}: ${reason}`)} />
    </section>
  );
}

function Entries({ title, entries }: { title: string; entries: readonly string[] }) {
  if (entries.length === 0) return null;
  return (
    <>
      <h4>{title}</h4>
      <ul>
        {entries.slice(0, 50).map((entry) => (
          <li key={entry}>{entry}</li>
        ))}
      </ul>
    </>
  );
}
