import { useEffect, useState } from 'preact/hooks';
import { api, done, messageOf } from '../api/client.ts';
import type { History } from '../api/types.ts';
import { onInstanceEvent } from '../store/fleet.ts';
import { formatTime, safeLink } from '../words.ts';

/** How long after something happened the story is read anew, in milliseconds: a saga does several things in a moment. */
const SETTLE_MS = 400;

/** What happened to an instance, the newest first, with links to who did it in the Temporal Web UI. */
export function Story({ instanceId }: { instanceId: string }) {
  const [story, setStory] = useState<History | null>(null);
  const [problem, setProblem] = useState<string | null>(null);
  useEffect(() => {
    const ending = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    const read = async () => {
      try {
        const path = { instance: instanceId };
        setStory(await done(api.GET('/v1/instances/{instance}/history', { params: { path }, signal: ending.signal })));
        setProblem(null);
      } catch (error) {
        if (!ending.signal.aborted) setProblem(messageOf(error));
      }
    };
    const ends = onInstanceEvent((id) => {
      if (id !== instanceId) return;
      clearTimeout(timer);
      timer = setTimeout(() => void read(), SETTLE_MS);
    });
    void read();
    return () => {
      ends();
      clearTimeout(timer);
      ending.abort();
    };
  }, [instanceId]);
  return (
    <section class="story" aria-label="Story">
      <h2>Story</h2>
      {problem !== null && <p class="is-bad">{problem}</p>}
      {story?.complete === false && <p>Temporal does not answer: what its workflows did is missing here.</p>}
      <ol reversed>
        {[...(story?.items ?? [])].reverse().map((item, index) => {
          const link = safeLink(item.web_ui);
          return (
            <li key={`${item.time} ${index}`} class={`story-${item.kind}`}>
              <time dateTime={item.time}>{formatTime(item.time)}</time> <span class="story-kind">{item.kind}</span>{' '}
              <span class="story-text">{item.text}</span>{' '}
              {link !== null && (
                <a href={link} target="_blank" rel="noopener noreferrer" aria-label={`${item.text}: in Temporal`}>
                  Temporal ↗
                </a>
              )}
            </li>
          );
        })}
      </ol>
    </section>
  );
}
